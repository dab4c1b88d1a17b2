"""No text of a model makes a text reward raise, hang or leave the range of its values."""

import inspect
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Outcome
from rewards.format import format
from rewards.instructions import KINDS, instructions
from rewards.json_schema import json_schema
from rewards.language import language
from rewards.length import overlong
from rewards.matching import exact, fuzzy, regex
from rewards.repetition import compressibility, repetition
from rewards.tool_calls import tool_calls

SCHEMA = {
    "type": ["object", "array", "string"],
    "patternProperties": {"^(a+)+$": {"type": "string", "pattern": "(x+x+)+y"}},
    "additionalProperties": {"$ref": "#"},
    "items": {"anyOf": [{"$ref": "#"}, {"type": "number"}]},
    "uniqueItems": True,
}
SETTINGS = {
    "keywords": ["a", "("],
    "keyword": "aa",
    "frequency": 3,
    "relation": "at least",
    "forbidden_words": ["zz", "q*"],
    "letter": "a",
    "let_frequency": 3,
    "let_relation": "less than",
    "language": "de",
    "num_words": 5,
    "num_sentences": 2,
    "capital_frequency": 2,
    "capital_relation": "at least",
    "num_paragraphs": 2,
    "nth_paragraph": 1,
    "first_word": "x",
    "postscript_marker": "P.S.",
    "num_placeholders": 2,
    "num_bullets": 2,
    "num_highlights": 2,
    "section_spliter": "Section",
    "num_sections": 2,
    "prompt_to_repeat": "Say hi",
    "end_phrase": "The end",
}
EVERY_KIND = [
    {
        "id": name,
        "kwargs": {
            key: SETTINGS[key] for key in inspect.signature(verify).parameters if key in SETTINGS
        },
    }
    for name, verify in KINDS.items()
]
REWARDS = {
    "exact": lambda text: exact(text, ["Paris", 4]),
    "exact in a tag": lambda text: exact(text, "Paris", tag="answer"),
    "fuzzy": lambda text: fuzzy(text, "the quick brown fox " * 50),
    "regex": lambda text: regex(text, r"(\d+)\s*=\s*(\d+)"),
    "json_schema": lambda text: json_schema(text, SCHEMA),
    "format": lambda text: format(text, answer_tag="answer"),
    "overlong": lambda text: overlong(text, 10, 5, tokenizer=len),
    "repetition": lambda text: repetition(text),
    "compressibility": lambda text: compressibility(text),
    "language": lambda text: language(text, "de"),
    "tool_calls": lambda text: tool_calls(text, (), [{"name": "time", "arguments": {"a": 1}}]),
    "instructions": lambda text: instructions(text, EVERY_KIND),
}


def repeated(text, size=100_000):
    return text * (size // len(text))


NASTY = {
    "one letter": repeated("a"),
    "one word": repeated("ab "),
    "one word and an end": repeated("ab ") + "!",
    "lines": repeated("\n"),
    "empty lines": repeated("\n \n"),
    "stops": repeated("."),
    "stops and an end": repeated(".") + "a",
    "stops and spaces": repeated(". "),
    "ellipses": repeated("... a "),
    "quotes": repeated('."'),
    "stars": repeated("*"),
    "a star and an end": "*" + repeated("a"),
    "stars and letters": repeated("*a"),
    "starred lines": repeated("*a\n"),
    "double stars": repeated("**a"),
    "dividers": repeated("***"),
    "brackets": repeated("["),
    "brackets and letters": repeated("[a"),
    "deep list": repeated("[", 50_000) + repeated("]", 50_000),
    "deep object": repeated('{"a":'),
    "long number": repeated("9"),
    "numbers": "[" + repeated("1,") + "1]",
    "distinct numbers": "[" + ",".join(map(str, range(18_000))) + "]",
    "objects": "[" + repeated('{"a":"xxxx"},') + "1]",
    "long string": '"' + repeated("x") + '"',
    "pattern property": '{"' + repeated("a") + '!": "x"}',
    "angles": repeated("<"),
    "double angles": repeated("<<"),
    "tags": repeated("<think>"),
    "closed tags": repeated("<think></think>"),
    "answers": repeated("<answer>x</answer>"),
    "calls": repeated("<tool_call>{}</tool_call>"),
    "open calls": repeated("<tool_call>"),
    "fences": repeated("```"),
    "fenced lines": repeated("```\n"),
    "backticks": repeated("`a"),
    "dollars": repeated("$"),
    "dollars and letters": repeated("$$a"),
    "display": repeated("\\["),
    "display and letters": repeated("\\[a"),
    "inline": repeated("\\("),
    "commands": repeated("\\a"),
    "bullets": repeated("- "),
    "sections": repeated("Section 1 "),
    "postscripts": repeated("P.S.\n"),
    "capitals": repeated("A "),
    "marks": repeated("\u0301"),
    "marks out of order": "a" + repeated("\u0315\u0300"),
    "marked letters": repeated("a\u0315\u0300"),
    "ligature of 18 letters": repeated("\ufdfa"),
    "han": repeated("字"),
    "thai": repeated("กำ"),
    "emoji": repeated("👩‍👩‍👧"),
    "surrogates": repeated("\ud800"),
    "nuls": repeated("\0"),
    "right to left": repeated("\u202e"),
    "separators": repeated("\u2028\x85\r"),
    "sharp s": repeated("ß"),
    "dotted i": repeated("İ"),
    "escapes": '"' + repeated("\\ud800") + '"',
    "sentences": repeated("This is it. Das ist es! "),
}


@pytest.mark.parametrize("name", REWARDS)
def test_a_hundred_thousand_characters_take_less_than_a_second(name):
    reward = REWARDS[name]
    reward("warm up: what is imported when it is used")
    slow = {}
    for what, text in NASTY.items():
        started = time.process_time()
        score = reward(text)
        spent = time.process_time() - started
        assert score.outcome is not Outcome.ERROR, what
        assert score.value is not None and -1.0 <= score.value <= 1.0, what
        if spent > 1.0:
            slow[what] = spent
    assert slow == {}


TAGS = ["<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>"]
MARKS = ["```json\n", "```", "***", "<<", ">>", "[", "]", "}", ":", '"', "\\[", "$", "*", "- "]
BITS = ['{"name": "time"', "P.S. ", "\n\n", ". ", ", ", "Section 1", "aa", "4", "Paris"]
ODD = ["\\ud800", "\ud800", "\0", "İ", "字", "\u0301"]
PIECES = st.sampled_from([*TAGS, *MARKS, *BITS, *ODD])
TEXT = st.text(max_size=60) | st.lists(PIECES | st.text(max_size=4), max_size=25).map("".join)


@pytest.mark.parametrize("name", REWARDS)
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_any_text_is_judged(name, text):
    score = REWARDS[name](text)
    assert score.value is not None and -1.0 <= score.value <= 1.0
    assert (score.outcome is Outcome.CORRECT) == (score.value == REWARDS_TOP.get(name, 1.0))


REWARDS_TOP = {"overlong": 0.0, "repetition": 0.0, "compressibility": 0.0}


@settings(max_examples=200, deadline=None)
@given(text=TEXT, loose=st.booleans())
def test_loose_is_never_stricter_than_strict(text, loose):
    strict = instructions(text, EVERY_KIND).parts
    loosely = instructions(text, EVERY_KIND, loose=True).parts
    assert all(loosely[name] >= followed for name, followed in strict.items())
