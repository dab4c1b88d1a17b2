"""A reward for answers that must be JSON of a given shape.

The answer (after the thinking, or in ``tag``) is one JSON value and nothing else; a Markdown fence
around it is taken off unless ``fenced=False``. It is read by ``rewards.json_text``, with bounds on
size and depth, and validated by ``jsonschema_rs`` (drafts 4 to 2020-12), which judges each value by
each part of a schema once, so that a schema that refers to itself stays quick. Its patterns run in
linear time; one with look-around or a back-reference, which cannot, is an error of the schema. So
is a ``$ref`` to anywhere outside of it: nothing is ever fetched.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from rewards import json_text
from rewards.answer_text import answer_text
from rewards.registry import register
from rewards.score import Outcome, Score

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(?P<inside>.*)\n[ \t]*```", re.DOTALL | re.IGNORECASE)


def _check_schema(fields: Mapping[str, Any]) -> None:
    if "schema" in fields:
        _validator(fields["schema"])


@register("json_schema", settings=["tag", "fenced"], check=_check_schema)
def json_schema(
    completion: str,
    schema: Mapping[str, Any] | bool | str,
    tag: str = "",
    fenced: bool = True,
) -> Score:
    """1 when the answer is JSON that ``schema`` accepts; UNPARSEABLE, 0, when it is no JSON.

    ``schema`` is a mapping or JSON text (in Parquet and ``datasets`` text: Arrow gives the mappings
    of all rows the same keys). ``format`` is an annotation, as the standard has it.

    Can it be hacked? Yes, as far as the schema is loose: an empty list, empty strings, null where
    they are allowed. Ask for ``required``, ``minItems``, ``minLength``, ``enum`` and
    ``additionalProperties: false``. It says nothing about whether the content is true.
    """
    validator = _validator(schema)
    found = answer_text(completion, tag)
    if found is None:
        return Score(0.0, Outcome.UNPARSEABLE)
    if fenced:
        found = without_fence(found)
    try:
        value = json_text.parse(found)
    except ValueError as error:
        return Score(0.0, Outcome.UNPARSEABLE, detail=f"not JSON: {error}"[:300])
    if validator.is_valid(value):
        return Score(1.0, Outcome.CORRECT)
    return Score(0.0, Outcome.WRONG, detail=_broken_rule(schema, validator, value))


def without_fence(text: str) -> str:
    """What stands in a Markdown code fence that is the whole of ``text``, else ``text``."""
    match = _FENCE.fullmatch(text)
    return match["inside"] if match else text


def _broken_rule(schema: Any, validator: Any, value: Any) -> str:
    """The first rule that a value breaks, and where; not for a schema with references, where the
    search for it can take time exponential in the depth of the value.
    """
    import jsonschema_rs

    if "ref" in str(schema).lower():
        return "not as the schema has it"
    try:
        validator.validate(value)
    except jsonschema_rs.ValidationError as error:
        where = "/".join(map(str, error.instance_path))[:200] or "the top"
        return f"{where} breaks {'/'.join(map(str, error.schema_path))[:200]}"
    return ""


def _validator(schema: Any) -> Any:
    """The compiled schema of a row or setting. Raises ValueError for one that is none."""
    if isinstance(schema, str):
        schema = json_text.parse(schema)
    if not isinstance(schema, Mapping | bool):
        raise ValueError(f"the schema must be an object, got {schema!r:.80}")
    return _compiled(json.dumps(schema))


@functools.lru_cache(maxsize=256)
def _compiled(schema: str) -> Any:
    import jsonschema_rs

    try:
        return jsonschema_rs.validator_for(
            schema, offline=True, pattern_options=jsonschema_rs.RegexOptions()
        )
    except ValueError as error:  # includes its ValidationError
        told = getattr(error, "message", None) or str(error)
        raise ValueError(f"the schema is not valid: {told[:300]}") from error
