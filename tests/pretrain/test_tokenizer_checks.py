"""Comparing, importing and extending tokenizers, and refusing those of other models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.cli import main
from pretrain.errors import UsageError
from pretrain.tokenizer import train_tokenizer
from pretrain.tokenizer_checks import check_belongs, check_tokenizer, import_tokenizer
from pretrain.tokenizer_extension import add_tokens, extend_checkpoint, start_embeddings
from pretrain.tokenizer_files import read_tokenizer
from pretrain.tokenizer_report import compare
from pretrain.tokenizer_sample import Text
from tests.pretrain.token_corpus import tokenizer_folder, write_documents


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "tied", tie=True)


def model_folder(folder: Path, *, tie: bool, rows: int = 290) -> Path:
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder())
    config = Qwen3Config(
        vocab_size=rows, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=32, tie_word_embeddings=tie,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_same_ids_are_the_same_fingerprint(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    own = read_tokenizer(tokenizer_folder())
    loaded = AutoTokenizer.from_pretrained(tokenizer_folder(), padding_side="left")
    loaded(["a", "bcd"], padding=True, truncation=True, max_length=8)
    loaded.chat_template = "another"
    loaded.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() != own.written
    assert read_tokenizer(tmp_path).fingerprint == own.fingerprint
    loaded.add_tokens(["<new>"])
    loaded.save_pretrained(tmp_path)
    assert read_tokenizer(tmp_path).fingerprint != own.fingerprint


def test_fertility_by_hand() -> None:
    """The small tokenizer knows ``def``, not the rest: counts are worked out from its pieces."""
    files = read_tokenizer(tokenizer_folder())
    text = Text("der 12 $x$", "de", "web", "0")
    report = compare({"own": files, "again": read_tokenizer(tokenizer_folder())}, [text])
    tokens = len(files.tokenizer.encode("der 12 $x$").ids)
    groups = report.as_json()["groups"]
    assert list(groups) == ["LaTeX", "digits", "domain web", "language de"]
    assert groups["language de"]["words"] == 3
    assert groups["language de"]["tokenizers"]["own"] == {
        "tokens": tokens, "tokens_per_word": tokens / 3, "bytes_per_token": 10 / tokens,
    }  # fmt: skip
    assert groups["digits"]["tokenizers"]["again"]["tokens"] == 2
    assert groups["LaTeX"]["bytes"] == 3
    assert report.as_json()["lost"] == {"own": 0, "again": 0}


def test_the_report_reads_so_much_of_each_source_and_finds_code() -> None:
    texts = [Text("a" * 60, "en", "web", str(n)) for n in range(9)]
    texts += [Text("```python\nx = 1\n```\n", "de", "code", "9")]
    report = compare({"own": read_tokenizer(tokenizer_folder())}, texts, characters=100)
    groups = report.as_json()["groups"]
    assert report.documents == 3
    assert groups["language en"]["bytes"] == 120
    assert groups["fenced code"]["bytes"] == len("x = 1\n")


def test_the_commands_report_and_check(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = write_documents(tmp_path / "in", [[{"text": "der Hund", "language": "de"}]])
    table = ["tokenizer", "report", str(tokenizer_folder()), str(checkpoint)]
    assert main([*table, "--documents", str(documents), "--json", str(tmp_path / "r.json")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[2].split()[:2] == ["language", "de"]
    assert json.loads((tmp_path / "r.json").read_text())["documents"] == 1
    assert main(["tokenizer", "check", str(checkpoint)]) == 0
    assert main(["tokenizer", "import", str(checkpoint), str(tmp_path / "copy")]) == 0
    assert not (tmp_path / "copy" / "config.json").exists()
    assert read_tokenizer(tmp_path / "copy").rows == 283


def test_a_tokenizer_that_loses_text_is_imported_with_a_note(tmp_path: Path) -> None:
    folder = altered(tmp_path / "a", normalizer={"type": "NFC"})
    notes = import_tokenizer(folder, tmp_path / "out")
    assert len(notes) == 1 and "comes back as" in notes[0]


def altered(folder: Path, **parts: Any) -> Path:
    """The small tokenizer with other parts in its tokenizer.json."""
    shutil.copytree(tokenizer_folder(), folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))
    return folder


def test_a_tokenizer_that_is_not_fit_is_refused(tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder(), tmp_path / "pad")
    config = tmp_path / "pad" / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"<|pad|>"', '"<|endoftext|>"'))
    with pytest.raises(UsageError, match="the end and the padding"):
        check_tokenizer(tmp_path / "pad")
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        import_tokenizer(tmp_path / "none", tmp_path / "out")
    (tmp_path / "none" / "tokenizer.json").write_text('{"version"')
    with pytest.raises(UsageError, match="can't read"):
        import_tokenizer(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_models_tokenizer_is_refused_with_the_reason(
    tmp_path: Path, checkpoint: Path
) -> None:
    check_belongs(checkpoint, tokenizer_folder())
    train_tokenizer(["zebra yak"] * 999, vocab_size=283).save_pretrained(tmp_path / "same_size")
    with pytest.raises(
        UsageError, match=r"not the one of .*: id 2\d\d is '\w+' in .* and '\w+' in .*same_size"
    ):
        check_belongs(checkpoint, tmp_path / "same_size")
    train_tokenizer(["pack my box with five dozen jugs"] * 999, vocab_size=300).save_pretrained(
        tmp_path / "large"
    )
    with pytest.raises(UsageError, match="ids up to 299, the embedding has 290 rows"):
        check_belongs(checkpoint, tmp_path / "large")
    with pytest.raises(UsageError, match="another pre_tokenizer"):
        check_belongs(checkpoint, altered(tmp_path / "cut", pre_tokenizer=None))


def test_a_folder_with_a_tokenizer_of_another_model_in_it_is_refused(
    tmp_path: Path, checkpoint: Path
) -> None:
    swapped = tmp_path / "swapped"
    shutil.copytree(checkpoint, swapped)
    check_belongs(swapped)
    config = json.loads((swapped / "config.json").read_text())
    (swapped / "config.json").write_text(json.dumps({**config, "vocab_size": 152_064}))
    with pytest.raises(UsageError, match="152064 rows, the tokenizer uses 283"):
        check_belongs(swapped)
    (swapped / "config.json").write_text(json.dumps({**config, "eos_token_id": 2}))
    (swapped / "generation_config.json").unlink()
    with pytest.raises(
        UsageError, match=r"end token is 0 \(.*\), the model's 2 \('<\|im_start\|>'\)"
    ):
        check_belongs(swapped)


@pytest.mark.parametrize(("tie", "rows"), [(True, 283), (False, 283), (False, 290)])
def test_a_checkpoint_is_extended_and_stays_what_it_was(
    tmp_path: Path, tie: bool, rows: int
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = model_folder(tmp_path / "before", tie=tie, rows=rows)
    out = extend_checkpoint(before, tmp_path / "out", {"<sum>": ["def", "der"], " Hund!": []})
    tokenizer = AutoTokenizer.from_pretrained(out)
    old, new = (AutoModelForCausalLM.from_pretrained(folder) for folder in (before, out))
    assert new.config.vocab_size == max(285, rows)
    assert tokenizer.encode("<sum> Hund!") == [283, 284]
    was = AutoTokenizer.from_pretrained(before)
    for ends in ("get_input_embeddings", "get_output_embeddings"):
        weight, other = getattr(new, ends)().weight, getattr(old, ends)().weight
        related = [number for word in ("def", "der") for number in was.encode(word)]
        assert torch.allclose(weight[283], other[related].mean(0), atol=1e-6)
        assert torch.allclose(weight[284], other[was.encode(" Hund!")].mean(0), atol=1e-6)
        assert torch.equal(weight[:283], other[:283])
    ids = torch.tensor([was.encode("der Hund")])
    with torch.no_grad():
        assert torch.allclose(new(ids).logits[..., :283], old(ids).logits[..., :283], atol=1e-5)
    check_belongs(out)
    check_belongs(out, out)
    with pytest.raises(UsageError, match="no token"):
        check_belongs(out, before)  # the extension's model needs the extension


def test_an_extension_of_the_tokenizer_fits_a_model_with_room(
    tmp_path: Path, checkpoint: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert add_tokens(tokenizer, {"<b>": ["a"]}) == {283: tokenizer.encode("a")}
    tokenizer.save_pretrained(tmp_path)
    check_belongs(checkpoint, tmp_path)  # 284 tokens, 290 rows


def test_tokens_that_cannot_be_added_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="a token already"):
        extend_checkpoint(checkpoint, tmp_path / "out", {"<think>": []})
    with pytest.raises(UsageError, match="no token in one of"):
        extend_checkpoint(checkpoint, tmp_path / "out", {"<x>": ["a", ""]})
    assert not (tmp_path / "out").exists()
    assert main(["tokenizer", "extend", str(checkpoint), str(checkpoint), "--token", "<x>"]) == 2


def test_no_new_tokens_change_nothing() -> None:
    start_embeddings(None, {})  # type: ignore[arg-type]
