"""An algorithm of one's own: an advantage and a loss, two functions, used like the built-in ones.

    python scripts/own_algorithm.py runs/quickstart/sft

What a loss may look at is in ``posttrain.token_tensors``; the mean over tokens, the KL and the
correction are the settings around it (docs/algorithms.md). Try a change on a few steps first.
"""

import sys

import torch

import envs
import posttrain
from posttrain.advantages import Values, per_group
from posttrain.losses import TokenLoss, TokenTensors


@per_group
def above_median(rewards_G: Values, *, scale: float = 1.0) -> list[float | None]:
    """Reward minus the group's median: one lucky answer does not move the baseline."""
    judged = sorted(r for r in rewards_G if r is not None)
    median = judged[len(judged) // 2] if judged else 0.0
    return [None if r is None else scale * (r - median) for r in rewards_G]


def soft_clip(tokens: TokenTensors, *, width: float = 0.5) -> TokenLoss:
    """-A tanh(log r / width) width: near r = 1 the policy gradient, far from it none."""
    log_ratio = tokens.logprobs - tokens.base_logprobs
    bounded = width * torch.tanh(log_ratio / width)
    far = tokens.masked((log_ratio.abs() > width).float()).sum()
    return -tokens.advantages * bounded, {"far": far}


if __name__ == "__main__":  # the learner's processes import this file for its functions
    run = posttrain.grpo(
        model=sys.argv[1],
        env=envs.load("reasoning_gym:chain_sum", min_terms=4, max_terms=6, max_digits=1),
        algorithm={"advantage": above_median, "loss": {"name": soft_clip, "width": 0.3}},
        learner={"learning_rate": 1e-4}, prompts_per_step=16, steps=20, run_dir="runs/own",
    )  # fmt: skip
    print(run.summary)
