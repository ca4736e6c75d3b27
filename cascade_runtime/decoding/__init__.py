"""From logits to tokens: what a model chooses (`choice`), for many rows over KV slots (`decoder`), until the end
(`stopping`).
"""
