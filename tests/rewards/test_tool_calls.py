"""Tool calls that were made against those that were expected."""

import asyncio
import json

import pytest

import rewards
from rewards import Case, Outcome, UsageError
from rewards.registry import check_row

WEATHER = {"name": "weather", "arguments": {"city": "Oslo", "days": 2}}
TIME = {"name": "time", "arguments": {}}


def hermes(*calls):
    return "".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>\n" for call in calls)


def judged(completion, expected, tool_calls=None, **settings):
    message = {"role": "assistant", "content": completion}
    if tool_calls is not None:
        message["tool_calls"] = tool_calls
    messages = ({"role": "user", "content": "p"}, message)
    reward = rewards.load("tool_calls", **settings)
    case = Case("p", completion, None, messages, {"expected_calls": expected})
    return asyncio.run(rewards.apply(reward, case))


@pytest.mark.parametrize(
    ("completion", "expected", "value"),
    [
        (hermes(WEATHER), [WEATHER], 1.0),
        ("<think>" + hermes(TIME) + "</think>I look." + hermes(WEATHER), [WEATHER], 1.0),
        (hermes(WEATHER, TIME), [WEATHER, TIME], 1.0),
        (hermes(TIME, WEATHER), [WEATHER, TIME], 0.0),
        (hermes(WEATHER, WEATHER), [WEATHER], 0.0),
        (hermes(WEATHER), [WEATHER, TIME], 0.0),
        (hermes(WEATHER), json.dumps([WEATHER]), 1.0),
        (hermes({"name": "weather", "arguments": {"days": 2.0, "city": "Oslo"}}), [WEATHER], 1.0),
        (hermes({"name": "weather", "arguments": {"days": "2", "city": "Oslo"}}), [WEATHER], 0.0),
        (hermes({"name": "weather", "arguments": {"city": "Oslo"}}), [WEATHER], 0.0),
        (hermes({"name": "Weather", **{"arguments": WEATHER["arguments"]}}), [WEATHER], 0.0),
        (hermes({"name": "time"}), [TIME], 1.0),
        ("It is noon.", [], 1.0),
        ("", [], 1.0),
        (hermes(TIME), [], 0.0),
        ("It is noon.", [TIME], 0.0),
    ],
)
def test_calls_in_the_text(completion, expected, value):
    score = judged(completion, expected)
    assert (score.value, score.outcome is Outcome.CORRECT) == (value, value == 1.0)


@pytest.mark.parametrize(
    "completion",
    [
        "<tool_call>{}</tool_call>",
        "<tool_call>[1]</tool_call>",
        "<tool_call>weather(Oslo)</tool_call>",
        '<tool_call>{"name": "time", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "time"}',
        '</tool_call>{"name": "time"}<tool_call>',
        '<tool_call>{"name": "a", "name": "time"}</tool_call>',
        '<tool_call>{"name": "time"} {"name": "time"}</tool_call>',
        hermes(TIME) * 200,
        '<tool_call>{"name": "time", "arguments": "' + "[" * 1000 + '"}</tool_call>',
    ],
)
def test_a_call_that_could_not_run_is_unparseable(completion):
    score = judged(completion, [TIME])
    assert (score.value, score.outcome) == (0.0, Outcome.UNPARSEABLE)


def test_calls_that_the_server_has_parsed():
    made = [{"id": "1", "type": "function", "function": {**TIME, "arguments": "{}"}}]
    assert judged("", [TIME], made).value == 1.0
    made.append({"function": {"name": "weather", "arguments": '{"days": 2, "city": "Oslo"}'}})
    assert judged("", [TIME, WEATHER], made).value == 1.0
    assert judged("", [TIME], [{"function": {"name": "time", "arguments": "{"}}]).value == 0.0


def test_any_order_and_partial_credit():
    assert judged(hermes(TIME, WEATHER), [WEATHER, TIME], ordered=False).value == 1.0
    # one of two matched in order: 2 * 1 / (2 + 2)
    assert judged(hermes(TIME, WEATHER), [WEATHER, TIME], partial=True).value == 0.5
    assert judged(hermes(TIME, TIME, TIME), [TIME], partial=True).value == 0.5  # 2 * 1 / (3 + 1)
    assert judged(hermes(WEATHER), [TIME], partial=True).value == 0.0
    wrong = {"name": "weather", "arguments": {"city": "Rome"}}
    score = judged(hermes(TIME, wrong), [TIME, WEATHER], ordered=False, partial=True)
    assert score.value == 0.5
    assert score.parts == {"made": 2.0, "matched": 1.0, "names": 2.0}
    assert judged(hermes(TIME, WEATHER, TIME), [TIME, TIME], partial=True).parts["matched"] == 2.0
    assert judged(hermes(TIME, TIME), [TIME, WEATHER], ordered=False).parts["matched"] == 1.0


@pytest.mark.parametrize(
    ("expected", "why"),
    [
        ("[", "Expecting value"),
        (None, "must be a list of calls, got None"),
        ({"name": "time"}, "must be a list of calls"),
        ([{"arguments": {}}], "a tool call needs a name, got None"),
        ([{"name": "time", "arguments": 5}], "the arguments of time must be an object, got 5"),
        (["time"], "a tool call must be an object, got 'time'"),
    ],
)
def test_bad_expectations_are_told_when_the_row_is_loaded(expected, why):
    with pytest.raises(UsageError, match=f"reward 'tool_calls': .*{why}"):
        check_row(rewards.load("tool_calls"), {"expected_calls": expected})
    check_row(rewards.load("tool_calls"), {"expected_calls": []})
