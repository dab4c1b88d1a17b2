"""What cannot be a reward model is refused when it is loaded, with what would be right."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import rewards.model
from rewards import UsageError
from rewards.model.checkpoint import Checkpoint, LocalSettings

ROOT = Path(__file__).resolve().parents[3]


def test_import_is_light():
    heavy = "{'torch', 'transformers', 'httpx'}"
    code = f"import sys, rewards.model; print(sorted({heavy} & {{*sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (None, "does not exist"),
        ({}, "no config.json"),
        ({"adapter_config.json": "{}"}, "merge it into its base"),
        ({"config.json": "{}"}, "no weights"),
        ({"config.json": "{", "model.safetensors": ""}, "config of .* can't be read"),
        ({"config.json": '{"model_type": "nonsense"}', "model.safetensors": ""}, "can't be read"),
    ],
)
def test_no_checkpoint(tmp_path, files, why):
    path = tmp_path / "rm"
    if files is not None:
        path.mkdir()
        for name, text in files.items():
            (path / name).write_text(text)
    with pytest.raises(UsageError, match=why):
        rewards.model.load(path)


def test_a_mistyped_folder_beside_others_is_not_looked_for_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="runs/rn does not exist; pass a checkpoint folder or"):
        rewards.model.load("runs/rn")


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A checkpoint that may be broken; ``change(**)`` rewrites its config."""
    path = tmp_path / "broken"
    shutil.copytree(checkpoint, path)

    def change(**changes):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | changes))
        return path

    return change


def test_a_language_model_is_none(copy):
    path = copy(architectures=["Qwen3ForCausalLM"])
    with pytest.raises(UsageError, match=r"holds \['Qwen3ForCausalLM'\], not a ...ForSequence"):
        rewards.model.load(path)
    with pytest.raises(UsageError, match="not a ...ForTokenClassification"):
        rewards.model.load_process(copy(architectures=["Qwen3ForSequenceClassification"]))


def test_a_head_that_was_not_saved_is_refused(copy, make_checkpoint):
    from safetensors.torch import load_file, save_file

    path = copy()
    weights = load_file(path / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="no weights for score.weight .*would be random"):
        rewards.model.load(path)


def test_several_labels_need_one_chosen(make_checkpoint):
    path = make_checkpoint("three", labels=3, id2label={0: "bad", 1: "ok", 2: "good"})
    with pytest.raises(UsageError, match="has 3 labels; choose one with label=.*good"):
        rewards.model.load(path)
    with pytest.raises(UsageError, match="label 'god'. Did you mean 'good'"):
        rewards.model.load(path, label="god")
    for label in (3, -1, True):
        with pytest.raises(UsageError, match="has no label"):
            rewards.model.load(path, label=label)


def test_broken_weights_and_another_model_s_tokenizer(copy, tokenizer):
    path = copy()
    (path / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(UsageError, match="can't be loaded"):
        rewards.model.load(path)
    (path / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match="no tokenizer can be loaded|no weights"):
        rewards.model.load(path)


def test_a_tokenizer_with_more_tokens_than_the_model(checkpoint, tmp_path):
    path = tmp_path / "rm"
    shutil.copytree(checkpoint, path)
    tok = transformers.AutoTokenizer.from_pretrained(path)
    tok.add_tokens(["<|more|>"])
    tok.save_pretrained(path)
    with pytest.raises(UsageError, match="do not belong together"):
        rewards.model.load(path)


def test_no_chat_template(checkpoint, tmp_path):
    path = tmp_path / "rm"
    shutil.copytree(checkpoint, path)
    tok = transformers.AutoTokenizer.from_pretrained(path)
    tok.chat_template = None
    for file in ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json"):
        (path / file).unlink(missing_ok=True)
    tok.save_pretrained(path)
    with pytest.raises(UsageError, match="has no chat template"):
        rewards.model.load(path)
    assert rewards.model.load(path, template="plain").name == "rm"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"tresh": 1}, "no option 'tresh'"),
        ({"timeout_s": 1}, "no option 'timeout_s' here"),
        ({"dtype": "fp32"}, "dtype = 'fp32'"),
        ({"device": "cuda:99"}, "device 'cuda:99' can't be used"),
        ({"token_budget": 0}, "at least 1"),
        ({"max_tokens": "9"}, "wrong kind"),
    ],
)
def test_bad_options(checkpoint, options, why):
    with pytest.raises(UsageError, match=why):
        rewards.model.load(checkpoint, **options)


def test_a_model_whose_scores_depend_on_padding_is_refused(checkpoint, monkeypatch):
    def first_id_of_all(self, rows):
        longest = max(map(len, rows))
        import torch

        return torch.tensor([[float(longest)] for _ in rows])

    monkeypatch.setattr(Checkpoint, "logits", first_id_of_all)
    with pytest.raises(UsageError, match="depend on padding"):
        Checkpoint(checkpoint, "ForSequenceClassification", LocalSettings())
