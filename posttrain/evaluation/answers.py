"""Two models' answers to the same questions, side by side: to be compared by a judge or a person.

Answers come from a folder of ``posttrain eval`` (the first sample of each task; the benchmark, the
template and the task say which belong together), or from a file of JSON lines with ``prompt``
(text or messages) and ``completion``, where the prompt says it; ``id`` does where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.files import read as read_file
from posttrain.errors import UsageError
from rewards.answer_text import after_thinking


@dataclass(frozen=True, slots=True)
class Side:
    """One model's answers: question -> (prompt, answer)."""

    name: str
    answers: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Answered:
    """One question with both answers."""

    task: str
    prompt: str
    a: str
    b: str


def read_answers(path: Path, name: str | None = None) -> Side:
    """The answers of a folder or file; ``name`` is the model's, else the path's own.

    Raises UsageError for what holds none, or two to one question.
    """
    found: dict[str, tuple[str, str]] = {}
    for task, prompt, answer in _of_folder(path) if path.is_dir() else _of_file(path):
        if task in found:
            raise UsageError(f"{path}: two answers to {task[:80]!r}: give the rows an id each")
        found[task] = prompt, answer
    if not found:
        raise UsageError(f"{path} holds no answer")
    return Side(name or (path.name if path.is_dir() else path.name.partition(".")[0]), found)


def paired(a: Side, b: Side, limit: int = 0) -> list[Answered]:
    """The questions that both answered, in a's order; 0: all. Raises UsageError without one."""
    if a.name == b.name:
        raise UsageError(f"both models are called {a.name!r}: name them with --names A,B")
    shared = [task for task in a.answers if task in b.answers]
    if not shared:
        raise UsageError(f"{a.name} and {b.name} have no question in common")
    different = [task for task in shared if a.answers[task][0] != b.answers[task][0]]
    if different:
        raise UsageError(
            f"{a.name} and {b.name} were asked different things as {different[0][:80]!r} (and "
            f"{len(different) - 1} more): these are not the same tasks"
        )
    chosen = shared[:limit] if limit else shared
    return [Answered(task, *a.answers[task], b.answers[task][1]) for task in chosen]


def shown(completion: str) -> str:
    """The part of a completion that is its answer: what stands after the thinking."""
    return (after_thinking(completion) or "").strip()


def _of_file(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, row in enumerate(read_file(str(path))):
        prompt, answer = row.get("prompt"), row.get("completion")
        if isinstance(prompt, list):
            prompt = _dialogue(prompt)
        if not isinstance(prompt, str) or not isinstance(answer, str):
            raise UsageError(f"{path}, row {number}: an answer has prompt and completion, as text")
        yield str(row.get("id", prompt)), prompt, answer


def _of_folder(path: Path) -> Iterator[tuple[str, str, str]]:
    from posttrain.evaluation.results import read_evaluation
    from posttrain.storage.rollout_files import RolloutFiles

    benchmarks = read_evaluation(path)["benchmarks"]
    suites = [f"{name}/{one}" for name, by in benchmarks.items() for one in by["templates"]]
    files = RolloutFiles(path / "rollouts")
    for number, suite in enumerate(suites):
        for group in files.load_step(number) or ():
            first = group.rollouts[0]
            written = [i for i, m in enumerate(first.messages) if m["role"] == "assistant"]
            asked = first.messages[: written[-1]] if written else first.messages
            yield f"{suite} {group.prompt_index}", _dialogue(asked), first.text


def _dialogue(messages: Any) -> str:
    """One question as it is; several turns with who said what."""
    try:
        turns = [(str(m["role"]), str(m["content"])) for m in messages]
    except (TypeError, KeyError):
        raise UsageError(f"a message has role and content, got {messages!r:.100}") from None
    if len(turns) == 1:
        return turns[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in turns)
