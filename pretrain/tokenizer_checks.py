"""Decides whether a tokenizer is fit to train with, and whether it is a checkpoint's own.

Fit: transformers and the tokenizers library read the folder alike (ids are made by the one and used
through the other), there is an end token, and it isn't the padding. What is lawful but costs
something is a note: characters it can't write, special tokens that fall apart.

A checkpoint's tokenizer may be another only if it extends the checkpoint's: all of its tokens keep
their ids, and the embedding has rows for the new ones.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pretrain.errors import UsageError
from pretrain.new_folder import check_free, new_folder
from pretrain.tokenizer_files import FILES, TokenizerFiles, difference, extends, read_tokenizer

# Plain English first; then many scripts and planes, blanks at both ends, runs of them, and what
# normalisers change.
PROBES = (
    "The quick brown fox jumps over the lazy dog, 3 times.",
    *("  def f(x):\n\treturn x  ", "don't 12345 + 6.7 = $x^2$", "Straße Ελλάδα Москва ﬁ ½"),
    *(
        "中文 日本語 한국어 ไทย हिन्दी العربية",
        "🙂👩‍👩‍👧 𝔘 \U000e0041 \U0010fffd",
        "e\u0301 \u00e9 \u2581 \ufeff",
    ),
)


def spare_rows(rows: int) -> int:
    """How many rows of an embedding may have no token: what padding to a round number leaves."""
    return max(1024, rows // 20)


def check_tokenizer(folder: str | Path) -> list[str]:
    """Notes on a tokenizer that is fit. Raises UsageError, with the reason, for one that is not."""
    files = read_tokenizer(folder)
    end = files.end_token()
    loaded = _load(folder)
    for probe in PROBES:
        ids = files.tokenizer.encode(probe, add_special_tokens=False).ids
        other = loaded(probe, add_special_tokens=False)["input_ids"]
        if ids != other:
            raise UsageError(
                f"{folder}: tokenizer.json gives {probe!r} the ids {ids[:8]}..., transformers "
                f"{other[:8]}...: save it anew with the transformers that made it"
            )
    if loaded.pad_token == end:
        raise UsageError(
            f"{folder}: {end!r} is the end and the padding: masking the padding would hide every "
            "end from the loss; set another pad_token"
        )
    return [*_lossy(files), *_broken_specials(files, loaded)]


def _load(folder: str | Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"transformers can't read the tokenizer in {folder}: {error}") from error


def _lossy(files: TokenizerFiles) -> list[str]:
    lost = []
    for probe in PROBES:
        ids = files.tokenizer.encode(probe, add_special_tokens=False).ids
        if (found := files.tokenizer.decode(ids, skip_special_tokens=False)) != probe:
            lost.append(f"{probe!r} comes back as {found!r}")
    return lost


def _broken_specials(files: TokenizerFiles, loaded: Any) -> list[str]:
    return [
        f"the special token {token!r} is not one id"
        for token in loaded.all_special_tokens
        if len(files.tokenizer.encode(token, add_special_tokens=False).ids) != 1
    ]


def import_tokenizer(folder: str | Path, out: str | Path) -> list[str]:
    """Copy a tokenizer that is fit, without whatever else lies there. Returns its notes."""
    check_free(Path(out))
    notes = check_tokenizer(folder)
    with new_folder(Path(out)) as aside:
        for name in FILES:
            if (Path(folder) / name).is_file():
                shutil.copyfile(Path(folder) / name, aside / name)
    return notes


def check_belongs(checkpoint: str | Path, tokenizer: str | Path = "") -> None:
    """Raises UsageError, with the reason, when ``tokenizer`` (the one in the folder, if none is
    given) is not the checkpoint's or an extension of it.
    """
    files = read_tokenizer(tokenizer or checkpoint)
    config = _json(Path(checkpoint) / "config.json")
    config = {**config, **config.get("text_config", {})}
    refused = f"the tokenizer {files.folder} is not the one of {checkpoint}: "
    if reason := _misfit(files, config, _json(Path(checkpoint) / "generation_config.json", {})):
        raise UsageError(refused + reason)
    if tokenizer and (Path(checkpoint) / "tokenizer.json").is_file():
        own = read_tokenizer(checkpoint)
        if not extends(files, own) and (reason := difference(own, files)):
            raise UsageError(refused + reason)


def _misfit(files: TokenizerFiles, config: dict[str, Any], generation: dict[str, Any]) -> str:
    """Why a model with this config can't have been trained with the tokenizer; "" if it can."""
    rows = int(config["vocab_size"])
    if files.rows > rows:
        return f"it has ids up to {files.rows - 1}, the embedding has {rows} rows"
    if rows - files.rows > spare_rows(rows):
        return f"the embedding has {rows} rows, the tokenizer uses {files.rows} of them"
    ends = [end for one in (config, generation) if (end := one.get("eos_token_id")) is not None]
    known = {number for end in ends for number in (end if isinstance(end, list) else [end])}
    end = files.vocabulary[files.end_token()]
    if known and end not in known:
        tokens = {number: token for token, number in files.vocabulary.items()}
        said = ", ".join(f"{number} ({tokens.get(number)!r})" for number in sorted(known))
        return f"its end token is {end} ({files.end_token()!r}), the model's {said}"
    return ""


def _json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    if default is not None and not path.is_file():
        return default
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(f"can't read {path}: {error}") from error
