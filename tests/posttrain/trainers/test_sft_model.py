"""What of the model is trained and saved: adapters of every kind, new tokens, foreign parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.errors import UsageError
from posttrain.trainers.sft import make_trainer, prepare, sft
from posttrain.trainers.sft_settings import SftSettings, load_sft_config
from pretrain import (
    BaseSettings,
    CorpusSettings,
    ModelSettings,
    TrainSettings,
    chat_rows,
    make_base,
)

ROWS = chat_rows(CorpusSettings(), 12, seed=2)
SHORT = SftSettings(
    steps=3, batch_size=4, learning_rate=1e-2, warmup_steps=1, bf16=False, log_every=1, quiet=True
)
IDS = torch.arange(6, 60)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = BaseSettings(
        model=ModelSettings(
            hidden_size=64, layers=1, mlp_size=64, heads=1, kv_heads=1, head_dim=64
        ),
        training=TrainSettings(steps=1, rows_per_step=1, row_tokens=64),
        documents=100,
    )
    return make_base(tmp_path_factory.mktemp("sft") / "base", settings)


@pytest.fixture(scope="module", params=["tied", "untied"])
def snug(base: Path, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Path:
    """A model whose embedding has no room for another token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp(request.param) / "base"
    shutil.copytree(base, folder)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(base)))
    if request.param == "untied":
        model.config.tie_word_embeddings = False
        model.lm_head = torch.nn.Linear(*reversed(model.lm_head.weight.shape), bias=False)
    model.save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def ends(model: Any) -> list[torch.Tensor]:
    """Input and output embedding."""
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


def tied(model: Any) -> bool:
    return len({id(weight) for weight in ends(model)}) == 1


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


# adapters


@pytest.mark.parametrize("more", [{}, {"dora": True}, {"rslora": True}, {"targets": ["q_proj"]}])
def test_an_adapter_and_the_merged_model_are_the_same(
    base: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    from peft import PeftModel

    out = sft(base, ROWS, tmp_path / "out", SHORT, lora={"rank": 4, "alpha": 64, **more})
    adapted = PeftModel.from_pretrained(load(base), out / "adapter")
    torch.testing.assert_close(logits(load(out)), logits(adapted), atol=1e-5, rtol=1e-4)
    assert (logits(load(out)) - logits(load(base))).abs().max() > 0.01
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    expected = {"r": 4, "use_dora": "dora" in more, "use_rslora": "rslora" in more}
    assert {name: config[name] for name in expected} == expected
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    found = {name.rpartition(".")[2] for name in config["target_modules"]}
    assert found == set(more.get("targets", linear))


def test_a_quantised_base_is_trained_through_and_merged_whole(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    lora = {"rank": 4, "bits": 4}
    out = sft(base, ROWS, tmp_path / "out", SHORT, steps=8, lora=lora)
    losses = [point["loss"] for point in json.loads((out / "sft.json").read_text())["losses"]]
    assert losses[-1] < losses[0] - 0.05
    before, after = load(base).state_dict(), load(out).state_dict()
    assert after["model.embed_tokens.weight"].equal(before["model.embed_tokens.weight"])
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    name = "model.layers.0.self_attn.q_proj.weight"
    assert 0 < (after[name] - before[name]).abs().max() < 0.1  # B A alone, no rounding to 4 bits
    trained = load_file(out / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}


def test_an_adapter_goes_on_from_another(base: Path, tmp_path: Path) -> None:
    first = sft(base, ROWS, tmp_path / "first", SHORT, lora={"rank": 4})
    start = {"rank": 4, "start": str(first / "adapter")}
    second = sft(base, ROWS, tmp_path / "second", SHORT, learning_rate=1e-9, lora=start)
    torch.testing.assert_close(logits(load(second)), logits(load(first)), atol=1e-5, rtol=1e-4)
    with pytest.raises(UsageError, match="has 4: leave it out"):
        prepare(base, ROWS, SftSettings(lora={**start, "rank": 8}))
    shutil.copytree(base, tmp_path / "other")
    with pytest.raises(UsageError, match=r"was trained on .*base, not on .*other"):
        prepare(tmp_path / "other", ROWS, SftSettings(lora=start))
    start["start"] = str(base)
    with pytest.raises(UsageError, match="is not an adapter"):
        prepare(base, ROWS, SftSettings(lora=start))


def test_in_bfloat16_only_what_is_frozen_is_stored_so(base: Path, tmp_path: Path) -> None:
    settings = SHORT.model_copy(update={"bf16": True})
    trainer = make_trainer(prepare(base, ROWS, settings), tmp_path)
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
    settings = SftSettings(**settings.model_dump() | {"lora": {"rank": 4}})
    trainer = make_trainer(prepare(base, ROWS, settings), tmp_path)
    for weight in trainer.model.parameters():
        assert weight.dtype == (torch.float32 if weight.requires_grad else torch.bfloat16)


def test_targets_that_match_nothing_are_refused(base: Path) -> None:
    with pytest.raises(
        UsageError, match=r"lora\.targets: .*no linear layers called 'query'.*q_proj"
    ):
        prepare(base, ROWS, SftSettings(lora={"rank": 4, "targets": ["query"]}))


# new tokens

NEW = {"<tool>": ("sum", "answer"), "<end>": ("end",)}


def test_a_new_token_starts_at_the_mean_of_related_words(snug: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    out = sft(snug, ROWS, tmp_path / "out", SHORT, learning_rate=1e-12, new_tokens=NEW)
    tokenizer, before, after = AutoTokenizer.from_pretrained(out), load(snug), load(out)
    old = AutoTokenizer.from_pretrained(snug)
    assert tokenizer.tokenize("a<tool>b")[1] == "<tool>"
    assert tokenizer.decode(tokenizer.encode("<tool>"), skip_special_tokens=True) == "<tool>"
    new = tokenizer.convert_tokens_to_ids("<tool>")
    assert new == len(old) and after.config.vocab_size == len(old) + 2
    words = [old.encode(word, add_special_tokens=False) for word in NEW["<tool>"]]
    for was, now in zip(ends(before), ends(after), strict=True):
        expected = torch.stack([was[ids].mean(0) for ids in words]).mean(0)
        torch.testing.assert_close(now[new], expected, atol=1e-6, rtol=1e-5)
    assert tied(after) is tied(before)


def test_an_adapter_learns_new_tokens_too(snug: Path, tmp_path: Path) -> None:
    said = [{"prompt": "1 + 1 =", "completion": "<tool>2<end>"}] * 4
    options: dict[str, Any] = {"new_tokens": NEW, "lora": {"rank": 4}}
    start = sft(snug, said, tmp_path / "start", SHORT, new_tokens=NEW, learning_rate=1e-12)
    out = sft(snug, said, tmp_path / "out", SHORT, steps=20, **options)
    losses = [point["loss"] for point in json.loads((out / "sft.json").read_text())["losses"]]
    assert losses[-1] < losses[0] / 3
    for was, now in zip(ends(load(start)), ends(load(out)), strict=True):
        assert (now[-2:] - was[-2:]).abs().max() > 0.01
    assert tied(load(out)) is tied(load(snug))
    (example, *_) = prepare(out, said, SHORT).order
    labels = torch.tensor([example.labels])
    with torch.no_grad():
        loss = load(out)(torch.tensor([example.token_ids]), labels=labels).loss
    assert loss.item() == pytest.approx(losses[-1], abs=0.05)  # the merged one is what was trained


def test_a_token_takes_the_room_that_an_embedding_has(base: Path, tmp_path: Path) -> None:
    out = sft(base, ROWS, tmp_path / "out", SHORT, new_tokens=NEW)
    assert load(out).config.vocab_size == load(base).config.vocab_size


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"<think>": ("a",)}, "'<think>' is a token already"),
        ({"<new>": ()}, "'<new>' needs related words"),
        ({"<new>": ("",)}, "'<new>' needs related words"),
    ],
)
def test_a_token_that_cannot_be_added_is_refused(base: Path, tokens: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"new_tokens: {message}"):
        prepare(base, ROWS, SftSettings(new_tokens=tokens))


