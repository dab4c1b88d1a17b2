"""Samples for learners of the small checkpoint: random, and far from what it would say."""

import numpy as np

from posttrain.types import Sample


def make_samples(seed, n=8):
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        length = int(rng.integers(8, 30))
        mask = np.arange(length) >= 4
        logprobs = np.where(mask, rng.normal(-5, 0.2, length), 0).astype(np.float32)
        advantages = np.where(mask, rng.normal(), 0).astype(np.float32)
        ids = rng.integers(0, 200, length)
        samples.append(Sample(ids, mask, logprobs, advantages, np.zeros(length, np.int64), str(i)))
    return samples
