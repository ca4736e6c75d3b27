"""What does running all stages at once bring, and what does it cost? See `__main__.py`."""
