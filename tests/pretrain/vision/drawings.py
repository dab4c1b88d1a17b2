"""Pictures of one thing in one colour on one side, with captions that only they can tell."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from pretrain.models import Shape, VisionShape, build
from pretrain.models.vision import add_image_token, processor
from pretrain.tokenizer import train_tokenizer

COLOURS, FORMS, SIDES = (
    ("red", "green", "blue", "white"),
    ("square", "bar", "cross"),
    ("left", "right"),
)
CAPTIONS = [" ".join(words) for words in itertools.product(COLOURS, FORMS, SIDES)]
# Every word is in others, no whole caption of these is.
HELD_OUT = [
    *("red square left", "red cross right", "green bar right"),
    *("blue square right", "blue cross left", "white bar left"),
]
TOWER = VisionShape(64, 2, 1, 128, image_size=16, patch_size=8, grids=((1, 2), (2, 1)))
SIZES = {"width": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 32, "ffn": 128}
SHAPE = Shape("llava", 384, max_length=128, vision=TOWER, **SIZES)


def picture(caption: str, shift: tuple[int, int] = (1, 1)) -> Image.Image:
    """12 pixels of a thing, two halves of a black field, moved by up to two pixels."""
    colour, form, side = caption.split()
    image = Image.new("RGB", (32, 16), "black")
    x, y = (1 if side == "left" else 17) + shift[0], 1 + shift[1]
    boxes = {
        "square": [(x, y, x + 11, y + 11)],
        "bar": [(x, y + 4, x + 11, y + 7)],
        "cross": [(x + 4, y, x + 7, y + 11), (x, y + 4, x + 11, y + 7)],
    }
    for box in boxes[form]:
        ImageDraw.Draw(image).rectangle(box, fill=colour)
    return image


def write_rows(
    path: Path, captions: Iterable[str], shifts: Sequence[tuple[int, int]] = ((1, 1),)
) -> Path:
    """A picture for each caption and shift beside the file, whose rows ask for the caption."""
    rows = []
    for caption, shift in itertools.product(captions, shifts):
        name = f"{caption}{shift}.png".replace(" ", "")
        picture(caption, shift).save(path.parent / name)
        rows.append({"image": name, "prompt": "<image>", "answer": caption})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def untrained(folder: Path) -> Path:
    """A model of 0.2 million weights with its processor."""
    tokenizer = add_image_token(train_tokenizer(CAPTIONS * 50, vocab_size=320))
    build(SHAPE, tokenizer).save_pretrained(folder)
    processor(SHAPE, tokenizer).save_pretrained(folder)
    return folder
