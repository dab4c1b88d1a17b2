"""The 25 instructions of IFEval, each with answers that follow it and answers that do not."""

import asyncio

import pytest

import rewards
from rewards import Case, Outcome, UsageError
from rewards.instructions import KINDS, ifeval, instructions
from rewards.instructions.kinds import holds
from rewards.instructions.wording import count_sentences
from rewards.registry import check_row

ENGLISH = "the weather is nice today and we are going for a walk"
TABLE = [
    # identifier, settings, follows, does not follow
    ("keywords:existence", {"keywords": ["Rain", "sun"]}, "sunny RAINS", "rain"),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "at least"},
        "Cat, cat.",
        "a cat",
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["cat", "c++"]}, "category c", "A Cat!"),
    ("keywords:forbidden_words", {"forbidden_words": ["c++"]}, "c and cc", "use c++ now"),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": "less than"},
        "Eel",
        "Eele",
    ),
    ("language:response_language", {"language": "de"}, "Das Wetter ist heute sehr schön.", ENGLISH),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        "two words",
        "now three words",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "One. Two",
        "Dr. One",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb\n***", "a\n\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***a***b", "a******b"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weather"},
        'a\n\n"weather," he said',
        "weather\n\nis",
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "a\nP. S. b", "a P.S. b"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "a\n**P.P.S** b", "a\nP.P.S"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b c]", "[a] []"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n  - b\n**c**", "* a"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "- a\n-\n", "- a\n- b"),
    ("detectable_format:title", {}, "a\n<<joy>>\nb", "<< >>"),
    ("detectable_format:title", {}, "x <<a < b>>", "<<a\nb>>"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    (
        "detectable_format:constrained_response",
        {},
        "I think: My answer is maybe.",
        "My answer is yes. My answer is no.",
    ),
    (
        "detectable_format:constrained_response",
        {"options": ["left", "right"]},
        "go left",
        "go left or right",
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "*a* **b c**",
        "*a* * * ****",
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2",
        "Section one\nSubSection 1\nSection 2",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say  Hi"}, "say hi\nHi.", "say hi"),
    ("combination:two_responses", {}, "a\n******\nb", "a\n******\na"),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH.upper() + "s"),
    ("change_case:english_capital", {}, "YES", "ДА"),
    ("change_case:english_lowercase", {}, ENGLISH, ENGLISH.capitalize()),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "GO ON now",
        "Go ON 22",
    ),
    ("startend:end_checker", {"end_phrase": "Is that all?"}, 'So: "is that ALL?"\n', "is that all"),
    ("startend:quotation", {}, '"a"\n', '"a" b'),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), TABLE)
def test_each_instruction(name, kwargs, good, bad):
    wanted = [{"id": name, "kwargs": kwargs}]
    followed, broken = instructions(good, wanted), instructions(bad, wanted)
    assert (followed.value, followed.outcome) == (1.0, Outcome.CORRECT)
    assert (broken.value, broken.outcome) == (0.0, Outcome.WRONG)
    assert (followed.parts, broken.parts) == ({name: 1.0}, {name: 0.0})
    assert broken.detail == f"not followed: {name}"


def test_the_table_has_every_instruction():
    assert {name for name, *_ in TABLE} == set(KINDS)
    assert len(KINDS) >= 25


@pytest.mark.parametrize(
    ("relation", "counts"),
    [
        ("at least", [20, 21, 22]),
        ("more than", [21, 22]),
        ("at most", [18, 19, 20]),
        ("less than", [18, 19]),
        ("exactly", [20]),
        ("around", [18, 19, 20, 21, 22]),
    ],
)
def test_relations(relation, counts):
    assert [n for n in range(18, 23) if holds(n, relation, 20)] == counts


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("", 0),
        ("...", 0),
        ("One. Two! Three?", 3),
        ("No stop", 1),
        ("Dr. Smith paid 2.50 dollars to J. R. Hart.", 1),
        ('He said "hi." Then he left.', 2),
        ("1. Apples are red.\n2. Pears are green.", 2),
        ("A heading\n\nA sentence.", 2),
        ("Wait... what? Yes... Now.", 3),
        ("今日は。元気。", 2),
        ("i am here. you are there.", 2),
        ("Really?! Yes.", 2),
    ],
)
def test_sentences(text, n):
    assert count_sentences(text) == n


