"""The learner: optimiser steps on DeepSpeed, in this process or on ranks of their own.

``learner`` is one rank: ``rank_setup`` makes its engine, ``row_tensors`` its rows, ``critic`` the
value model, ``state`` its checkpoints, ``published_weights`` the way out for weights
(``snapshot_file``, ``nccl_transport``). ``inline`` calls it here; ``process`` starts or awaits
ranks (``rank``, ``remote``) and speaks to them over ``rank_link``. ``memory`` is what one needs.
"""
