"""Rollout engines: requests in, completions with the weight version of every token out.

``choice`` makes the one that a job asks for. ``vllm_engine`` is several ``replica``s of vLLM, which
``routing`` shares out; each talks through ``client`` to a ``server`` of ours, or to one that was
there before (``attached``, started by ``rollout_server``). Inside vLLM run ``vllm_worker`` and
``server_gate``. ``weight_sync`` is the transaction that brings new weights, ``delivery`` takes them
to servers that don't see our files. ``embedded`` needs no vLLM. ``logprob_server`` is a reference
policy behind a server.
"""
