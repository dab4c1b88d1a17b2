"""``pretrain shards`` and ``pretrain mix`` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.cli import main
from tests.pretrain.token_corpus import make_shards, tokenizer_folder, write_documents

MIX = """
shards = ["{folder}"]
max_epochs = {{ "en/code" = 2.0 }}
[[phases]]
name = "stable"
tokens = 2400
rows = 10
length = 12
[[phases]]
name = "anneal"
tokens = 1200
rows = 5
length = 24
mix = {{ "en/code" = 0.9, "*" = 0.1 }}
"""


def test_shards_and_their_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = write_documents(tmp_path / "in", [[{"text": "a", "domain": "code"}]])
    command = ["shards", str(documents), str(tmp_path / "out"), "--tokenizer"]
    assert main([*command, str(tmp_path)]) == 2
    assert main([*command, str(tokenizer_folder()), "--spm-share", "0.5"]) == 2
    assert "--fim-rate" in capsys.readouterr().err
    assert main([*command, str(tokenizer_folder()), "--fim-rate", "1", "--language", "en"]) == 0
    # three tokens of fill-in-the-middle, one letter, the end
    assert capsys.readouterr().out.split() == ["en/code", "1", "documents", "5", "tokens"]


def test_the_mix_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = make_shards(tmp_path, {"de/web": 1200, "en/code": 600})
    config = tmp_path / "mix.toml"
    config.write_text(MIX.format(folder=shards.folder))
    assert main(["mix", str(config), "--tokenizer", str(tokenizer_folder())]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "phase 1 stable: 20 steps of 10 x 12 from step 0; 2,400 tokens",
        "de/web 66.50% 133 rows; 1.33 epochs here, 1.33 with the phases before",
        "en/code 33.50% 67 rows; 1.34 epochs here, 1.34 with the phases before",
        "phase 2 anneal: 10 steps of 5 x 24 from step 20; 1,200 tokens",
        "de/web 68.00% 34 rows; 0.68 epochs here, 2.01 with the phases before",
        "en/code 32.00% 16 rows; 0.64 epochs here, 1.98 with the phases before",
    ]
    (tmp_path / "bad.toml").write_text("shards = 3")
    assert main(["mix", str(tmp_path / "bad.toml")]) == 2
    assert main(["mix", str(tmp_path / "none.toml")]) == 2
