"""Files that callers leave with a server: recordings to ask about, batches of questions, and their answers.

store.py    one private folder: bounded sizes, count and age; each caller sees its own files only
upload.py   a multipart body -> a file in the store
routes.py   /v1/files, as OpenAI's
"""
