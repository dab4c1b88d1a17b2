"""The policy as the learner and its trainers compute it: from packed rows to log-probs.

``policy`` loads it, ``packed_attention`` keeps the samples of a row apart, ``sequence_parallel``
shares a row among ranks, ``token_logprobs`` never holds all logits, ``lora`` and ``quantised``
train less than all of it, ``expert_load`` balances and watches mixtures of experts.
"""
