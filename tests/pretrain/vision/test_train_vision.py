"""Training of a model that sees: held-out pictures, what each stage moves, resume, refusals."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from pretrain.cli import main
from pretrain.errors import UsageError
from pretrain.training.job import train_model
from pretrain.vision import train_vision
from pretrain.vision.job import with_others
from pretrain.vision.rows import IGNORED, Reader, Row, read_rows
from pretrain.vision.settings import VisionConfig
from pretrain.vision.stage import _arguments, _newest_whole
from tests import forked
from tests.pretrain.training.small_run import config as language_config
from tests.pretrain.training.small_run import corpus
from tests.pretrain.vision.drawings import CAPTIONS, HELD_OUT, picture, untrained, write_rows

SHIFTS = ((0, 0), (2, 0), (0, 2), (2, 2))


class Made(NamedTuple):
    model: Path
    rows: Path
    held_out: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("seeing")
    seen = [caption for caption in CAPTIONS if caption not in HELD_OUT]
    rows = write_rows(folder / "rows.jsonl", seen, SHIFTS)
    return Made(untrained(folder / "model"), rows, write_rows(folder / "held.jsonl", HELD_OUT))


def config(made: Made, out: Path, **changes: Any) -> dict[str, Any]:
    stage = {"data": str(made.rows), "rows": 12}
    tree: dict[str, Any] = {
        "out": str(out),
        "model": str(made.model),
        "dtype": "float32",
        "threads": 1,
        "micro_rows": 12,
        "stage1": stage | {"rate": 1e-2, "steps": 4},
        "stage2": stage | {"rate": 3e-3, "steps": 6},
    }
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (tree[section] if section else tree)[key] = value
    return tree


@pytest.fixture(scope="module")
def trained(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    changes = {"held_out": str(made.held_out), "stage1__steps": 30, "stage2__steps": 200}
    return train_vision(config(made, out, stage2__tower_rate=1e-3, **changes))


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "pretrain.json").read_text()))


def captions(folder: Path, images: list[Image.Image]) -> list[str]:
    """What a finished folder says of pictures, by the auto classes."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    batch = processor(images=images, text=["<image>"] * len(images), return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**batch, max_new_tokens=9, do_sample=False)
    new = ids[:, batch["input_ids"].shape[1] :]
    return list(processor.batch_decode(new, skip_special_tokens=True))


def words_right(said: list[str], true: list[str]) -> float:
    """The share of the words of ``true`` that stand in their places."""
    right = [
        a == b
        for one, other in zip(said, true, strict=True)
        for a, b in itertools.zip_longest(one.split()[:3], other.split())
    ]
    return sum(right) / len(right)


def test_it_names_pictures_that_it_was_not_trained_on(trained: Path) -> None:
    asked = [(caption, shift) for caption in HELD_OUT for shift in (*SHIFTS, (1, 1))]
    said = captions(trained, [picture(*one) for one in asked])
    assert words_right(said, [caption for caption, _ in asked]) > 0.75, said
    # Without the picture there is one answer for all, and no answer has more than 7 of 18 words.
    black = captions(trained, [Image.new("RGB", (32, 16), "black")] * len(HELD_OUT))
    assert words_right(black, HELD_OUT) <= 7 / 18


def test_held_out_losses_tell_whether_it_looks(trained: Path) -> None:
    first, second = (record(trained.with_name(f"stage{n}"))["held_out"] for n in (1, 2))
    assert first["before"]["own_picture"] == pytest.approx(
        first["before"]["other_picture"], abs=0.05
    )
    assert first["after"]["own_picture"] < first["before"]["own_picture"] - 0.1
    assert second["before"] == first["after"]
    assert second["after"]["own_picture"] < 0.5
    assert second["after"]["other_picture"] > second["after"]["own_picture"] + 0.5


def moved(before: Path, after: Path) -> set[str]:
    """The parts of which any weight differs."""
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    differ = {name for name in old if not torch.equal(old[name], new[name])}
    return {name.removeprefix("model.").split(".")[0] for name in differ}


def seen_parts(folder: Path) -> set[str]:
    names = load_file(folder / "model.safetensors")
    return {name.removeprefix("model.").split(".")[0] for name in names}


def signal_at(patch: pytest.MonkeyPatch, at: int, number: int) -> None:
    """This process gets a signal when it reads its ``at``-th batch."""
    calls, batch = iter(range(1, 1000)), Reader.batch

    def counted(self: Reader, rows: Any) -> Any:
        if next(calls) == at:
            os.kill(os.getpid(), number)
        return batch(self, rows)

    patch.setattr(Reader, "batch", counted)


