"""One seed per run; everything random in it is derived from that seed and from *where* it is.

``derive_seed(seed, step, prompt, sample)`` depends on nothing else: not on the order in which
rollouts finish, the number of servers, or how often a request was sent. So a request that is
sent again after a crash asks for the same tokens.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *place: int | str) -> int:
    """A seed in [0, 2**63): the first 63 bits of blake2b over the seed and the place.

    A hash rather than arithmetic such as ``seed * 1000 + step``, because neighbouring seeds would
    then share random numbers. 63 bits fit the signed 64-bit seeds of vLLM and torch.
    """
    text = "/".join(str(part) for part in (seed, *place))
    digest = hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"posttrain-seed"
    ).digest()
    return int.from_bytes(digest, "big") >> 1
