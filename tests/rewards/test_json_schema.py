"""JSON that a model wrote: what is read, and what a schema says of it."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewards
from rewards import Outcome, UsageError, json_text
from rewards.json_schema import json_schema
from rewards.registry import check_row

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "tags": {"type": "array", "minItems": 1}},
    "required": ["x"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "left": {"$ref": "#/$defs/node"}},
            "required": ["name"],
        }
    },
}


@pytest.mark.parametrize(
    ("completion", "value", "outcome"),
    [
        ('{"x": 1}', 1.0, Outcome.CORRECT),
        ('<think>{"x": "a"}</think>\n {"x": 1, "tags": [0]}\n', 1.0, Outcome.CORRECT),
        ('```json\n{"x": 1}\n```', 1.0, Outcome.CORRECT),
        ('```\n{"x": 1}\n```', 1.0, Outcome.CORRECT),
        ('{"x": 1.0}', 1.0, Outcome.CORRECT),  # an integer, as the standard has it
        ('{"x": 1.5}', 0.0, Outcome.WRONG),
        ('{"x": true}', 0.0, Outcome.WRONG),
        ('{"x": 1, "tags": []}', 0.0, Outcome.WRONG),
        ('{"x": 1, "y": 2}', 0.0, Outcome.WRONG),
        ("{}", 0.0, Outcome.WRONG),
        ("null", 0.0, Outcome.WRONG),
        ('{"x": 1} is it', 0.0, Outcome.UNPARSEABLE),
        ('Here: ```json\n{"x": 1}\n```', 0.0, Outcome.UNPARSEABLE),
        ('{"x": 1', 0.0, Outcome.UNPARSEABLE),
        ("{'x': 1}", 0.0, Outcome.UNPARSEABLE),
        ("", 0.0, Outcome.UNPARSEABLE),
    ],
)
def test_an_answer_against_a_schema(completion, value, outcome):
    for schema in (POINT, json.dumps(POINT)):
        score = json_schema(completion, schema)
        assert (score.value, score.outcome) == (value, outcome)


def test_what_is_wrong_is_told():
    assert json_schema('{"x": "a"}', POINT).detail == "x breaks properties/x/type"
    assert "the same key is there twice" in json_schema('{"x": 1, "x": 2}', POINT).detail


def test_a_fence_may_be_forbidden_and_a_tag_asked_for():
    assert json_schema('```json\n{"x": 1}\n```', POINT, fenced=False).outcome is Outcome.UNPARSEABLE
    assert json_schema('so <out>{"x": 1}</out>', POINT, tag="out").value == 1.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("NaN", "NaN is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ("1e999", "out of range"),
        ("1" * 5000, "4300 digits"),
        ("[" * 101 + "]" * 101, "deeper than 100 levels"),
        ("[" * 100_000, "deeper than 100 levels"),
        ('{"a":' * 100_000, "deeper than 100 levels"),
        ('{"a": 1, "a": 1}', "the same key is there twice"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('"\ud800"', "half of a surrogate pair"),
        (" " * 1_000_001, "longer than 1000000 characters"),
        ("", "Expecting value"),
    ],
)
def test_what_is_not_read_as_json(text, why):
    with pytest.raises(ValueError, match=why):
        json_text.parse(text)


def test_what_is_read_as_json():
    deep = "[" * 99 + "[0]" + "]" * 99
    assert json_text.parse(deep) == json.loads(deep)
    assert json_text.parse('{"a": [1, 2.5, null, true, "\\ud83d\\ude00"]}') == {
        "a": [1, 2.5, None, True, "😀"]
    }


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        ("1", 1, False),
        (None, False, False),
        ({"a": 1, "b": [True]}, {"b": [True], "a": 1.0}, True),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ([1, 2], [2, 1], False),
        ([], {}, False),
        (10**20, 10**20 + 1, False),
    ],
)
def test_json_equality(left, right, equal):
    assert json_text.same(left, right) is equal
    assert json_text.same(right, left) is equal


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "strin"}, "not valid"),
        ({"pattern": "("}, "not valid"),
        ("{", "Expecting"),
        (5, "must be an object, got 5"),
        (None, "must be an object, got None"),
        ({"$ref": "http://127.0.0.1:9/schema"}, "Retrieval is disabled"),
        ({"$ref": "file:///etc/hostname"}, "Retrieval is disabled"),
        ({"properties": {"a": {"$ref": "other.json"}}}, "not valid"),
    ],
)
def test_a_bad_schema_is_told_when_the_row_is_loaded(schema, why):
    with pytest.raises(UsageError, match=f"reward 'json_schema': .*{why}"):
        check_row(rewards.load("json_schema"), {"schema": schema})
    with pytest.raises(UsageError, match=why):
        rewards.load("json_schema", schema=schema)


def test_patterns_of_a_schema_run_in_linear_time_or_are_refused():
    text = json.dumps("a" * 50_000 + "!")
    score = json_schema(text, {"pattern": "^(a+)+$"})
    assert (score.outcome, score.detail) == (Outcome.WRONG, "the top breaks pattern")
    for pattern in ("^(?=a)b", r"(a)\1"):
        with pytest.raises(UsageError, match="the schema is not valid"):
            rewards.load("json_schema", schema={"pattern": pattern})


def test_a_schema_that_refers_to_itself():
    assert json_schema('{"name": "a", "left": {"name": "b"}}', TREE).value == 1.0
    assert json_schema('{"name": "a", "left": {"left": {}}}', TREE).value == 0.0


@pytest.mark.parametrize("rule", ["allOf", "anyOf", "oneOf"])
def test_a_schema_with_many_ways_through_it_stays_quick(rule):
    again = {"items": {"$ref": "#"}, "minItems": 1}
    schema = {rule: [again, again, {"items": {"$ref": "#"}, "contains": True}]}
    started = time.process_time()  # 3 ** 99 ways, were they all tried
    assert json_schema("[" * 99 + "]" * 99, schema).value == 0.0
    assert time.process_time() - started < 1


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(value=VALUES, indent=st.none() | st.integers(0, 3), ascii_only=st.booleans())
def test_what_json_can_say_is_read_as_it_was_said(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert json_text.same(json_text.parse(text), value)
    assert json_schema(text, {"const": value}).value == 1.0
