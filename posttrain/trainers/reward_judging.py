"""How good a reward model is on pairs it has not seen: accuracy, calibration, length bias.

All numbers come from the scores of both answers and their lengths; probabilities are those of
``reward_losses``, given that one of the two won. A pair has no natural order, so calibration looks
at the answer that the model prefers: it gives it a probability of at least a half, and is right as
often as that answer is the chosen one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.held_out import wilson

BINS = 10
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Raw scores of both answers, and their lengths in tokens."""

    row: int
    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int
    tie: bool = False


def judge(pairs: Sequence[ScoredPair], eta: float = 0.0) -> dict[str, Any]:
    """The numbers of the report, ready for JSON; {} without a decided pair."""
    decided = [pair for pair in pairs if not pair.tie]
    if not decided:
        return {}
    gaps = np.array([pair.chosen - pair.rejected for pair in decided])
    longer = np.array([pair.chosen_tokens - pair.rejected_tokens for pair in decided])
    right = gaps > 0
    accuracy = float(right.mean())
    low, high = wilson(accuracy, len(decided))
    found: dict[str, Any] = {
        "pairs": len(decided),
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "log_loss": float(np.logaddexp(0.0, eta - gaps).mean()),
        "calibration": calibration(_preferred(gaps, eta), right),
        "length": length_agreement(gaps, longer.astype(float)),
    }
    ties = [pair for pair in pairs if pair.tie]
    if ties:
        apart = np.abs([pair.chosen - pair.rejected for pair in ties])
        found["ties"] = {
            "pairs": len(ties),
            "mean_gap": float(apart.mean()),
            "mean_gap_of_decided_pairs": float(np.abs(gaps).mean()),
        }
    return found


def _preferred(gaps: Array, eta: float) -> Array:
    """P(win) / (P(win) + P(loss)) of the answer with the higher score, [N]."""
    win, loss = (np.exp(-np.logaddexp(0.0, eta - d)) for d in (np.abs(gaps), -np.abs(gaps)))
    return np.asarray(win / (win + loss))


def calibration(said: Array, right: NDArray[np.bool_]) -> dict[str, Any]:
    """Bins of equal size by what was said; ``error`` is their mean |said - seen| (ECE).

    said [N]: probability of what was preferred; right [N]: whether it was.
    """
    bins = []
    for members in np.array_split(np.argsort(said, kind="stable"), min(BINS, len(said))):
        share = float(right[members].mean())
        low, high = wilson(share, len(members))
        bins.append(
            {
                "predicted": float(said[members].mean()),
                "observed": share,
                "observed_low": low,
                "observed_high": high,
                "n": len(members),
            }
        )
    error = sum(b["n"] * abs(b["predicted"] - b["observed"]) for b in bins) / len(said)
    return {"error": error, "bins": bins}


def length_agreement(gaps: Array, longer: Array) -> dict[str, Any]:
    """How far the model goes by length; gaps and longer [N]: chosen minus rejected.

    ``model_prefers_longer`` far above ``people_prefer_longer`` is the bias. Agreement is high where
    the longer answer is also the better one and low where it is not, if length is all there is.
    """
    unequal = longer != 0
    bins = []
    for members in np.array_split(np.argsort(longer, kind="stable"), min(5, len(longer))):
        bins.append(
            {
                "from": float(longer[members].min()),
                "to": float(longer[members].max()),
                "agreement": float((gaps[members] > 0).mean()),
                "n": len(members),
            }
        )
    return {
        "people_prefer_longer": _share(longer[unequal] > 0),
        "model_prefers_longer": _share((gaps * longer)[unequal] > 0),
        "agreement_where_longer_is_better": _share(gaps[longer > 0] > 0),
        "agreement_where_shorter_is_better": _share(gaps[longer < 0] > 0),
        "correlation": _correlation(gaps, longer),
        "bins": bins,
    }


def _share(hits: NDArray[np.bool_]) -> float | None:
    return float(hits.mean()) if len(hits) else None


def _correlation(x: Array, y: Array) -> float | None:
    """Pearson's, through the origin: both differences change sign when a pair is turned round."""
    scale = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return float((x * y).sum()) / scale if scale else None
