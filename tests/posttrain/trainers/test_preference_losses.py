"""Each preference loss against numbers worked by hand, whoever computes it.

One pair. Log-probs of the tokens: chosen -1, -2; rejected -2, -2, -1. So

    log pi(w) = -3 of 2 tokens,  log pi(l) = -5 of 3;  reference: -4 and -3;  h_w = 1, h_l = -2
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from posttrain.trainers.pair_training import PairJob
from posttrain.trainers.preference import PreferenceSettings, _Data, _trainer
from posttrain.trainers.preference_losses import LOSSES, _log1mexp, cpo, orpo, simpo
from posttrain.trainers.training import Place

CHOSEN, REJECTED = [-1.0, -2.0], [-2.0, -2.0, -1.0]
REFERENCE = (-4.0, -3.0)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# name -> settings, loss by the paper's formula on the numbers above
CASES: dict[str, tuple[dict[str, Any], float]] = {
    # -log sigmoid(0.1 (1 - -2)) = -log sigmoid(0.3) = 0.554355
    "dpo": ({"beta": 0.1}, 0.554355),
    # per token: h_w / 2 - h_l / 3 = 1.166667; -log sigmoid(5 * 1.166667) = 0.002924
    "dpo_norm": ({"beta": 5.0}, 0.002924),
    # (0.9 * 0.554355 - 0.1 * 0.854355) / 0.8, with -log sigmoid(-0.3) = 0.854355
    "robust": ({"beta": 0.1, "label_smoothing": 0.1}, 0.516855),
    # (1.166667 - 1 / (2 * 0.1))^2 = 3.833333^2
    "ipo": ({"beta": 0.1}, 14.694444),
    # 1 - sigmoid(0.1) + sigmoid(-0.2) = 0.475021 + 0.450166
    "apo_zero": ({"beta": 0.1}, 0.925187),
    # sigmoid(0.1) + 1 - sigmoid(0.3) = 0.524979 + 0.425557
    "apo_down": ({"beta": 0.1}, 0.950536),
    # x = 2 (-1.5 + 1.666667) - 1 = -0.666667; log(1 + e^0.666667) = 1.080864
    "simpo": ({"beta": 2.0, "gamma": 1.0}, -log_sigmoid(2 * (-3 / 2 + 5 / 3) - 1)),
    # p_w = e^-1.5 = 0.223130, p_l = e^-1.666667 = 0.188876; odds 0.287217 and 0.232857
    # 1.5 - 0.1 log sigmoid(log(0.287217 / 0.232857)) = 1.5 + 0.1 * 0.593732
    "orpo": ({"beta": 0.1}, 1.559373),
    # -log sigmoid(0.1 * 2) + 1 * 1.5 = 0.598139 + 1.5
    "cpo": ({"beta": 0.1, "alpha": 1.0}, 2.098139),
}


def test_every_loss_has_its_case() -> None:
    assert set(CASES) | {"kto"} == set(LOSSES)


class Given:
    """In place of a model: answers every pass with the same log-probs."""

    def __init__(self, log_probs: Any, mismatched: Any = None) -> None:
        self._rows, self._mismatched = log_probs, mismatched

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        rows = self._rows if self._mismatched is None or input_ids[0, 0] == 7 else self._mismatched
        log_probs = torch.tensor(rows)
        zeros = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )


def trainer_of(checkpoint: Any, folder: Any, row: dict[str, Any], **settings: Any) -> Any:
    """The trainer that ``train_preferences`` would run."""
    made = PreferenceSettings(
        **settings, batch_size=2, bf16=False, reference_cache=str(folder / "cache")
    )
    job = PairJob(checkpoint, folder / "out", made, 0)
    place = Place(folder / "out", {}, resume=False)
    return _trainer(job, _Data([row, row], [], {}), place)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_a_loss_by_hand(checkpoint: Any, tmp_path: Any, name: str) -> None:
    settings, expected = CASES[name]
    row = {"prompt_ids": [7, 8], "chosen_ids": [9, 10], "rejected_ids": [9, 10, 11]}
    trainer = trainer_of(checkpoint, tmp_path, row, loss=name, **settings)
    trainer.model.train()
    columns = {"ref_chosen_logps": REFERENCE[0], "ref_rejected_logps": REFERENCE[1]}
    batch = trainer.data_collator([row | columns])
    model = Given([[0.0, *CHOSEN, 0.0], [0.0, *REJECTED]])  # of [prompt, answer][1:]
    loss = trainer.compute_loss(model, dict(batch))
    assert float(loss) == pytest.approx(expected, abs=2e-6)
    metrics = trainer._metrics["train"]
    assert metrics["logps/chosen"] == [-3.0]
    own = LOSSES[name]
    h = (1.0, -2.0) if own.reference else (-3.0, -5.0)
    beta = settings["beta"]
    assert metrics["rewards/margins"] == pytest.approx([beta * (h[0] - h[1])])
    assert metrics["rewards/accuracies"] == [1.0]


def test_kto_by_hand(checkpoint: Any, tmp_path: Any) -> None:
    """h of the good answer 1, of the bad one -2; KL estimate z = mean(-1 + 1.5, -2 + 2.5) = 0.5.

    good: 1 - sigmoid(0.1 (1 - 0.5)) = 0.487503
    bad, weight 2: 1 - sigmoid(0.1 (0.5 + 2)) = 0.437823
    """
    row = {"prompt_ids": [7, 8], "completion_ids": [9, 10], "label": True, "KL_completion_ids": [9]}
    settings = {"loss": "kto", "beta": 0.1, "bad_weight": 2.0}
    trainer = trainer_of(checkpoint, tmp_path, row, **settings)
    trainer.model.train()
    good = row | {"ref_logps": -4.0, "ref_KL_logps": -1.5}
    bad = {
        "prompt_ids": [7, 8], "completion_ids": [9, 10, 11], "label": False,
        "KL_completion_ids": [9], "ref_logps": -3.0, "ref_KL_logps": -2.5,
    }  # fmt: skip
    batch = trainer.data_collator([good, bad])
    own = Given([[0.0, *CHOSEN, 0.0], [0.0, *REJECTED]])
    mismatched = torch.tensor([[0.0, -1.0], [0.0, -2.0]])

    def model(input_ids: torch.Tensor, **more: Any) -> Any:
        if input_ids.shape[1] == 3:  # prompt and a one-token answer
            return SimpleNamespace(log_probs=mismatched)
        return own(input_ids, **more)

    loss = trainer.compute_loss(model, dict(batch))
    assert float(loss) == pytest.approx((0.487503 + 2 * 0.437823) / 2, abs=2e-6)
    assert trainer._metrics["train"]["kl"] == [0.5]


def test_the_pure_losses_take_batches_and_have_gradients() -> None:
    chosen = torch.tensor([-3.0, -8.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-5.0, -2.0], dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([[2, 4], [3, 1]])
    for loss, own in ((simpo, {"gamma": 0.5}), (orpo, {}), (cpo, {"alpha": 0.3})):

        def of(c: Any, r: Any, loss: Any = loss, own: Any = own) -> Any:
            return loss(c, r, lengths, beta=0.7, **own)

        values = of(chosen, rejected)
        assert values.shape == (2,)
        alone = loss(chosen[1:], rejected[1:], lengths[:, 1:], beta=0.7, **own)
        assert values[1].item() == pytest.approx(alone.item())
        assert torch.autograd.gradcheck(of, (chosen, rejected))
        gradient = torch.autograd.grad(values.sum(), (chosen, rejected))
        assert (gradient[0] < 0).all()  # more of the chosen, less of the rejected
        assert (gradient[1] > 0).all()


def test_log1mexp_is_exact_at_both_ends() -> None:
    for x in (-50.0, -1.0, -0.693, -0.6932, -1e-3, -1e-6):
        found = _log1mexp(torch.tensor(x, dtype=torch.float64)).item()
        assert found == pytest.approx(math.log(-math.expm1(x)), rel=1e-9)
    certain = torch.tensor(0.0, requires_grad=True)
    _log1mexp(certain).backward()
    assert math.isfinite(float(certain.grad))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 0.5}, "loss = 'dpo' has no gamma"),
        ({"loss": "simpo", "good_weight": 2.0}, "loss = 'simpo' has no good_weight"),
        ({"loss": "dpoo"}, "Input should be"),
        ({"loss": "robust", "label_smoothing": 0.5}, "less than 0.5"),
        ({"beta": 0.0}, "greater than 0"),
    ],
)
def test_a_setting_of_another_loss_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceSettings(**settings)


def test_beta_is_the_papers_unless_it_is_given() -> None:
    assert PreferenceSettings(loss="dpo_norm").own == {"beta": 5.0}
    assert PreferenceSettings(loss="simpo", beta=2.5).own == {"beta": 2.5, "gamma": 1.0}
