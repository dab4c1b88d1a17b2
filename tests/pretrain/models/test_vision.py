"""A model that sees: its tiles, a language model put in, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from pretrain.errors import UsageError
from pretrain.models import Shape, build
from pretrain.models.vision import add_image_token, processor, set_stage, take_language_model
from pretrain.tokenizer import train_tokenizer
from tests.pretrain.vision.drawings import CAPTIONS, SHAPE, SIZES


@pytest.fixture(scope="module")
def reader() -> Any:
    return processor(SHAPE, add_image_token(train_tokenizer(CAPTIONS * 50, vocab_size=280)))


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
    reader: Any, size: tuple[int, int], tokens: int
) -> None:
    batch = reader(images=[Image.new("RGB", size, "red")], text=["<image>"], return_tensors="pt")
    assert int((batch["input_ids"] == reader.image_token_id).sum()) == tokens
    assert batch["pixel_values"].shape == (1, 3, 3, 16, 16)  # the whole, then two tiles
    assert batch["pixel_values"][0, 0].amax(dim=(1, 2)).tolist() == pytest.approx([1, -1, -1])


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