def test_all_must_be_followed_or_the_share_counts():
    wanted = [
        {"id": "punctuation:no_comma"},
        {"id": "keywords:existence", "kwargs": {"keywords": ["a"]}},
        {"id": "keywords:existence", "kwargs": {"keywords": ["z"], "keyword": None}},
    ]
    score = instructions("<think>z</think>a b", wanted)
    assert (score.value, score.outcome) == (0.0, Outcome.WRONG)
    assert score.parts == {
        "punctuation:no_comma": 1.0,
        "keywords:existence": 1.0,
        "keywords:existence#2": 0.0,
    }
    assert instructions("a b", wanted, partial=True).value == pytest.approx(2 / 3)
    assert instructions("a z", wanted).value == 1.0
    assert instructions("<think>a z", wanted).outcome is Outcome.UNPARSEABLE
    assert instructions(" \n", wanted).outcome is Outcome.UNPARSEABLE


@pytest.mark.parametrize(
    "text",
    [
        "Sure, here it is:\n" + ENGLISH,
        ENGLISH + "\nIs there anything else, Sir?",
        "Sure, here:\n" + ENGLISH + "\nBye, now!",
    ],
)
def test_loose_passes_over_the_first_and_last_line(text):
    wanted = [{"id": "punctuation:no_comma"}]
    assert instructions(text, wanted).value == 0.0
    assert instructions(text, wanted, loose=True).value == 1.0


def test_loose_passes_over_asterisks():
    wanted = [{"id": "startend:quotation"}]
    assert instructions('**"a"**', wanted).value == 0.0
    assert instructions('**"a"**', wanted, loose=True).value == 1.0


def test_rows_of_the_ifeval_data_set():
    row = {
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [
            {"num_words": None, "relation": None},
            {"num_words": 3.0, "relation": "at least", "keywords": None},
        ],
    }
    check_row(rewards.load("ifeval"), row)
    case = Case("p", "one two three", None, (), row)
    assert asyncio.run(rewards.apply("ifeval", case)).value == 1.0
    assert ifeval("one, two", **row).parts == {
        "punctuation:no_comma": 0.0,
        "length_constraints:number_words": 0.0,
    }
    assert rewards.required_columns(rewards.load("ifeval")) == {"instruction_id_list", "kwargs"}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "must be a list that is not empty"),
        ("no_comma", "must be a list"),
        (["punctuation:no_comma"], "an instruction must be"),
        (
            [{"id": "punctuation:no_coma"}],
            "unknown instruction .* Did you mean 'punctuation:no_comma'",
        ),
        ([{"id": 5}], "unknown instruction 5"),
        ([{"id": "startend:end_checker"}], "startend:end_checker needs the setting 'end_phrase'"),
        ([{"id": "startend:end_checker", "kwargs": {"end_phrase": " "}}], "must be text, got ' '"),
        ([{"id": "startend:quotation", "kwargs": {"x": 1}}], "has no setting 'x'"),
        ([{"id": "startend:quotation", "kwargs": [1]}], "must be an object"),
        (
            [{"id": "detectable_format:number_bullet_lists", "kwargs": {"num_bullets": 1.5}}],
            "num_bullets must be a whole number, got 1.5",
        ),
        (
            [{"id": "keywords:existence", "kwargs": {"keywords": "a"}}],
            "keywords must be a list of texts, got 'a'",
        ),
        (
            [
                {
                    "id": "length_constraints:number_words",
                    "kwargs": {"num_words": 3, "relation": "over"},
                }
            ],
            "relation is 'over', not one of at least",
        ),
        (
            [{"id": "language:response_language", "kwargs": {"language": "klingon"}}],
            "unknown language 'klingon'",
        ),
    ],
)
def test_a_bad_instruction_is_told_when_the_row_is_loaded(given, why):
    with pytest.raises(UsageError, match=f"reward 'instructions': .*{why}"):
        check_row(rewards.load("instructions"), {"instructions": given})
