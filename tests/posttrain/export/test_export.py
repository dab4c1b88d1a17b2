"""Exports: what is written loads, costs what the card says, and describes where it comes from."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import envs
from posttrain.cli import main
from posttrain.config import make_config
from posttrain.errors import UsageError
from posttrain.export import quality
from posttrain.export.export import Wishes, export
from posttrain.export.quantize import best_scale
from posttrain.export.records import licence_of, stages
from posttrain.storage.run_dir import RunDir

TEXT = "what is 1 + 2 ? 3\n" * 40


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "held_out.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    """A finished run's folder, as far as an export reads it; its environment is a data file."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"prompt": f"what is {i} + 1 ?", "answer": str(i + 1)} for i in range(400)]
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(
        {
            "model": str(folder / "sft"),
            "env": str(data),
            "env_args": {"reward": "math"},
            "rollout": {"engine": "embedded", "max_tokens": 6},
            "grpo": {"steps": 3},
            "run_dir": str(folder / "grpo"),
        }
    )
    model, tokenizer = (
        kind.from_pretrained(checkpoint) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    with RunDir.create(config.run_dir, config, {"name": "sums", "held_out_tasks": 20}) as run_dir:
        for phase, accuracy in (("before", 0.0), ("after", 0.02)):
            scores = {"n_tasks": 20, "accuracy": accuracy, "accuracy_low": 0.0}
            scores |= {"accuracy_high": 0.2, "mean_reward": accuracy}
            run_dir.log({"kind": "eval", "step": 0, "phase": phase, **scores})
    for place in (folder / "sft", run_dir.path / "model"):
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    sft = {"model": "someone/base-1b", "rows": 77, "seed": 3, "settings": {"learning_rate": 1e-4}}
    sft["data"] = {"rows": {"/home/me/talks.jsonl": 70, "hub/set": 7}}
    (folder / "sft" / "sft.json").write_text(json.dumps(sft))
    return run_dir.path


def logits(model):
    with torch.inference_mode():
        return model(torch.arange(4, 44)[None]).logits.float()


def test_a_plain_export_is_the_same_model(checkpoint, tmp_path, text):
    done = export(checkpoint, tmp_path / "out", Wishes(text=text))
    assert torch.equal(
        *(logits(AutoModelForCausalLM.from_pretrained(p)) for p in (checkpoint, done.path))
    )
    assert done.before == done.after
    saved = json.loads((done.path / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [3, 0]
    assert AutoTokenizer.from_pretrained(done.path).chat_template


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.02), ("int4", 0.35)])
def test_a_quantised_export_loads_and_costs_what_it_says(checkpoint, tmp_path, text, kind, most):
    done = export(checkpoint, tmp_path / "out", Wishes(quantize=kind, text=text))
    loaded = AutoModelForCausalLM.from_pretrained(done.path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    sizes = {p.dtype for p in load_file(done.path / "model.safetensors").values()}
    assert (torch.int8 if kind == "int8" else torch.int32) in sizes
    name = text.name
    change = done.after.perplexity[name] / done.before.perplexity[name] - 1
    assert 0 < abs(change) < most
    again, _ = quality.perplexity(
        loaded, quality.texts_of_file(text, AutoTokenizer.from_pretrained(done.path), 64)
    )
    assert again == pytest.approx(done.after.perplexity[name])
    card = (done.path / "README.md").read_text()
    assert f"({change:+.2%})" in card and f"in {kind} (compressed-tensors)" in card


def test_perplexity_against_numbers_worked_by_hand(checkpoint):
    class Fixed:
        """Whatever was written, the next token is 0 with 1/2 and 1 with 1/4."""

        device = "cpu"

        def __call__(self, input_ids, use_cache):
            row = torch.log(torch.tensor([0.5, 0.25, 0.25]))
            logits = row.expand(1, input_ids.shape[1], 3)
            return type("Out", (), {"logits": logits})

    texts = [quality.Scored([2, 0, 0, 1], 1), quality.Scored([2, 2, 1], 2)]
    # 1/2 * 1/2 * 1/4 and 1/4: the fourth root of 64
    found, tokens = quality.perplexity(Fixed(), texts)
    assert (found, tokens) == (pytest.approx(64**0.25), 4)


def test_the_scale_with_the_least_error_is_chosen():
    """One large weight among small ones: a shrunken range serves the many."""
    torch.manual_seed(0)
    weight = torch.randn(8, 64) * 0.1
    weight[:, 5] = 0.8
    for bits, kind in ((4, "int4"), (8, "int8")):
        top = 2 ** (bits - 1) - 1
        groups = weight.unflatten(-1, (-1, 32 if kind == "int4" else 64))
        widest = groups.abs().amax(-1) / top

        def error(scale, groups=groups, top=top):
            scale = scale[..., None]
            return (groups - scale * (groups / scale).round().clamp(-top - 1, top)).square().sum(-1)

        chosen = best_scale(weight, bits, kind)
        assert (error(chosen) <= error(widest)).all()
        assert (error(chosen) <= error(widest * 0.85)).all()
    assert (best_scale(weight, 4, "int4") < widest.new_tensor(0.8 / 7)).any()


def test_layers_too_narrow_for_groups_are_bad_input(tmp_path):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from pretrain.tokenizer import train_tokenizer

    config = Qwen3Config(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=24,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "m")
    train_tokenizer(["a"], vocab_size=290).save_pretrained(tmp_path / "m")
    with pytest.raises(UsageError, match="48 columns wide, which is no multiple of 32"):
        export(tmp_path / "m", tmp_path / "out", Wishes(quantize="int4"))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_card_tells_the_whole_way_from_the_runs_records(run, tmp_path, capsys):
    out = tmp_path / "small"
    options = ["--tasks", "12", "--quantize", "int8", "--licence", "Apache-2.0"]
    assert main(["export", str(run / "model"), "--out", str(out), *options]) == 0
    result = json.loads(capsys.readouterr().out)
    card = (out / "README.md").read_text()
    front = card.split("---")[1]
    assert "license: apache-2.0" in front and "base_model: someone/base-1b" in front
    assert "- grpo\n- sft" in front
    for told in (
        "| grpo.steps | 3 |",
        "| rows | 77 |",
        "| learning_rate | 0.0001 |",
        "sums.jsonl",
        "talks.jsonl=70, hub/set=7",
    ):
        assert told in card, told
    assert "| grpo, after | 20 | 2.0% (0.0% to 20.0%) | 0.020 |" in card
    assert "12 held-out tasks" in card
    for name in ("gold answers", "the original's own answers"):
        assert name in result["perplexity"], card
        before, after = result["perplexity"][name]
        assert f"perplexity, {name}" in card
        assert f"{before:.4f} | {after:.4f}" in card
        assert 1 < before < math.inf
    assert str(run.parent) not in card and "/home" not in card  # no path of this machine


def test_a_run_whose_environment_is_gone_says_why_there_is_no_score(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    kept = json.dumps(config)
    config["config"]["env"] = "an_object_of_python"
    (run / "config.json").write_text(json.dumps(config))
    try:
        said = []
        done = export(run / "model", tmp_path / "out", Wishes(tasks=4), say=said.append)
    finally:
        (run / "config.json").write_text(kept)
    assert done.after.tasks is None
    assert any("an_object_of_python" in line for line in said)
    assert done.notes[0] in (done.path / "README.md").read_text()


def test_other_tasks_than_the_runs_are_noticed(run, tmp_path):
    """Given an environment whose tasks the model solves all, where the run solved 2 %."""
    rows = [{"prompt": f"say {i}", "answer": "x"} for i in range(400)]
    easy = envs.from_tasks(rows, reward=lambda completion: 1.0)
    done = export(run / "model", tmp_path / "out", Wishes(tasks=20, env=easy))
    assert done.before.tasks.accuracy == 1.0
    assert "not the run's tasks" in " ".join(done.notes)


def test_an_adapter_is_merged_on_the_way(checkpoint, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    done = export(tmp_path / "adapter", tmp_path / "out", Wishes(base=str(checkpoint)))
    exact = logits(model.eval())
    written = logits(AutoModelForCausalLM.from_pretrained(done.path))
    assert (written - exact).abs().max() < 1e-4
    assert "an adapter was merged" in done.notes[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "out"]


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        ({"quantize": "int3"}, "int8 or int4, not 'int3'"),
        ({"quantize": "int4", "dtype": "float32"}, "no kernels for float32"),
        ({"text": Path("no-such-file")}, "no text file"),
    ],
)
def test_bad_input_writes_nothing(checkpoint, tmp_path, wishes, reason):
    with pytest.raises(UsageError, match=reason):
        export(checkpoint, tmp_path / "out", Wishes(**wishes))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_checkpoint_is_bad_input(tmp_path):
    with pytest.raises(UsageError, match="not a checkpoint: it has no config.json"):
        export(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_licence_is_the_nearest_cards(run, tmp_path):
    assert licence_of(run / "model") == ""
    card = run.parent / "sft" / "README.md"
    card.write_text("---\ntags:\n- x\nlicense: mit\n---\n# it\n\nlicense: no\n")
    try:
        assert licence_of(run / "model") == "mit"
    finally:
        card.unlink()


def test_records_that_go_in_a_circle_end(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        record = {"model": str(tmp_path / other), "settings": {}}
        (tmp_path / name / "sft.json").write_text(json.dumps(record))
    assert [stage.kind for stage in stages(tmp_path / "a")] == ["sft", "sft"]
