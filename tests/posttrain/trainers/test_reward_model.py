"""Reward models: losses by hand, scores as they are used, reports, step labels, real pairs."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rewards.model
from posttrain.errors import UsageError
from posttrain.trainers.process_reward_model import train_process_reward_model
from posttrain.trainers.reward_data import settle_pad_token
from posttrain.trainers.reward_judging import ScoredPair, calibration, judge, length_agreement
from posttrain.trainers.reward_losses import tie_loss, win_loss
from posttrain.trainers.reward_model import train_reward_model

WEIGHTS = "model.safetensors"
ROWS = [
    {"prompt": f"what is {i} ?", "chosen": "1 2 3"[: 1 + 2 * (i % 3)], "rejected": "is what ?"}
    for i in range(30)
]
SMALL: dict[str, Any] = {
    "steps": 12, "batch_size": 6, "learning_rate": 3e-3, "warmup_steps": 2, "bf16": False,
    "log_every": 6, "held_out_share": 0.3, "threads": 1, "quiet": True,
}  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def used(model: Path, prompt: str, *answers: str) -> list[float]:
    """Scores as a reward gives them."""
    reward = rewards.model.load(model)

    async def run() -> list[Any]:
        return await asyncio.gather(*(reward(prompt, answer) for answer in answers))

    return [score.value for score in asyncio.run(run())]


# losses


def test_win_and_tie_by_hand() -> None:
    d = torch.tensor([1.0, -2.0])
    # -log sigmoid(1), -log sigmoid(-2); with margin 0.5 and eta 0.25: of 0.25 and -2.75
    assert win_loss(d).tolist() == pytest.approx([0.313262, 2.126928], abs=1e-6)
    assert win_loss(d, 0.5, 0.25).tolist() == pytest.approx([0.575939, 2.811968], abs=1e-6)
    # eta 0.5, d = 1: -log((e - 1) sigmoid(0.5) sigmoid(-1.5)) = 0.474077 + 1.701413 - 0.541325
    assert tie_loss(d[:1], 0.5).item() == pytest.approx(1.634165, abs=1e-6)
    with pytest.raises(ValueError, match="above 0"):
        tie_loss(d, 0.0)


@pytest.mark.parametrize("d", [-3.0, 0.0, 0.4, 8.0])
@pytest.mark.parametrize("eta", [0.01, 0.5, 2.0])
def test_win_loss_and_tie_are_all_that_can_happen(d: float, eta: float) -> None:
    gap = torch.tensor([d], dtype=torch.float64)
    total = sum(
        math.exp(-loss.item()) for loss in (win_loss(gap, 0.0, eta), win_loss(-gap, 0.0, eta))
    )
    assert total + math.exp(-tie_loss(gap, eta).item()) == pytest.approx(1.0, abs=1e-12)


def test_the_trainers_loss_by_hand(checkpoint: Path, tmp_path: Path) -> None:
    """Scores 2, 1 | 0, 1.5: gaps 2 (margin 0.5 and eta 0.5) and -0.5 (a tie).

    win: -log sigmoid(1) = 0.313262; tie: softplus(1.0) + softplus(0.0) - log(e - 1) = 1.313262 +
    0.693147 - 0.541325 = 1.465084; centre 0.1: mean(2^2, 2.5^2) = 5.125
    """
    from posttrain.trainers.pair_training import PairJob
    from posttrain.trainers.reward_data import RewardModelSettings, RewardRows
    from posttrain.trainers.reward_model import _trainer
    from posttrain.trainers.training import Place

    row = {"row": 1, "chosen_ids": [7, 8], "rejected_ids": [7, 9], "margin": 1.0, "tie": False}
    rows = [row, row | {"margin": 0.0, "tie": True}]
    settings = RewardModelSettings(batch_size=2, centre=0.1, bf16=False)
    place = Place(tmp_path / "out", {}, resume=False)
    job = PairJob(checkpoint, tmp_path / "out", settings, 0)
    data = RewardRows(rows, [], {}, 0.5)  # type: ignore[arg-type]
    trainer = _trainer(job, data, place)
    scores = torch.tensor([[2.0], [1.0], [0.0], [1.5]])
    batch = trainer.data_collator([dict(one) for one in trainer.train_dataset])
    loss = trainer.compute_loss(lambda **_: SimpleNamespace(logits=scores), batch)
    assert float(loss) == pytest.approx((0.313262 + 1.465084) / 2 + 0.1 * 5.125, abs=1e-5)
    plain = RewardRows([row | {"margin": 0.0}] * 2, [], {}, 0.0)  # type: ignore[arg-type]
    trainer = _trainer(job, plain, place)
    batch = trainer.data_collator([dict(one) for one in trainer.train_dataset])
    loss = trainer.compute_loss(lambda **_: SimpleNamespace(logits=scores), batch)
    # -log sigmoid(2) = 0.126928, -log sigmoid(-0.5) = 0.974077
    assert float(loss) == pytest.approx((0.126928 + 0.974077) / 2 + 0.1 * 5.125, abs=1e-5)


# the numbers of the report


def test_accuracy_and_length_by_hand() -> None:
    #          gap    longer by
    numbers = [(2.0, 3), (1.0, 1), (-1.0, -2), (-0.5, 4), (0.5, -1), (1.0, 0)]
    pairs = [ScoredPair(1, gap, 0.0, 10 + n, 10) for gap, n in numbers]
    found = judge([*pairs, ScoredPair(1, 0.1, 0.0, 1, 1, tie=True)])
    assert (found["pairs"], found["accuracy"]) == (6, pytest.approx(4 / 6))
    logs = [math.log1p(math.exp(-gap)) for gap, _ in numbers]
    assert found["log_loss"] == pytest.approx(sum(logs) / 6)
    length = found["length"]
    assert length["people_prefer_longer"] == pytest.approx(3 / 5)
    # the model prefers the longer one in 1, 2, and 3 (it took the longer, rejected one)
    assert length["model_prefers_longer"] == pytest.approx(3 / 5)
    assert length["agreement_where_longer_is_better"] == pytest.approx(2 / 3)
    assert length["agreement_where_shorter_is_better"] == pytest.approx(1 / 2)
    # sum of products 6 + 1 + 2 - 2 - 0.5 = 6.5; of squares 4+1+1+0.25+0.25+1 and 9+1+4+16+1
    assert length["correlation"] == pytest.approx(6.5 / math.sqrt(7.5 * 31))
    assert found["ties"]["mean_gap"] == pytest.approx(0.1)
    assert judge([]) == {}


def test_a_model_of_length_alone_is_seen_for_what_it_is() -> None:
    rng = np.random.default_rng(0)
    longer = rng.normal(5, 20, 500).round()
    found = length_agreement(longer / 10, longer)
    assert found["model_prefers_longer"] == 1.0
    assert found["agreement_where_longer_is_better"] == 1.0
    assert found["agreement_where_shorter_is_better"] == 0.0
    assert found["correlation"] == pytest.approx(1.0)
    fair = length_agreement(np.abs(rng.normal(size=500)), longer)
    assert fair["agreement_where_shorter_is_better"] == 1.0
    assert abs(fair["correlation"]) < 0.35


def test_calibration_by_hand() -> None:
    # 20 answers: the ten less sure ones (0.6) are right 6 times, the others (0.9) 5 times
    said = np.array([0.6] * 10 + [0.9] * 10)
    right = np.array([True] * 6 + [False] * 4 + [True] * 5 + [False] * 5)
    found = calibration(said, right)
    assert [b["n"] for b in found["bins"]] == [2] * 10
    assert found["bins"][0] | {"observed_low": 0, "observed_high": 0} == {
        "predicted": pytest.approx(0.6), "observed": 1.0, "n": 2,
        "observed_low": 0, "observed_high": 0,
    }  # fmt: skip
    # bins of two: 3 x |0.6 - 1|, 2 x |0.6 - 0|; |0.9 - 1| x 2, |0.9 - 0.5|, 2 x 0.9
    assert found["error"] == pytest.approx((3 * 0.4 + 2 * 0.6 + 2 * 0.1 + 0.4 + 2 * 0.9) / 10)
    honest = np.linspace(0.5, 1, 20_000)
    assert calibration(honest, np.random.default_rng(0).random(20_000) < honest)["error"] < 0.02


# training


@pytest.fixture(scope="module")
def trained(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_reward_model(checkpoint, ROWS, tmp_path_factory.mktemp("rm") / "rm", **SMALL)


def test_scores_in_use_are_the_trainers_own(trained: Path) -> None:
    held_out = lines(trained / "held_out.jsonl")
    assert len(held_out) >= 4
    for pair in held_out:
        row = ROWS[pair["row"] - 1]
        found = used(trained, row["prompt"], row["chosen"], row["rejected"])
        assert found == pytest.approx([pair["chosen"], pair["rejected"]], abs=1e-4)


def test_the_result_is_a_classifier_with_its_record(trained: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model: Any = AutoModelForSequenceClassification.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert (model.config.num_labels, model.config.pad_token_id) == (1, tokenizer.pad_token_id)
    assert tokenizer.chat_template
    record = json.loads((trained / "reward_model.json").read_text())
    assert record["held_out"]["accuracy"] == 1.0
    assert record["held_out"]["pairs"] + record["rows"] == 30
    assert record["losses"][-1]["loss"] < record["losses"][0]["loss"] / 2
    html = (trained / "reward_model.html").read_text()
    assert html.count("<svg") == 3 and "model prefers longer" in html and "http" not in html


def test_ties_margins_rankings_and_an_adapter_in_one_training(
    checkpoint: Path, tmp_path: Path
) -> None:
    rows = [
        *({"prompt": f"what is {i} ?", "answers": ["1", "2", "?"], "ranks": [1, 1, 2]}
          for i in range(12)),
        *(row | {"margin": 1.0} for row in ROWS),
    ]  # fmt: skip
    lora = {"rank": 4, "targets": ("q_proj", "v_proj")}
    out = train_reward_model(checkpoint, rows, tmp_path / "rm", **(SMALL | {"lora": lora}))
    record = json.loads((out / "reward_model.json").read_text())
    assert record["ties"] + record["held_out"]["ties"]["pairs"] == 12
    assert record["held_out"]["accuracy"] > 0.9
    ties = record["held_out"]["ties"]
    assert ties["mean_gap"] < ties["mean_gap_of_decided_pairs"]
    pair = next(p for p in lines(out / "held_out.jsonl") if not p["tie"] and p["row"] > 12)
    row = rows[pair["row"] - 1]
    found = used(out, row["prompt"], row["chosen"], row["rejected"])
    assert found == pytest.approx([pair["chosen"], pair["rejected"]], abs=1e-4)


def test_a_quantised_base_is_trained_through_and_merged_whole(
    checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    changes = SMALL | {"lora": {"rank": 4, "bits": 4, "targets": ("q_proj", "v_proj")}}
    out = train_reward_model(checkpoint, ROWS, tmp_path / "rm", **changes)
    record = json.loads((out / "reward_model.json").read_text())
    assert record["held_out"]["accuracy"] > 0.9
    before, after = load_file(checkpoint / WEIGHTS), load_file(out / WEIGHTS)
    name = "model.layers.0.mlp.up_proj.weight"
    assert after[name].equal(before[name])  # not through four bits
    row = ROWS[0]
    chosen, rejected = used(out, row["prompt"], row["chosen"], row["rejected"])
    assert chosen > rejected
    prm = train_process_reward_model(checkpoint, steps_of(16), tmp_path / "prm", **changes)
    assert load_file(prm / WEIGHTS)[name].equal(before[name])
    assert load_file(prm / WEIGHTS)["score.weight"].shape[0] == 2


def test_a_pad_token_that_ends_conversations_is_replaced(
    checkpoint: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With pad = the last token, transformers would read the score one token early."""
    import shutil

    from transformers import AutoTokenizer

    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.save_pretrained(model)
    out = train_reward_model(model, ROWS, tmp_path / "rm", **(SMALL | {"steps": 2}))
    saved: Any = AutoTokenizer.from_pretrained(out)
    assert saved.pad_token not in ("<|im_end|>", saved.eos_token)
    said = [{"role": "assistant", "content": "1"}]
    ids = saved.apply_chat_template(said, return_dict=True)["input_ids"]
    assert saved.decode(ids[-1]) == "<|im_end|>"
    pair = lines(out / "held_out.jsonl")[0]
    row = ROWS[pair["row"] - 1]
    found = used(out, row["prompt"], row["chosen"], row["rejected"])
    assert found == pytest.approx([pair["chosen"], pair["rejected"]], abs=1e-4)


