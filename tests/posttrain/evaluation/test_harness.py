"""Tasks of the real lm-eval on our engines, against transformers' own log-likelihoods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.cli import main
from posttrain.errors import UsageError
from posttrain.evaluation.results import compare, read_evaluation

pytest.importorskip("lm_eval")

DOCS = [
    {"question": f"sum {a} and {b} :", "choices": [str(a), str(a + b), "3 3"], "gold": 1}
    for a, b in [(1, 2), (1, 1), (2, 1), (3, 0), (2, 2)]
]
CHOICE = """
task: local_sums
dataset_path: json
dataset_kwargs:
  data_files: {test: FILE}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
GREEDY = """
task: local_next
dataset_path: json
dataset_kwargs:
  data_files: {test: FILE}
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " 3"
metric_list: [{metric: acc}, {metric: perplexity}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = tmp_path / "sums.json"
    rows.write_text(json.dumps(DOCS))
    (folder / "sums.yaml").write_text(CHOICE.replace("FILE", str(rows)))
    (folder / "next.yaml").write_text(GREEDY.replace("FILE", str(rows)))
    return folder


@torch.inference_mode()
def likelihoods(folder: Any, before: str, after: list[str]) -> list[float]:
    """Sums of transformers' own log-probs, one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    n = len(tokenizer.encode(before))
    for text in after:
        ids = torch.tensor(tokenizer.encode(f"{before} {text}"))[None]
        logprobs = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
        found.append(float(logprobs.gather(-1, ids[0, 1:, None])[n - 1 :].sum()))
    return found


@pytest.mark.parametrize("engine", ["embedded", pytest.param("vllm", marks=pytest.mark.slow)])
def test_likelihoods_are_transformers_own(
    engine: str, checkpoint: Any, tasks: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    named = ["--harness", "local_sums,local_next", "--data", str(tasks), "--out", str(out)]
    assert main(["eval", str(checkpoint), *named, "--engine", engine]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    result = read_evaluation(out)
    sums = result["benchmarks"]["local_sums"]
    scores = [likelihoods(checkpoint, one["question"], one["choices"]) for one in DOCS]
    sure = [sorted(row)[-1] - sorted(row)[-2] > 0.2 for row in scores]  # bfloat16 decides no tie
    wanted = [float(row.index(max(row)) == 1) for row in scores]
    assert sum(sure) >= 3
    pairs = zip(sums["per_task"], wanted, sure, strict=True)
    assert all(got == want for got, want, clear in pairs if clear)
    assert (sums["metric"], sums["n_tasks"]) == ("acc", len(DOCS))
    assert told["benchmarks"]["local_sums"]["accuracy"] == sums["accuracy"]
    mean = sum(likelihoods(checkpoint, one["question"], ["3"])[0] for one in DOCS) / len(DOCS)
    perplexity = result["benchmarks"]["local_next"]["metrics"]["perplexity,none"]
    assert perplexity == pytest.approx(float(torch.tensor(-mean).exp()), rel=0.1)
    assert compare(result, result)["local_sums"]["difference"] == 0.0


def test_what_is_missing_is_told(checkpoint: Any, tmp_path: Path, capsys: Any) -> None:
    from lm_eval.tasks import TaskManager

    from posttrain.evaluation.harness import _checked

    folder, out = tmp_path / "tasks", tmp_path / "out"
    folder.mkdir()
    (folder / "next.yaml").write_text(GREEDY.replace("FILE", str(tmp_path / "none.json")))
    with pytest.raises(UsageError, match="no task 'no_such_task'"):
        _checked(TaskManager(include_path=folder, include_defaults=False), ["no_such_task"])
    named = ["--harness", "local_next", "--data", str(folder), "--out", str(out)]
    assert main(["eval", str(checkpoint), *named]) == 2
    assert "can't be had" in capsys.readouterr().err
    assert not out.exists()
