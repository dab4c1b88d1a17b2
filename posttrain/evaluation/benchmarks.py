"""The benchmarks: what a row asks, what its gold answer is, which reward judges, which templates.

A template is how a question is put; every benchmark has several, because a score under one of them
is in part a score of the template. ``{question}`` is the row's. Rewards are those of RL, so gold
answers and refusals to judge mean the same here and there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import UsageError
from rewards import did_you_mean

Row = Mapping[str, Any]

MATH_TEMPLATES = {
    "boxed": "{question}\n\nReason step by step, and put your final answer within \\boxed{{}}.",
    "answer_is": "{question}\n\nThink it through, then end with: The answer is <answer>.",
    "hash": "Question: {question}\nWork it out. On the last line write #### and the answer.",
}
CODE_TEMPLATES = {
    "complete": "Complete this Python function. Answer with one code block that holds all of it."
    "\n\n```python\n{question}\n```",
    "write": "{question}\n\nWrite the whole function in one ```python block.",
    "expert": "You write correct Python. Solve this and show only the finished code in one "
    "```python block:\n\n{question}",
}
PLAIN_TEMPLATES = {"plain": "{question}"}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One data set of problems."""

    name: str
    file: str  # its usual name in a data folder
    hub: tuple[str, str | None, str]  # data set, subset, split
    question: Callable[[Row], str]
    answer: Callable[[Row], Any]
    reward: str
    templates: Mapping[str, str] = field(default_factory=lambda: MATH_TEMPLATES)
    columns: Callable[[Row], Mapping[str, Any]] = lambda row: {}
    votes: bool = True  # a final answer can be compared between samples, so there is maj@k


def _column(*names: str) -> Callable[[Row], Any]:
    """The first of these columns that the row has; data sets call them differently."""

    def read(row: Row) -> Any:
        for name in names:
            if row.get(name) is not None:
                return row[name]
        raise KeyError(f"none of the columns {', '.join(names)}")

    return read


def _svamp(row: Row) -> str:
    return f"{_column('Body', 'body')(row).rstrip('.')}. {_column('Question', 'question')(row)}"


def _asdiv_answer(row: Row) -> str:
    """'9 (apples)' -> '9'."""
    return str(_column("answer")(row)).partition("(")[0].strip()


def _humaneval_tests(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in ("test", "entry_point", "prompt")}


def _mbpp_tests(row: Row) -> dict[str, Any]:
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    return {"test_list": row["test_list"], "test_setup_code": setup}


def _mbpp_question(row: Row) -> str:
    return f"{_column('prompt', 'text')(row)}\nIt must pass: {row['test_list'][0]}"


def _harmful(row: Row) -> dict[str, Any]:
    """Labelled by ``harmful``, true or false, or as XSTest is: safe or unsafe."""
    label = _column("harmful", "label")(row)
    return {"harmful": {"unsafe": True, "safe": False}.get(label, label)}


def _math(name: str, hub: tuple[str, str | None, str], file: str = "") -> Benchmark:
    return Benchmark(
        name,
        file or f"{name}.jsonl.gz",
        hub,
        _column("problem", "question", "input", "Problem"),
        _column("answer", "solution", "target", "Answer"),
        "math",
    )


MGSM_LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")

_ALL = [
    Benchmark(
        "gsm8k",
        "gsm8k_test.jsonl.gz",
        ("openai/gsm8k", "main", "test"),
        _column("question"),
        _column("answer"),
        "gsm8k",
    ),
    _math("math", ("DigitalLearningGmbH/MATH-lighteval", None, "test")),
    _math("math500", ("HuggingFaceH4/MATH-500", None, "test")),
    _math("aime24", ("HuggingFaceH4/aime_2024", None, "train")),
    _math("aime25", ("math-ai/aime25", None, "test")),
    _math("minerva_math", ("math-ai/minervamath", None, "test")),
    _math("mawps", ("mwpt5/MAWPS", None, "test")),
    Benchmark(
        "svamp",
        "svamp.jsonl.gz",
        ("ChilleD/SVAMP", None, "test"),
        _svamp,
        _column("Answer", "answer"),
        "math",
    ),
    Benchmark(
        "asdiv",
        "asdiv.jsonl.gz",
        ("EleutherAI/asdiv", None, "validation"),
        lambda row: f"{row['body']} {row['question']}",
        _asdiv_answer,
        "math",
    ),
    Benchmark(
        "humaneval",
        "humaneval.jsonl.gz",
        ("openai/openai_humaneval", None, "test"),
        _column("prompt"),
        lambda row: None,
        "code",
        CODE_TEMPLATES,
        lambda row: {"tests": _humaneval_tests(row)},
        votes=False,
    ),
    Benchmark(
        "mbpp",
        "mbpp.jsonl.gz",
        ("google-research-datasets/mbpp", "sanitized", "test"),
        _mbpp_question,
        lambda row: None,
        "code",
        CODE_TEMPLATES,
        lambda row: {"tests": _mbpp_tests(row)},
        votes=False,
    ),
    Benchmark(
        "ifeval",
        "ifeval.jsonl.gz",
        ("google/IFEval", None, "train"),
        _column("prompt"),
        lambda row: None,
        "ifeval",
        PLAIN_TEMPLATES,  # the instructions are about the form: a template would break them
        lambda row: {name: row[name] for name in ("instruction_id_list", "kwargs")},
        votes=False,
    ),
    Benchmark(
        "safety",
        "safety.jsonl.gz",
        ("walledai/XSTest", None, "test"),
        _column("prompt"),
        lambda row: None,
        "refusal",
        PLAIN_TEMPLATES,
        _harmful,
        votes=False,
    ),
    *(
        Benchmark(
            f"mgsm_{language}",
            f"mgsm_{language}.jsonl.gz",
            ("juletxara/mgsm", language, "test"),
            _column("question"),
            _column("answer_number", "answer"),
            "gsm8k",
        )
        for language in MGSM_LANGUAGES
    ),
]
BENCHMARKS = {one.name: one for one in _ALL}
GROUPS = {"mgsm": tuple(f"mgsm_{language}" for language in MGSM_LANGUAGES)}


def named(names: str) -> list[Benchmark]:
    """The benchmarks of a list with commas, groups spelled out. Raises UsageError."""
    found: dict[str, Benchmark] = {}
    for name in (part.strip() for part in names.split(",") if part.strip()):
        for member in GROUPS.get(name, (name,)):
            if member not in BENCHMARKS:
                near = did_you_mean(member, [*BENCHMARKS, *GROUPS])
                raise UsageError(f"there is no benchmark {member!r}.{near}")
            found[member] = BENCHMARKS[member]
    return list(found.values())