SCRIPT = """
import signal, sys
import pytest
from pretrain.cli import main
from tests.pretrain.vision.test_train_vision import signal_at

signal_at(pytest.MonkeyPatch(), int(sys.argv.pop()), signal.SIGKILL)
sys.exit(main(sys.argv[1:]))
"""


def as_toml(tree: dict[str, Any]) -> str:
    """A tree with one level of sections, which go to its end."""
    lines = []
    for name, value in sorted(tree.items(), key=lambda item: isinstance(item[1], dict)):
        if isinstance(value, dict):
            lines += [f"[{name}]", as_toml(value)]
        else:
            lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join(lines)


def test_a_run_that_was_stopped_and_killed_ends_like_one_that_was_not(
    made: Made, tmp_path: Path
) -> None:
    settings = {"checkpoint_every": 2, "report_every": 1}
    whole = train_vision(config(made, tmp_path / "whole", **settings))
    script, toml, broken = (tmp_path / name for name in ("script.py", "vision.toml", "broken"))
    script.write_text(SCRIPT)
    toml.write_text(as_toml(config(made, broken, **settings)))
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, 3, signal.SIGINT)
        assert main(["vision", str(toml)]) == 130  # in stage 1
    assert not (broken / "stage1").exists()
    # As the child of a process in which DeepSpeed has had a rank.
    env = os.environ | {"LOCAL_RANK": "0"}
    killed = forked.start([sys.executable, script, "vision", str(toml), "7"], env=env)
    assert killed.wait(240) == -signal.SIGKILL  # in stage 2
    assert (broken / "stage1").exists() and not (broken / "stage2").exists()
    assert any((broken / "checkpoints/stage2").iterdir())
    with pytest.raises(UsageError, match="stage2.rate: 0.003 there, 0.1 now"):
        train_vision(toml, "stage2.rate=0.1")
    assert main(["vision", str(toml)]) == 0

    for stage in ("stage1", "stage2"):
        one, other = tmp_path / "whole" / stage, broken / stage
        assert record(one)["curve"] == record(other)["curve"]
        assert moved(one, other) == set()
    assert not any((broken / "checkpoints").iterdir())
    # The tower is frozen unless it has a rate.
    projector = {"multi_modal_projector", "image_newline"}
    assert moved(made.model, whole.with_name("stage1")) == projector
    assert moved(whole.with_name("stage1"), whole) == projector | {"language_model"}


