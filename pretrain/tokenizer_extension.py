"""Decides how tokens are added to a tokenizer and to the model that was trained with it.

A new token's row starts at the mean of related rows, in the input embedding and, where it is not
tied to it, in the output: a random row would first have to be learnt out of. Related are the words
that are given for it or else the pieces it was written with before, so that on the first day it
means about what they did. Matrices grow only where they have no room, and the model, its config and
the tokenizer are saved together, whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.base import save
from pretrain.errors import UsageError
from pretrain.new_folder import check_free
from pretrain.tokenizer_checks import check_belongs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Starts = dict[int, list[int]]  # id of a new token -> ids whose mean row it starts at


def add_tokens(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Mapping[str, Sequence[str]],
    *,
    special: bool = False,
) -> Starts:
    """Add tokens, in place; the values are the related words, none: the token's own pieces.

    ``special`` ones are left out of decoded text. Raises UsageError for a token there is already,
    or words of which nothing is left.
    """
    from transformers import AddedToken

    starts: dict[str, list[int]] = {}
    vocabulary = tokenizer.get_vocab()
    for token, words in tokens.items():
        if token in vocabulary or not token:
            raise UsageError(f"{token!r} is a token already" if token else "a token has no text")
        ids = [tokenizer.encode(word, add_special_tokens=False) for word in words or [token]]
        if not all(ids):
            raise UsageError(f"{token!r}: there is no token in one of {list(words)}")
        starts[token] = [number for word in ids for number in word]
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in starts])
    return {int(tokenizer.convert_tokens_to_ids(token)): ids for token, ids in starts.items()}


def start_embeddings(model: PreTrainedModel, starts: Starts) -> None:
    """Rows for the new ids, in place, at the means of the related rows."""
    import torch

    if not starts:
        return
    if (needed := max(starts) + 1) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(needed, mean_resizing=False)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    layers = {id(layer.weight): layer for layer in ends if layer is not None}
    with torch.no_grad():
        for layer in layers.values():  # one where they are tied
            before = layer.weight.clone()
            for number, ids in starts.items():
                layer.weight[number] = before[torch.tensor(ids)].float().mean(0).to(before.dtype)


def extend_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    tokens: Mapping[str, Sequence[str]],
    *,
    special: bool = False,
) -> Path:
    """A new checkpoint folder with the tokens added to model and tokenizer.

    Raises UsageError where the tokenizer in the folder is not the model's, or a token can't be
    added.
    """
    out = Path(out)
    check_free(out)
    check_belongs(checkpoint)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(checkpoint), local_files_only=True)
    starts = add_tokens(tokenizer, tokens, special=special)
    model = AutoModelForCausalLM.from_pretrained(
        str(checkpoint), local_files_only=True, dtype="auto"
    )
    start_embeddings(model, starts)
    added = {token: list(words) for token, words in tokens.items()}
    save(out, model, tokenizer, {"extended": str(checkpoint), "tokens": added, "special": special})
    return out
