"""Decides what an import says of a loaded tokenizer: sizes, special tokens, round trip, templates.

Texts and the number of spare rows are those of ``pretrain.tokenizer_checks``, which judges folders
of the tokenizers library and refuses; here any tokenizer that transformers reads has its findings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.importing.report import ImportReport
from pretrain.tokenizer_checks import PROBES, spare_rows

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_PLAIN: dict[str, Any] = {"add_special_tokens": False}


def check_tokenizer(
    report: ImportReport, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> None:
    """Add the findings about it. ``config`` is that of the language model."""
    _sizes(report, len(tokenizer), config.vocab_size)
    _special_tokens(report, tokenizer, config)
    _round_trip(report, tokenizer)
    _chat_template(report, tokenizer, config)


def _sizes(report: ImportReport, tokens: int, rows: int) -> None:
    if tokens > rows:
        report.add(
            "vocabulary",
            "failed",
            f"the tokenizer has {tokens:,} tokens, the model {rows:,} rows: another model's "
            "tokenizer, or tokens were added without resizing the embedding",
        )
    elif rows - tokens > spare_rows(rows):
        report.add(
            "vocabulary",
            "note",
            f"{tokens:,} tokens, {rows:,} rows: {rows - tokens:,} rows are never used; is this the "
            "model's own tokenizer?",
        )
    else:
        report.add("vocabulary", "ok", f"{tokens:,} tokens, {rows:,} rows")


def _special_tokens(
    report: ImportReport, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> None:
    special = set(tokenizer.all_special_ids)
    outside = sorted(one for one in special if not 0 <= one < config.vocab_size)
    if outside:
        report.add(
            "special tokens",
            "failed",
            f"ids {outside} are outside of the model's {config.vocab_size:,} rows",
        )
        return
    named = {}
    for role in ("bos", "eos", "pad"):
        theirs = getattr(config, f"{role}_token_id", None)
        theirs = theirs if isinstance(theirs, list) else [] if theirs is None else [theirs]
        own = getattr(tokenizer, f"{role}_token_id")
        named[role] = own
        strangers = [one for one in theirs if one not in special]
        if strangers:
            what = [tokenizer.convert_ids_to_tokens(one) for one in strangers]
            foreign = role == "eos" and len(strangers) == len(theirs)
            report.add(
                f"{role} token",
                "failed" if foreign else "note",
                f"the model's {role} is {strangers}, which this tokenizer has as {what}, no "
                "special tokens" + (": another model's tokenizer" if foreign else ""),
            )
        elif theirs and own is not None and own not in theirs:
            report.add(f"{role} token", "note", f"{own} in the tokenizer, {theirs} in the config")
    found = ", ".join(f"{role} {token}" for role, token in named.items() if token is not None)
    report.add("special tokens", "ok" if named["eos"] is not None else "note", found or "none")


def _round_trip(report: ImportReport, tokenizer: PreTrainedTokenizerBase) -> None:
    lost, unknown = [], 0
    for sample in PROBES:
        ids = tokenizer(sample, **_PLAIN)["input_ids"]
        unknown += tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if back != sample:
            lost.append(f"{sample!r} comes back as {back!r}")
    if unknown == len(PROBES):  # the first of which is plain English
        report.add("round trip", "failed", f"it has no tokens for {PROBES[0]!r}")
    elif lost:
        report.add("round trip", "note", f"{len(lost)} of {len(PROBES)} samples: {lost[0]}")
    else:
        report.add("round trip", "ok", f"{len(PROBES)} samples come back as they were")


def _chat_template(
    report: ImportReport, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> None:
    import jinja2

    if not tokenizer.chat_template:
        report.add("chat template", "note", "none: a base model, to be prompted with plain text")
        return
    turns = [{"role": "user", "content": "What is 1 + 2?"}]
    try:
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        report.add("chat template", "failed", f"it cannot write a user's turn: {error}")
        return
    text = tokenizer.decode(ids)
    if max(ids) >= config.vocab_size or "What is 1 + 2?" not in text:
        report.add("chat template", "failed", f"it does not hold the user's text: {text!r}")
    else:
        report.add("chat template", "ok", repr(text))
