"""Tokenizers whose chat templates are built like those of known families, in wording of our own."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from pretrain.tokenizer import train_tokenizer

CHATML = """\
{%- for m in messages -%}
{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

# Trimmed contents, a begin token, tools in the system turn, a tool call instead of a text.
LLAMA3 = """\
{{- bos_token -}}
{%- set ns = namespace(rest=messages) -%}
{%- if tools or messages[0].role == 'system' -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' -}}
{%- if tools -%}{%- for t in tools -%}{{- t | tojson ~ '\\n' -}}{%- endfor -%}{%- endif -%}
{%- if messages[0].role == 'system' -%}
{{- messages[0].content | trim -}}{%- set ns.rest = messages[1:] -%}
{%- endif -%}{{- '<|eot_id|>' -}}
{%- endif -%}
{%- for m in ns.rest -%}
{%- if m.tool_calls -%}
{%- if m.tool_calls | length != 1 -%}{{- raise_exception('one tool call at a time') -}}{%- endif -%}
{%- set f = m.tool_calls[0].function -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{{- '{"name": "' ~ f.name ~ '", "parameters": ' ~ f.arguments | tojson ~ '}' ~ '<|eot_id|>' -}}
{%- else -%}
{%- set role = 'ipython' if m.role == 'tool' else m.role -%}
{{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' ~ m.content | trim ~ '<|eot_id|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}"""

# Thoughts only after the last question; an empty thought where there is none; calls in tags.
QWEN3 = """\
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}{%- for t in tools -%}{{- t | tojson ~ '\\n' -}}{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- set text = m.content -%}{%- set thought = m.reasoning_content | default('') -%}
{%- if '</think>' in text -%}
{%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if loop.index0 > ns.last and (loop.last or thought) -%}
{{- '<think>\\n' ~ thought ~ '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- text -}}
{%- for c in m.tool_calls or [] -%}
{{- '\\n<tool_call>\\n{"name": "' ~ c.function.name ~ '", "arguments": ' -}}
{{- c.function.arguments | tojson ~ '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif m.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' ~ m.content ~ '\\n</tool_response><|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and not enable_thinking -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}"""

# The system's words go into the first question; strict alternation; the assistant is the "model".
GEMMA = """\
{{- bos_token -}}
{%- set first = '' -%}{%- set rest = messages -%}
{%- if messages[0].role == 'system' -%}
{%- set first = messages[0].content ~ '\\n\\n' -%}{%- set rest = messages[1:] -%}
{%- endif -%}
{%- for m in rest -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('roles must alternate user/assistant/user/assistant') -}}
{%- endif -%}
{{- '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\\n' -}}
{{- (first if loop.first else '') ~ m.content | trim ~ '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"""

# No generation prompt; the system's words move to the last question; calls must stand alone.
MISTRAL = """\
{{- bos_token -}}
{%- set rest = messages -%}
{%- if messages[0].role == 'system' -%}{%- set rest = messages[1:] -%}{%- endif -%}
{%- set ns = namespace(turn=0) -%}
{%- for m in rest -%}
{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) -%}
{%- if (m.role == 'user') != (ns.turn % 2 == 0) -%}
{{- raise_exception('roles must alternate, apart from calls and their results') -}}
{%- endif -%}
{%- set ns.turn = ns.turn + 1 -%}
{%- endif -%}
{%- if m.role == 'user' -%}
{{- '[INST] ' -}}
{%- set later = rest[loop.index:] | selectattr('role', 'equalto', 'user') | list -%}
{%- if not later -%}
{%- if messages[0].role == 'system' -%}{{- messages[0].content ~ '\\n\\n' -}}{%- endif -%}
{%- endif -%}
{{- m.content ~ '[/INST]' -}}
{%- elif m.tool_calls -%}
{{- '[TOOL_CALLS] [' -}}
{%- for c in m.tool_calls -%}
{{- '{"name": "' ~ c.function.name ~ '", "arguments": ' ~ c.function.arguments | tojson ~ '}' -}}
{{- '' if loop.last else ', ' -}}
{%- endfor -%}{{- ']' ~ eos_token -}}
{%- elif m.role == 'assistant' -%}
{{- ' ' ~ m.content | trim ~ eos_token -}}
{%- else -%}
{{- '[TOOL_RESULTS] ' ~ m.content ~ '[/TOOL_RESULTS]' -}}
{%- endif -%}
{%- endfor -%}"""

# The prompt opens a thought; answers lose theirs; no line breaks between turns.
DEEPSEEK_R1 = """\
{{- bos_token -}}
{%- for m in messages if m.role == 'system' -%}{{- m.content -}}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '<｜User｜>' ~ m.content -}}
{%- elif m.role == 'assistant' -%}
{%- set text = m.content -%}
{%- if '</think>' in text -%}{%- set text = text.split('</think>')[-1] -%}{%- endif -%}
{{- '<｜Assistant｜>' ~ text ~ eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜><think>\\n' -}}{%- endif -%}"""

# Another end token in the middle than at the end; a channel that the model writes itself.
GPT_OSS = """\
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{{- '<|start|>assistant<|channel|>final<|message|>' ~ m.content -}}
{{- '<|return|>' if loop.last else '<|end|>' -}}
{%- else -%}
{{- '<|start|>' ~ m.role ~ '<|message|>' ~ m.content ~ '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"""

# The end of the text behind the last turn's end.
PHI = """\
{%- for m in messages -%}{{- '<|' ~ m.role ~ '|>\\n' ~ m.content ~ '<|end|>\\n' -}}{%- endfor -%}
{{- '<|assistant|>\\n' if add_generation_prompt else eos_token -}}"""

# Arguments of calls as text; tokens of its own around each call.
DEEPSEEK_V3 = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '<｜User｜>' ~ m.content -}}
{%- elif m.role == 'tool' -%}{{- '<tool_output>' + m.content + '</tool_output>' -}}
{%- elif m.tool_calls -%}
{{- '<｜Assistant｜><calls>' -}}
{%- for c in m.tool_calls -%}
{{- '<call>' + c.function.name + '<args>' + c.function.arguments + '</call>' -}}
{%- endfor -%}{{- '</calls>' ~ eos_token -}}
{%- else -%}{{- '<｜Assistant｜>' ~ m.content ~ eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜>' -}}{%- endif -%}"""

FAMILIES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "qwen3": QWEN3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "deepseek-r1": DEEPSEEK_R1,
    "gpt-oss": GPT_OSS,
    "phi": PHI,
    "deepseek-v3": DEEPSEEK_V3,
}
_TOKENS = (
    *("<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|end|>", "<|user|>"),
    *("<|assistant|>", "<|system|>", "<calls>", "<call>", "<args>", "</call>", "</calls>"),
    *("<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "[TOOL_CALLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "<｜User｜>", "<｜Assistant｜>"),
)


@cache
def _words() -> Any:
    tokenizer = train_tokenizer(["What is it? Paris. The answer is yes."] * 20, vocab_size=340)
    tokenizer.add_special_tokens({"additional_special_tokens": list(_TOKENS)})
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    return tokenizer


def tokenizer_of(template: str) -> Any:
    """A tokenizer with the template of a family, by its name, or with any other template."""
    own = copy.deepcopy(_words())
    own.chat_template = FAMILIES.get(template, template)
    return own