def test_without_a_special_token_to_spare_it_is_an_error() -> None:
    token = SimpleNamespace(special=True)
    tokenizer = SimpleNamespace(
        pad_token_id=None, eos_token_id=1, added_tokens_decoder={1: token, 2: token}
    )
    with pytest.raises(UsageError, match="no pad token apart from the one that ends"):
        settle_pad_token(tokenizer, 2)


@pytest.mark.parametrize(
    ("changes", "rows", "message"),
    [
        ({"max_length": 10}, ROWS, r"the data, row 1: \d+ tokens are over max_length = 10"),
        ({}, [*ROWS, ROWS[0] | {"rejected": ROWS[0]["chosen"]}], "row 31: both answers are '1'"),
        ({"lora": {"targets": ("nothing",)}}, ROWS, "no linear layers called 'nothing'"),
        ({"tie_threshold": 0}, ROWS, "setting 'tie_threshold': Input should be greater than 0"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, changes: dict[str, Any], rows: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train_reward_model(checkpoint, rows, tmp_path / "rm", **(SMALL | changes))
    assert list(tmp_path.iterdir()) == []


def test_long_rows_are_dropped_or_cut_on_the_left(checkpoint: Path, tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "what ? " * 30, "chosen": "1", "rejected": "2"}]
    for rule, name in (("drop", "too long"), ("truncate", "truncated")):
        changes = {"too_long": rule, "steps": 1, "held_out_share": 0.0}
        out = train_reward_model(checkpoint, rows, tmp_path / rule, **(SMALL | changes))
        record = json.loads((out / "reward_model.json").read_text())
        assert record["dropped"] == {name: 1}
        assert record["rows"] == (30 if rule == "drop" else 31)


# step labels


def steps_of(n: int) -> list[dict[str, Any]]:
    """Good steps say 1, bad ones 3."""
    return [
        {
            "prompt": f"what is {i} ?",
            "steps": ["1" if (i >> k) % 2 else "3" for k in range(3)],
            "labels": [bool((i >> k) % 2) for k in range(3)],
        }
        for i in range(n)
    ]


def test_a_process_reward_model_scores_steps_as_it_was_trained(
    checkpoint: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForTokenClassification

    changes = SMALL | {"steps": 40, "learning_rate": 1e-2}
    out = train_process_reward_model(checkpoint, steps_of(48), tmp_path / "prm", **changes)
    record = json.loads((out / "process_reward_model.json").read_text())["held_out"]
    assert record["accuracy"] > 0.9 and record["first_wrong_step_found"] > 0.9
    assert record["steps"] == 3 * record["answers"]
    reward = rewards.model.load_process(out)
    score = asyncio.run(reward("what is 5 ?", "1\n\n3\n\n1"))
    good = json.loads(score.detail)
    assert [p > 0.5 for p in good] == [True, False, True]
    model: Any = AutoModelForTokenClassification.from_pretrained(out)
    tokenizer = rewards.model.load_process(out)._checkpoint.reader.tokenizer
    said = [
        {"role": "user", "content": "what is 5 ?"},
        {"role": "assistant", "content": "1\n\n3\n\n1\n\n"},
    ]
    ids = tokenizer.apply_chat_template(said, return_dict=True)["input_ids"]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    marks = [t for t, i in enumerate(ids) if "\n\n" in tokenizer.decode(i)]
    if len(marks) >= 3:  # the separator is one token of this tokenizer
        assert good == pytest.approx(logits.softmax(-1)[marks[-3:], 1].tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "labels": [True]}, "needs 'prompt', 'steps' and 'labels'"),
        ({"prompt": "p", "steps": ["a"], "labels": []}, "1 steps and 0 labels"),
        ({"prompt": "p", "steps": ["a\n\nb"], "labels": [True]}, "step 1 holds the separator"),
        ({"prompt": "p", "steps": [" "], "labels": [True]}, "step 1 is empty"),
        ({"prompt": "p", "steps": ["a"], "labels": ["good"]}, "labels are true or false"),
        ({"prompt": "p", "steps": ["a " * 90], "labels": [1]}, "over the window of 64"),
    ],
)
def test_bad_steps_are_named_or_counted(
    checkpoint: Path, tmp_path: Path, row: Any, message: str
) -> None:
    rows = [*steps_of(8), row]
    with pytest.raises(UsageError, match=f"the data, row 9: .*{message}"):
        train_process_reward_model(checkpoint, rows, tmp_path / "prm", **SMALL)
    assert list(tmp_path.iterdir()) == []


