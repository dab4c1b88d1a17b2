"""A model that sees: what each stage trains, tiles, and an answer that only the picture holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image, ImageDraw

from pretrain.errors import UsageError
from pretrain.models import Shape, VisionShape, build
from pretrain.models.vision import add_image_token, processor, set_stage, take_language_model
from pretrain.tokenizer import train_tokenizer

COLOURS, SIDES = ("red", "green", "blue", "white"), ("left", "right")
CAPTIONS = [f"{colour} {side}" for colour in COLOURS for side in SIDES]
TOWER = VisionShape(64, 2, 1, 128, image_size=16, patch_size=8, grids=((1, 2), (2, 1)))
SIZES = {"width": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 32, "ffn": 128}
SHAPE = Shape("llava", 320, max_length=128, vision=TOWER, **SIZES)


def picture(caption: str) -> Image.Image:
    """A square of that colour on that side of a black field."""
    colour, side = caption.split()
    image = Image.new("RGB", (32, 16), "black")
    x = 1 if side == "left" else 17
    ImageDraw.Draw(image).rectangle((x, 2, x + 13, 13), fill=colour)
    return image


class Seeing(NamedTuple):
    model: Any
    processor: Any
    losses: dict[int, list[float]]
    moved: dict[int, set[str]]  # what each stage changed, by the first names of the parameters


def inputs(seeing: Any, images: list[Image.Image], captions: list[str]) -> dict[str, Any]:
    texts = [f"<image>{caption}" for caption in captions]
    return dict(seeing(images=images, text=texts, return_tensors="pt", padding=True))


def labels_of(reader: Any, batch: dict[str, Any]) -> torch.Tensor:
    ids = batch["input_ids"]
    ignored = (ids == reader.image_token_id) | (ids == reader.tokenizer.pad_token_id)
    return ids.masked_fill(ignored, -100)


def part(name: str) -> str:
    return name.split(".")[1] if name.startswith("model.") else name.split(".")[0]


@pytest.fixture(scope="module")
def seeing() -> Seeing:
    tokenizer = add_image_token(train_tokenizer([*CAPTIONS] * 50, vocab_size=280))
    model, reader = build(SHAPE, tokenizer), processor(SHAPE, tokenizer)
    batch = inputs(reader, [picture(caption) for caption in CAPTIONS], CAPTIONS)
    losses: dict[int, list[float]] = {1: [], 2: []}
    moved = {}
    for stage, steps, rate in ((1, 30, 1e-2), (2, 60, 3e-3)):
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        optimizer = torch.optim.AdamW(set_stage(model, stage), lr=rate)
        for _ in range(steps):
            loss = model(**batch, labels=labels_of(reader, batch)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[stage].append(loss.item())
        after = model.named_parameters()
        moved[stage] = {part(name) for name, new in after if not torch.equal(new, before[name])}
    return Seeing(model, reader, losses, moved)


def caption_of(seeing: Seeing, image: Image.Image) -> str:
    batch = dict(seeing.processor(images=[image], text=["<image>"], return_tensors="pt"))
    with torch.no_grad():
        ids = seeing.model.generate(**batch, max_new_tokens=9, do_sample=False)
    new = ids[0, batch["input_ids"].shape[1] :]
    text = seeing.processor.tokenizer.decode(new)
    return next((one for one in CAPTIONS if text.startswith(one)), text)


def test_each_stage_trains_its_own_parts(seeing: Seeing) -> None:
    assert seeing.moved[1] == {"multi_modal_projector", "image_newline"}
    assert seeing.moved[2] == {"multi_modal_projector", "image_newline", "language_model"}
    assert seeing.losses[1][-1] < seeing.losses[1][0]
    assert seeing.losses[2][-1] < 0.2


def test_it_says_what_the_picture_shows_and_only_the_picture_can_tell(seeing: Seeing) -> None:
    assert [caption_of(seeing, picture(caption)) for caption in CAPTIONS] == CAPTIONS
    black = {caption_of(seeing, Image.new("RGB", (32, 16), "black")) for _ in CAPTIONS}
    assert len(black) == 1  # without the square there is one answer for all: 1 in 8 right


def test_a_caption_of_another_picture_is_unlikely(seeing: Seeing) -> None:
    def loss(captions: list[str]) -> float:
        batch = inputs(seeing.processor, [picture(caption) for caption in CAPTIONS], captions)
        with torch.no_grad():
            return float(seeing.model(**batch, labels=labels_of(seeing.processor, batch)).loss)

    assert loss([*CAPTIONS[2:], *CAPTIONS[:2]]) > loss(CAPTIONS) + 1.0


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        # one view of 2 x 2 patches, then 2 high x 4 wide of tiles, each row with its end
        ((32, 16), 4 + 2 * (4 + 1)),
        ((16, 32), 4 + 4 * (2 + 1)),
        # twice as wide again: half of the height is padding, which is cut off
        ((64, 16), 4 + 2 * (4 + 1)),
    ],
)
def test_a_picture_is_cut_into_the_tiles_that_fit_it(
    seeing: Seeing, size: tuple[int, int], tokens: int
) -> None:
    batch = seeing.processor(
        images=[Image.new("RGB", size, "red")], text=["<image>"], return_tensors="pt"
    )
    assert int((batch["input_ids"] == seeing.processor.image_token_id).sum()) == tokens
    assert batch["pixel_values"].shape == (1, 3, 3, 16, 16)  # the whole, then two tiles
    assert batch["pixel_values"][0, 0].amax(dim=(1, 2)).tolist() == pytest.approx([1, -1, -1])


def test_the_folder_is_read_by_the_auto_classes(seeing: Seeing, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    seeing.model.save_pretrained(tmp_path)
    seeing.processor.save_pretrained(tmp_path)
    model, reader = (
        one.from_pretrained(tmp_path) for one in (AutoModelForImageTextToText, AutoProcessor)
    )
    again = Seeing(model, reader, {}, {})
    assert caption_of(again, picture("blue right")) == "blue right"


def test_a_trained_language_model_is_put_in() -> None:
    language = build(Shape("qwen3", 280, max_length=128, **SIZES), seed=7)
    model = build(SHAPE, seed=1)
    image_row = model.lm_head.weight[300].clone()
    take_language_model(model, language)
    ids = torch.tensor([[5, 9, 2]])
    with torch.no_grad():
        theirs, ours = language(input_ids=ids).logits, model(input_ids=ids).logits[..., :280]
    assert torch.equal(theirs, ours)
    assert torch.equal(model.lm_head.weight[300], image_row)
    with pytest.raises(UsageError, match="q_proj"):
        take_language_model(model, build(Shape("qwen3", 280, **(SIZES | {"heads": 4}))))


def test_what_cannot_see_is_refused() -> None:
    plain = train_tokenizer(CAPTIONS * 50, vocab_size=280)
    with pytest.raises(UsageError, match="no <image> token"):
        build(SHAPE, plain)
    with pytest.raises(UsageError, match="no vision tower"):
        processor(Shape("qwen3", 320, **SIZES), plain)
    with pytest.raises(UsageError, match="no stage 3"):
        set_stage(build(SHAPE), 3)