def test_asked_to_stop_in_the_last_step_of_a_stage_the_next_does_not_begin(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = config(made, tmp_path / "run", stage1__steps=2)
    signal_at(monkeypatch, 3, signal.SIGINT)  # one batch is read ahead
    with pytest.raises(KeyboardInterrupt, match="stage 1 was at its end"):
        train_vision(tree)
    assert (tmp_path / "run" / "stage1").exists()
    assert not (tmp_path / "run" / "checkpoints" / "stage2").exists()


def test_a_tower_with_a_rate_is_trained(trained: Path) -> None:
    assert moved(trained.with_name("stage1"), trained) == seen_parts(trained)


def test_what_is_learnt_of_a_row(made: Made) -> None:
    processor = AutoProcessor.from_pretrained(made.model)
    reader, tokenizer = Reader(processor), processor.tokenizer
    image, place, end = Path("x"), processor.image_token_id, tokenizer.eos_token_id
    asked = Row(image, "<image>red", " bar left", "")
    ids, labels = reader.encode(asked, (16, 32))
    own = processor(images=[picture(CAPTIONS[0])], text=["<image>red"])["input_ids"][0]
    answer = tokenizer(" bar left")["input_ids"]
    assert ids == [*own, *answer, end]  # the picture's place is as wide as the processor makes it
    assert own.count(place) == 4 + 2 * (4 + 1)
    assert labels == [IGNORED] * len(own) + [*answer, end]
    told, learnt = reader.encode(Row(image, "red<image>", None, ""), (16, 32))
    assert learnt == [IGNORED if token == place else token for token in told]
    assert learnt[-1] == end and learnt[0] == tokenizer("red")["input_ids"][0]


def test_rows_of_a_step_count_by_their_tokens(made: Made, tmp_path: Path) -> None:
    """Accumulated in parts whose answers are of unlike length, or at once."""
    rows = [json.loads(line) for line in made.rows.read_text().splitlines()[:4]]
    for row in rows[:2]:
        row["answer"] = "red " * 8
    data = made.rows.with_name("unlike.jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = []
    for micro in (1, 4):
        changes = {"stage1__data": str(data), "stage1__rows": 4, "stage1__steps": 3}
        tree = config(made, tmp_path / str(micro), micro_rows=micro, report_every=1, **changes)
        del tree["stage2"]
        losses.append([point["loss"] for point in record(train_vision(tree))["curve"]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def bad_rows(folder: Path, kind: str) -> str:
    """A row that can't be trained on; returns what the message says of it."""
    good = {"image": "good.png", "text": "<image>red bar left"}
    picture("red bar left").save(folder / "good.png")
    Image.effect_noise((64, 64), 50).save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "words.png").write_text("no picture")
    row, message = {
        "missing": (
            good | {"image": "none.png"},
            "line 2: picture .*none.png can't be read: .*No such",
        ),
        "cut": (good | {"image": "cut.png"}, "line 2: picture .*cut.png can't be read: .*trunc"),
        "no picture": (good | {"image": "words.png"}, "line 2: .* cannot identify"),
        "no place": (good | {"text": "red"}, "line 2: <image> must stand once in its text"),
        "two places": (good | {"text": "<image><image>"}, "line 2: <image> must stand once"),
        "answered": (
            {"image": "good.png", "prompt": "<image>", "answer": "<image>"},
            "line 2: <image> must stand once in its prompt",
        ),
        "no answer": ({"image": "good.png", "prompt": "<image>"}, "line 2: a row has image and"),
        "empty text": (good | {"text": ""}, "line 2: text must be text, and not empty"),
        "too long": (
            good | {"text": "<image>" + "red bar " * 99},
            "tokens with its picture, .* takes 128",
        ),
    }[kind]
    (folder / "rows.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    return message


@pytest.mark.parametrize(
    "kind",
    [
        *("missing", "cut", "no picture", "no place", "two places", "answered", "no answer"),
        *("empty text", "too long"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused(made: Made, tmp_path: Path, kind: str) -> None:
    message = bad_rows(tmp_path, kind)
    with pytest.raises(UsageError, match=message):
        train_vision(config(made, tmp_path / "out", stage2__data=str(tmp_path / "rows.jsonl")))
    assert not (tmp_path / "out").exists()


def test_files_without_rows_are_refused(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(UsageError, match="can't read the rows"):
        train_vision(config(made, tmp_path / "out", stage1__data=str(path)))
    for text, message in (("\n", "has no rows"), ("{\n", "line 1 is no JSON")):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_rows(path, "<image>")


def test_held_out_rows_are_measured_with_another_picture(tmp_path: Path) -> None:
    rows = [Row(Path(name), "<image>", None, f"line {i}") for i, name in enumerate("aabac")]
    assert [str(row.image) for row in with_others(rows)] == ["b", "c", "c", "b", "a"]
    with pytest.raises(UsageError, match="line 0: held-out rows need at least two different"):
        with_others(rows[:2])
    assert with_others([]) == []


def test_a_line_separator_inside_of_a_text_ends_no_row(tmp_path: Path) -> None:
    row = {"image": "good.png", "text": "<image>red\u2028bar\x85"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    (found,) = read_rows(tmp_path / "rows.jsonl", "<image>")
    assert found.text == row["text"]


@pytest.mark.parametrize(("epochs", "n_rows", "steps"), [(1.0, 24, 2), (2.0, 25, 6), (0.5, 40, 2)])
def test_an_epoch_ends_with_a_step(
    made: Made, tmp_path: Path, epochs: float, n_rows: int, steps: int
) -> None:
    """As the Trainer has it: of 25 rows a step of 12, another, and one of a single row."""
    tree = config(made, tmp_path / "out", stage1__epochs=epochs, stage1__rows=12, stage1__steps=0)
    arguments = _arguments(VisionConfig(**tree), 1, n_rows)
    assert arguments.max_steps == steps


def test_a_checkpoint_whose_state_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    for number, text in ((4, '{"global_step": 4}'), (8, '{"global_st')):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(text)
    assert _newest_whole(tmp_path) == str(tmp_path / "checkpoint-4")


def test_settings_that_are_none_are_refused(
    made: Made, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changes, message in (
        ({"stage1": None, "stage2": None}, "stage1, stage2, or both"),
        ({"micro_rows": 5}, "stage1.rows = 12 is no multiple of micro_rows = 5"),
        ({"model": str(checkpoint)}, "is a qwen3, .* `pretrain model --arch llava` makes one"),
        ({"model": str(tmp_path)}, "can't be loaded"),
    ):
        with pytest.raises(UsageError, match=message):
            train_vision(config(made, tmp_path / "out", **changes))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="by one process"):
        train_vision(config(made, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_training_of_language_models_names_the_right_command(
    made: Made, tmp_path: Path
) -> None:
    wrong = language_config(corpus(tmp_path / "corpus"), tmp_path / "out", model=str(made.model))
    with pytest.raises(UsageError, match="sees: `pretrain vision` trains such models"):
        train_model(wrong)
