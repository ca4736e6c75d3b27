"""How fast is the decoding core beside its rivals, on the same weights, prompts and tokens? See `__main__.py`."""