# real pairs

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
HH = Path(os.environ.get("POSTTRAIN_DATA", DATA)) / "hh_harmless_test.jsonl.gz"


@pytest.fixture(scope="module")
def real() -> list[dict[str, Any]]:
    if not HH.is_file():
        pytest.skip(f"there is no {HH}: POSTTRAIN_DATA names the folder")
    with gzip.open(HH, "rt") as rows:
        return [json.loads(row) for row in rows]


def test_real_pairs_are_read_and_learnt_from(real: Any, tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from posttrain.trainers.pairs import read_pairs
    from pretrain.tokenizer import train_tokenizer

    pairs, dropped = read_pairs(real, "hh", drop_bad=True)
    assert (len(real), len(pairs)) == (2312, 2303)
    assert dropped == {"different prompts": 5, "empty answer": 4}
    torch.manual_seed(0)
    tokenizer = train_tokenizer([row["chosen"] for row in real[:500]], vocab_size=1024)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=512,
    )  # fmt: skip
    model = tmp_path / "model"
    Qwen3ForCausalLM(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    out = train_reward_model(
        model, real, tmp_path / "rm", steps=10, batch_size=8, max_length=128, held_out_share=0.1,
        too_long="drop", bad_rows="drop", threads=1, quiet=True, bf16=False,
    )  # fmt: skip
    record = json.loads((out / "reward_model.json").read_text())
    held_out = record["held_out"]
    assert record["dropped"]["too long"] > 500 and held_out["pairs"] > 40
    assert 0.3 < held_out["accuracy"] < 0.8  # ten steps teach little
    length = held_out["length"]
    assert sum(b["n"] for b in length["bins"]) == held_out["pairs"]
    assert 0.3 < length["people_prefer_longer"] < 0.7
