"""A finished model for its users: an OpenAI-compatible server, and a conversation in the terminal.

One front, two engines. ``gate`` decides what reaches either of them: four routes, a key, a bounded
body. Behind it is vLLM's own server (``vllm_front``), or ours on the embedded engine: ``protocol``
reads requests and words errors, ``decoder`` makes tokens, ``text`` makes text of them, ``answers``
puts both into OpenAI's shapes, ``app`` is the routes.
"""
