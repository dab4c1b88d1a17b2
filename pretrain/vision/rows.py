"""Decides what a row of picture and text is, which rows are refused, and what is learnt of one.

    {"image": "cat.png", "text": "<image>A cat on a wall."}
    {"image": "cat.png", "prompt": "<image>\\nWhat is on the wall?", "answer": " A cat."}

The picture's path is relative to the file of rows. ``<image>`` stands once, where the picture's
tokens go. Of a ``text`` everything else is learnt, of the second form the answer alone; both end in
the tokenizer's end token, which is learnt too. Prompt and answer are tokenised each for itself.

All pictures are decoded once before anything is trained: one that is cut short stops a run at its
start, not after hours.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import RunError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

IGNORED = -100  # the label of a token that is not learnt
_FORMS = ({"image", "text"}, {"image", "prompt", "answer"})


@dataclass(frozen=True, slots=True)
class Row:
    """A picture and its text; ``answer`` is None where the text itself is learnt."""

    image: Path
    text: str
    answer: str | None
    where: str  # file and line, for messages


def read_rows(path: Path, place: str) -> list[Row]:
    """The rows of a JSONL file, in which ``place`` stands for a picture. Raises UsageError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read the rows {path}: {error}") from error
    rows = [
        _row(line, path, f"{path} line {number}", place)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not rows:
        raise UsageError(f"{path} has no rows")
    return rows


def _row(line: str, path: Path, where: str, place: str) -> Row:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where} is no JSON: {error}") from error
    if not isinstance(found, Mapping) or found.keys() not in _FORMS:
        raise UsageError(f"{where}: a row has image and text, or image, prompt and answer")
    if wrong := [name for name, value in found.items() if not isinstance(value, str) or not value]:
        raise UsageError(f"{where}: {', '.join(wrong)} must be text, and not empty")
    text, answer = found.get("text") or found["prompt"], found.get("answer")
    if text.count(place) != 1 or place in (answer or ""):
        named = "text" if answer is None else "prompt"
        raise UsageError(f"{where}: {place} must stand once in its {named}, for the picture")
    return Row(path.parent / found["image"], text, answer, where)


def open_picture(path: Path) -> Image:
    """Decoded, in RGB. Raises OSError with the reason where that can't be done."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error


class Reader:
    """Rows to what the model takes, by its own processor."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.place = processor, str(processor.image_token)
        if processor.tokenizer.eos_token_id is None:
            raise UsageError("the model's tokenizer has no end token: an answer could not end")

    def check(self, rows: Sequence[Row], window: int) -> None:
        """Raises UsageError for a picture that can't be read, or a row longer than ``window``."""
        first = {row.image: row for row in reversed(rows)}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            sizes = dict(zip(first, pool.map(_size, first.values()), strict=True))
        for row in rows:
            n_tokens = len(self.encode(row, sizes[row.image])[0])
            if n_tokens > window:
                raise UsageError(
                    f"{row.where}: {n_tokens} tokens with its picture, and the model takes {window}"
                )

    def encode(self, row: Row, size: tuple[int, int]) -> tuple[list[int], list[int]]:
        """Ids and labels of a row whose picture has that height and width."""
        counted = self.processor._get_num_multimodal_tokens(image_sizes=[size])
        tokenizer, n_image = self.processor.tokenizer, counted["num_image_tokens"][0]
        ids = tokenizer(row.text.replace(self.place, self.place * n_image))["input_ids"]
        if row.answer is None:
            image = self.processor.image_token_id
            labels = [IGNORED if token == image else token for token in ids]
        else:
            labels = [IGNORED] * len(ids)
        answer = tokenizer(row.answer or "", add_special_tokens=False)["input_ids"]
        learnt = [*answer, tokenizer.eos_token_id]
        return ids + learnt, labels + learnt

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Ids, labels, mask [rows, longest], pixels and sizes. Raises RunError for a picture."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        images = [_opened(row) for row in rows]
        read = [self.encode(row, (i.height, i.width)) for row, i in zip(rows, images, strict=True)]
        ids, labels = ([torch.tensor(one) for one in part] for part in zip(*read, strict=True))
        pixels = self.processor.image_processor(images, return_tensors="pt")
        end = self.processor.tokenizer.eos_token_id
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=end),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
            **pixels,
        }

    def batches(self, rows: Sequence[Row], size: int) -> Iterator[dict[str, Tensor]]:
        """All rows in their order, ``size`` at once."""
        for at in range(0, len(rows), size):
            yield self.batch(rows[at : at + size])


def _size(row: Row) -> tuple[int, int]:
    try:
        image = open_picture(row.image)
    except OSError as error:
        raise UsageError(f"{row.where}: picture {row.image} can't be read: {error}") from error
    return image.height, image.width


def _opened(row: Row) -> Image:
    try:
        return open_picture(row.image)
    except OSError as error:
        raise RunError(f"{row.where}: picture {row.image} can't be read: {error}") from error
