"""The scripts of ``make base``: the crawl, the documents held out, the configs, the verdict."""

from __future__ import annotations

import importlib.util
import tomllib
from math import nan
from pathlib import Path
from types import ModuleType

import pytest

from pretrain.data.folders import Row, read_shard, write_documents
from pretrain.data.readers import Reader, list_files
from pretrain.data.registry import find_stage, make_step
from pretrain.data.settings import make_settings, read_config
from pretrain.errors import UsageError
from pretrain.models import count, shape_for
from pretrain.training.settings import TrainConfig

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BASE, PACK = script("pretrain_base"), script("pack_warc")
XZ = {"de": 2.1, "en": 2.2, "es": 1.9}


@pytest.mark.parametrize(
    ("model", "missed"),
    [
        ({"de": 1.5, "en": 1.99, "es": 1.89}, []),
        ({"de": 1.5, "en": 2.0, "es": 1.5}, ["en has 2.000, which is not below 2.000"]),
        ({"de": 1.5, "en": 1.5, "es": 1.95}, ["es has 1.950, which is not below 1.900"]),
        ({"de": nan, "en": 1.5, "es": 1.5}, ["de has nan, which is not below 2.000"]),
        ({"en": 2.1, "es": 1.5}, ["de has nan", "en has 2.100"]),
        ({"all": 1.0}, ["de has nan", "en has nan", "es has nan"]),
    ],
)
def test_a_missed_aim_is_named_and_fails(
    model: dict[str, float], missed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert BASE.verdict(model, XZ) == (1 if missed else 0)
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["de", "en", "es"]
    lines = err.splitlines()
    assert len(lines) == len(missed)
    assert all(line.startswith(f"missed: {one}") for line, one in zip(lines, missed, strict=True))


def test_a_language_without_held_out_text_is_missed() -> None:
    assert BASE.verdict({"de": 1.0, "en": 1.0, "es": 1.0}, {"de": 2.1, "en": 2.2}) == 1


def test_the_last_measurement_counts(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(
        '{"step": 300, "held_out": "de/text", "bits_per_byte": 2.5}\n'
        '{"step": 301, "loss": 3.0}\n'
        '{"step": 600, "held_out": "de/text", "bits_per_byte": 1.5}\n'
        '{"step": 600, "held_out": "all", "bits_per_byte": 1.6}\n'
    )
    assert BASE.bits_per_byte(metrics) == {"de": 1.5, "all": 1.6}


def test_xz_packs_what_it_is_given() -> None:
    text = b"The package manager installs packages. " * 1000
    (bits,) = BASE.packed({"en": text}).values()
    assert 0 < bits < 0.1  # a line and its repetition


def test_the_configs_resolve() -> None:
    settings = make_settings(read_config(str(SCRIPTS / "configs" / "base_data.toml")))
    assert [make_step(entry).name for entry in settings.steps] == [
        *("url", "extract", "language", "pii")
    ]
    assert [find_stage(entry)[0] for entry in settings.stages] == [
        *("exact_duplicates", "near_duplicates")
    ]
    (language,) = [entry for entry in settings.steps if not isinstance(entry, str)]
    assert tuple(language["keep"]) == BASE.LANGUAGES


def test_the_dial_sizes_the_model() -> None:
    config = TrainConfig(**tomllib.loads((SCRIPTS / "configs" / "pretrain.toml").read_text()))
    shape = shape_for(config.params, architecture=config.architecture, vocab_size=BASE.VOCABULARY)
    assert count(shape).total == 5_245_696
    assert config.data.phases[0].tokens == 1200 * 4096


def test_a_crawl_holds_every_page_once(tmp_path: Path) -> None:
    pages = tmp_path / "pages" / "manual"
    pages.mkdir(parents=True)
    for i in range(20):
        (pages / f"{i}.html").write_text(f"<html><body><p>Página {i}</p></body></html>")
    assert PACK.pack(tmp_path / "pages", tmp_path / "crawl") == 20
    files = list_files(tmp_path / "crawl")
    assert [kind for kind, _ in files] == ["warc"] * PACK.FILES
    reader = Reader(files, tmp_path / "crawl")
    found = {one.metadata["url"]: one.text for one in reader.read()}
    assert len(found) == 20 and not reader.counts
    assert "Página 7" in found["http://manuals.example/manual/7.html"]
    with pytest.raises(UsageError, match=r"no page that ends in \.html"):
        PACK.pack(tmp_path / "crawl", tmp_path / "other")


def rows_of(folder: Path) -> list[Row]:
    return [row for shard in sorted(folder.glob("*.gz")) for row in read_shard(shard)]


def test_documents_are_held_out_by_address_and_training_is_apart_from_them(tmp_path: Path) -> None:
    plain = "the {0} of page {0} is about something that no other page of this site has number {0}"
    rows: list[Row] = [
        {"text": plain.format(i), "id": f"record-{i}", "metadata": {"url": f"http://x.example/{i}"}}
        for i in range(400)
    ]
    write_documents(tmp_path / "documents", rows, per_shard=100)
    BASE.split(tmp_path / "documents", tmp_path / "split")
    rest, held = rows_of(tmp_path / "split" / "rest"), rows_of(tmp_path / "split" / "held-out")
    assert sorted(row["id"] for row in rest + held) == sorted(row["id"] for row in rows)
    assert 3 <= len(held) <= 16  # 400 / 50

    again = [row | {"id": f"other-{row['id']}"} for row in reversed(rows)]
    again += [{"text": f"Ah. {held[0]['text']}", "id": "copy", "metadata": rest[0]["metadata"]}]
    write_documents(tmp_path / "again", again)
    out = tmp_path / "out"
    out.mkdir()
    BASE.split(tmp_path / "again", out / "split")
    addresses = {row["metadata"]["url"] for row in rows_of(out / "split" / "held-out")}
    assert addresses == {row["metadata"]["url"] for row in held}
    kept = {row["id"] for row in rows_of(BASE.training_documents(out))}
    assert "copy" not in kept and len(kept) == len(rest)