# foreign parts


def test_a_tokenizer_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<{i}>" for i in range(48)])
    larger = tmp_path / "larger"
    tokenizer.save_pretrained(larger)
    with pytest.raises(UsageError, match=r"ids up to 384, the model's embedding has 384 rows"):
        prepare(base, ROWS, SftSettings(tokenizer=str(larger)))
    other = tmp_path / "other"
    shutil.copytree(base, other)
    written = json.loads((other / "tokenizer.json").read_text())
    vocabulary = written["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(UsageError, match=r"2 of its 337 tokens .* \['a', 'b'\] among them"):
        prepare(base, ROWS, SftSettings(tokenizer=str(other)))
    assert prepare(base, ROWS, SftSettings(tokenizer=str(base))).report["examples"] == 12


def test_a_template_can_be_given_for_a_base_without_one(base: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    (bare / "chat_template.jinja").unlink()
    template = tmp_path / "chat.jinja"
    shutil.copy(base / "chat_template.jinja", template)
    out = sft(bare, ROWS, tmp_path / "out", SHORT, chat_template=str(template))
    assert (out / "chat_template.jinja").read_text() == template.read_text()
    with pytest.raises(UsageError, match="can't read the chat template"):
        prepare(bare, ROWS, SftSettings(chat_template=str(tmp_path / "none.jinja")))


# settings


def test_settings_are_checked_by_name(tmp_path: Path) -> None:
    config = load_sft_config(None, ["model=m", "lora.rank=8", 'mix={"a.jsonl" = 0.5}'])
    assert config.lora and config.lora.rank == 8 and config.mix == {"a.jsonl": 0.5}
    for override, message in (
        ("learning_rat=1", "did you mean 'learning_rate'"),
        ("lora.rnk=1", "lora has rank, alpha, .* bits, start"),
        ("packing=yes", "setting 'packing'"),
    ):
        with pytest.raises(UsageError, match=message):
            load_sft_config(None, ["model=m", override])
    with pytest.raises(UsageError, match="give either data or mix"):
        prepare(tmp_path, ROWS, SftSettings(mix={"a.jsonl": 1.0}))
    zero3 = tmp_path / "zero3.json"
    zero3.write_text('{"zero_optimization": {"stage": 3}}')
    for path, message in ((zero3, "must set stage3_gather"), (tmp_path / "no", "can't read")):
        with pytest.raises(UsageError, match=f"deepspeed: .*{message}"):
            prepare(tmp_path, ROWS, SftSettings(deepspeed=str(path)))
    with pytest.raises(UsageError, match="trl: SFTConfig has no argument 'weight_dekay'"):
        prepare(tmp_path, ROWS, SftSettings(trl={"weight_dekay": 0.1}))
