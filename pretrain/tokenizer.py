"""Decides how text becomes tokens: byte-level BPE, one token per digit, a ChatML chat template.

Digits stay apart so that arithmetic is done column by column; an operator takes the blank on either
side with it, so that ``12 + 35`` is five tokens. Bytes are the alphabet, so every text survives a
round trip. ``<think>`` and ``</think>`` are single tokens but not *special* ones: rewards read them
in decoded text. The pad token is not the end token, so that no loss mask hides a real end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, PAD, TURN_START, TURN_END)
VISIBLE = ("<think>", "</think>")
ROLES = ("system", "user", "assistant", "tool")

# a digit; a word with the blank before it; an operator with the blanks on both sides; white space
_PIECES = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+ ?|\s+"

# The generation markers enclose exactly what the model has to write itself: the assistant's text
# and the token that ends its turn, not the header before it.
# Tools are told of and called as Hermes and Qwen do.
CHAT_TEMPLATE = """\
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if messages[0].role == 'system' -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}
{{- 'Tools:' -}}
{%- for tool in tools -%}{{- '\\n' + tool | tojson -}}{%- endfor -%}
{{- '\\nCall one so:\\n<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>' -}}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if not (tools and loop.first and message.role == 'system') -%}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('unknown role: ' ~ message.role) -}}
{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}
{{- message.content or '' -}}
{%- for call in message.tool_calls or [] -%}
{{- '\\n' if message.content or not loop.first else '' -}}
{{- '<tool_call>\\n{"name": ' + call.function.name | tojson + ', "arguments": ' -}}
{{- call.function.arguments | tojson + '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endgeneration -%}
{%- else -%}
{{- message.content + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int = 512, max_length: int = 512
) -> PreTrainedTokenizerFast:
    """Learn the merges from ``texts``. ``max_length`` is the window of the model it is for."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL) + len(VISIBLE)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size must be at least {smallest} (all bytes and the special tokens)"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *VISIBLE],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_with_roles(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=with_visible(tokenizer),
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def _with_roles(texts: Iterable[str]) -> Iterable[str]:
    """Role names belong to every conversation, so they are made frequent enough to be tokens."""
    for _ in range(100):
        yield from (f"{role}\n" for role in ROLES)
    yield from texts


def with_visible(tokenizer: Tokenizer, visible: Iterable[str] = VISIBLE) -> Tokenizer:
    """The same tokenizer, in which these tokens are ordinary text when it is decoded.

    The trainer can only keep a token whole by calling it special, and nothing but the written form
    of the tokenizer lets that be taken back.
    """
    written = json.loads(tokenizer.to_str())
    for token in written["added_tokens"]:
        token["special"] = token["content"] not in visible
    return type(tokenizer).from_str(json.dumps(written))
