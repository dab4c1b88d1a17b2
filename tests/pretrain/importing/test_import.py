"""Import: what is whole comes through bit for bit; what is not is named, and nothing is written."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pretrain.cli import main
from pretrain.errors import RunError, UsageError
from pretrain.importing import ImportReport, ImportSettings, import_checkpoint
from pretrain.tokenizer import train_tokenizer


@pytest.fixture
def source(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "source"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def verdicts(report: ImportReport) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in report.findings}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict())


def same_weights(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_a_whole_checkpoint_comes_through_bit_for_bit(source: Path, tmp_path: Path) -> None:
    (source / "LICENSE").write_text("\n  Apache License\n  Version 2.0\n")
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: ours\n---\n# A model\n")
    out = tmp_path / "out"
    report = import_checkpoint(source, out)
    assert same_weights(source, out)
    assert (out / "LICENSE").read_text() == (source / "LICENSE").read_text()
    assert not report.failed
    found = verdicts(report)
    for name in ("weights", "vocabulary", "round trip", "chat template", "tied weights", "tensors"):
        assert found[name] == "ok", name
    details = {finding.name: finding.detail for finding in report.findings}
    assert "license: other, license_name: ours" in details["licence"]
    assert "LICENSE begins 'Apache License'" in details["licence"]
    assert details["read back"].endswith("(gap 0)")
    assert json.loads((out / "import.json").read_text()) == report.as_dict()
    assert (out / "import.txt").read_text() == report.text() + "\n"


def test_shards_and_another_dtype(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").unlink()
    sharded(source)
    report = import_checkpoint(source, tmp_path / "out", ImportSettings(dtype="bfloat16"))
    assert report.findings[0].detail.endswith("whole")
    assert "shards" in report.findings[0].detail
    assert {one.dtype for one in weights(tmp_path / "out").values()} == {torch.bfloat16}


def sharded(folder: Path) -> None:
    """Fresh weights in several files."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder, max_shard_size="100KB")


def pickled(folder: Path, content: object = None) -> None:
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors") if content is None else content
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_pickled_weights_are_refused_unless_allowed(source: Path, tmp_path: Path) -> None:
    before = Path(shutil.copytree(source, tmp_path / "before"))
    pickled(source)
    with pytest.raises(UsageError, match="only pickled weights .* --allow-pickle"):
        import_checkpoint(source, tmp_path / "out")
    report = import_checkpoint(source, tmp_path / "out", ImportSettings(allow_pickle=True))
    assert verdicts(report)["weights"] == "note"
    assert same_weights(before, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (Path("exploded"),)


def test_a_pickle_that_would_run_code_is_not_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled(source, {"model.norm.weight": Bomb()})
    with pytest.raises(UsageError, match="its weights cannot be read"):
        import_checkpoint(source, tmp_path / "out", ImportSettings(allow_pickle=True))
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "out").exists()


def gguf_of(folder: Path) -> Path:
    """A checkpoint as one file, with a tokenizer that llama.cpp has a name for."""
    from tokenizers import Regex, pre_tokenizers
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    from posttrain.export.gguf_file import write_gguf

    tokenizer = AutoTokenizer.from_pretrained(folder)
    split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS["qwen2"]), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128}
    config = Qwen3Config(vocab_size=len(tokenizer), eos_token_id=0, **sizes, **heads)
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    path = folder.parent / "tiny-f32.gguf"
    write_gguf(model, tokenizer, path, "f32")
    return path


def test_a_gguf_file_is_unpacked(source: Path, tmp_path: Path) -> None:
    report = import_checkpoint(gguf_of(source), tmp_path / "out")
    assert verdicts(report)["weights"] == "note"
    assert report.architecture == "Qwen3ForCausalLM"
    assert same_weights(source, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["head_dim"] == 128


# what is not whole


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_head(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")


def lost_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    sharded(folder)
    next(folder.glob("model-00002*")).unlink()


def lost_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def not_finite(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def head_that_is_not_tied(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def larger_tokenizer(folder: Path) -> None:
    train_tokenizer(["some quite other words in here"] * 50, vocab_size=320).save_pretrained(folder)


def other_special_tokens(folder: Path) -> None:
    edit(folder / "config.json", eos_token_id=77)


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def broken_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no users here') }}")


def end_out_of_range(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[0, 900])


def unknown_type(folder: Path) -> None:
    edit(folder / "config.json", model_type="nobodys_model")


def own_code(folder: Path) -> None:
    (folder / "code.py").write_text("raise SystemExit('it ran')")
    auto = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    edit(folder / "config.json", model_type="nobodys_model", auto_map=auto)


def quantised(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, r"model.safetensors has .* bytes, its head says .*: it was cut off"),
        (no_head, "no safetensors file"),
        (lost_shard, "lacks 1 of .* shards: model-00002"),
        (lost_tensor, r"tensors: 1 are missing, such as model.layers.1.mlp.up_proj.weight"),
        (not_finite, "values: 1 tensors hold NaN or infinity, as model.norm.weight"),
        (head_that_is_not_tied, "tie_word_embeddings should be false"),
        (larger_tokenizer, "tokens, the model .* rows: another model's tokenizer"),
        (other_special_tokens, r"model's eos is \[77\].*another model's tokenizer"),
        (no_tokenizer, "has no tokenizer"),
        (broken_template, "no users here"),
        (end_out_of_range, "generation: eos 900"),
        (unknown_type, "config cannot be read.*nobodys_model"),
        (own_code, "config cannot be read"),
        (quantised, r"quantised \(gptq\)"),
        (no_config, "no config.json"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    source: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(source)
    with pytest.raises(UsageError, match=message):
        import_checkpoint(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(source), str(tmp_path / "out"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["architecture"] == "Qwen3ForCausalLM"
    assert main(["import", str(source), str(tmp_path / "out")]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "nowhere"), str(tmp_path / "other")]) == 2
    assert "no such folder" in capsys.readouterr().err


# the hub


@pytest.fixture
def silent_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that accepts connections and never answers, and an empty cache."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield


@pytest.mark.usefixtures("silent_hub")
def test_a_hub_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(RunError, match="no folder here, and the hub cannot be asked"):
        import_checkpoint("nobody/nothing", tmp_path / "out", ImportSettings(deadline_s=1.0))
    assert time.monotonic() - start < 30.0
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("silent_hub")
def test_offline_takes_what_the_cache_has(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is set"):
        import_checkpoint("some/model", tmp_path / "out")
    cached = tmp_path / "cache" / "models--some--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(checkpoint, cached / "snapshots" / ("0" * 40))
    import_checkpoint("some/model", tmp_path / "out")
    assert same_weights(checkpoint, tmp_path / "out")
