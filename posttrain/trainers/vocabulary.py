"""Whether a tokenizer belongs to a model, and how tokens are added to both.

A new token starts at the mean of the embeddings of related words, in the input and, where it is
not tied to it, in the output matrix: a random row would first have to be learnt out of. It is
ordinary text when decoded, like ``<think>``: rewards read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import UsageError
from posttrain.trainers.sft_settings import SftSettings
from posttrain.trainers.training import check_checkpoint, load_tokenizer

Starts = dict[int, list[list[int]]]  # id of a new token -> ids of each related word


def prepare_tokenizer(model: str | Path, settings: SftSettings) -> tuple[Any, Starts]:
    """The tokenizer to train with, and where its new tokens start.

    Raises UsageError for a folder that is no checkpoint, a tokenizer of another model, one without
    a chat template, or a new token that can't be added.
    """
    check_checkpoint(model)
    tokenizer = load_tokenizer(settings.tokenizer or model)
    _check_belongs(tokenizer, model, settings.tokenizer)
    if settings.chat_template:
        tokenizer.chat_template = _read(settings.chat_template)
    if not tokenizer.chat_template:
        raise UsageError(
            f"the tokenizer of {settings.tokenizer or model} has no chat template: set "
            "chat_template to a file with one"
        )
    return tokenizer, _add_tokens(tokenizer, settings.new_tokens)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read the chat template {path}: {error}") from error


def _check_belongs(tokenizer: Any, model: str | Path, other: str) -> None:
    from transformers import AutoConfig

    vocabulary = tokenizer.get_vocab()
    rows = AutoConfig.from_pretrained(str(model)).get_text_config().vocab_size
    largest = max(vocabulary.values())
    if largest >= rows:
        raise UsageError(
            f"the tokenizer of {other or model} does not belong to the model: it has ids up to "
            f"{largest}, the model's embedding has {rows} rows (new_tokens adds tokens to both)"
        )
    if not other:
        return
    own = load_tokenizer(model).get_vocab()
    different = [token for token, number in own.items() if vocabulary.get(token) != number]
    if different:
        raise UsageError(
            f"the tokenizer {other} does not belong to the model {model}: {len(different)} of its "
            f"{len(own)} tokens have other ids there or none, {sorted(different)[:3]} among them"
        )


def _add_tokens(tokenizer: Any, new_tokens: Mapping[str, Sequence[str]]) -> Starts:
    from transformers import AddedToken

    vocabulary = tokenizer.get_vocab()
    related: dict[str, list[list[int]]] = {}
    for token, words in new_tokens.items():
        if token in vocabulary:
            raise UsageError(f"new_tokens: {token!r} is a token already")
        related[token] = [tokenizer.encode(word, add_special_tokens=False) for word in words]
        if not words or not all(related[token]):
            raise UsageError(f"new_tokens: {token!r} needs related words, got {list(words)}")
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in related])
    return {tokenizer.convert_tokens_to_ids(token): ids for token, ids in related.items()}


def add_embeddings(model: Any, starts: Starts) -> None:
    """Rows for new tokens, in place; a matrix that has room already keeps its size."""
    import torch

    if not starts:
        return
    needed = max(starts) + 1
    if needed > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(needed, mean_resizing=False)
    layers = {id(layer.weight): layer for layer in _ends(model)}  # one where they are tied
    with torch.no_grad():
        for layer in layers.values():
            for token, words in starts.items():
                means = [layer.weight[torch.tensor(ids)].mean(0) for ids in words]
                layer.weight[token] = torch.stack(means).mean(0)


def _ends(model: Any) -> list[Any]:
    """Input and output embedding."""
    return [
        layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer
    ]
