"""The tokens on which two forms of a model are compared, and the log-probs that are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.export.checkpoint import window_of

_TEXT = (
    "The quick brown fox jumps over the lazy dog. 12 + 34 = 46, and 7 * 8 = 56. "
    "def area(width, height): return width * height. Once upon a time, in a small town by the sea,"
)
_MOST_TOKENS = 64


def probe_of(tokenizer: Any, model: Any) -> Tensor:
    """[2, T]: a text, and tokens from anywhere in the vocabulary."""
    most = min(_MOST_TOKENS, window_of(model.config))
    text = tokenizer.encode(_TEXT, add_special_tokens=False)[:most]
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(len(tokenizer), model.get_input_embeddings().weight.shape[0])
    drawn = torch.randint(vocabulary, (len(text),), generator=generator)
    return torch.stack([torch.tensor(text), drawn])


@torch.inference_mode()
def logprobs(model: Any, probe: Tensor) -> Tensor:
    """All log-probs at all positions of the probe, [2, T, V], in float32."""
    logits = model(input_ids=probe.to(model.device), use_cache=False).logits
    return torch.log_softmax(logits.float(), -1).cpu()
