"""A model behind an OpenAI-compatible server: the function behind `craft serve`.

The server is transformers' own (`transformers serve`: its routes, handlers and wire format). craft puts a
gate before it, which refuses what it would answer with an internal error or not limit at all, and a writer
behind it, which lets all clients write at once by the fast path of `stream`.
"""
