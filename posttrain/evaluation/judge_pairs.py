"""``posttrain judge-pairs``: a judge's votes on two models' answers, and the win rates they make.

Each pair is asked in both orders, and a verdict that the order changes is a tie
(``rewards.judge``). A pair without two verdicts has no vote; how many is told.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import RunError, UsageError
from rewards.judge.command import add_judge_options, load_judge

if TYPE_CHECKING:
    from posttrain.evaluation.answers import Answered, Side
    from rewards.judge.audit import Judged


def add_parser(commands: Any) -> None:
    """The command; nothing heavy is imported before it runs."""
    one = commands.add_parser("judge-pairs", help="a judge's votes on two models' answers")
    add_answers(one)
    add_judge_options(one)
    one.set_defaults(run=_judge_pairs)


def add_answers(parser: argparse.ArgumentParser) -> None:
    """The options that say whose answers, and where votes go."""
    parser.add_argument("a", type=Path, help="folder of posttrain eval, or JSON lines")
    parser.add_argument("b", type=Path, help="the same of the other model")
    parser.add_argument("--names", help="of the models, A,B (default: the files' names)")
    parser.add_argument("--limit", type=int, default=0, help="only the first questions")
    parser.add_argument("--out", type=Path, default=Path("votes.jsonl"), help="file of votes")


def read_sides(options: argparse.Namespace) -> tuple[Side, Side, list[Answered]]:
    """Both models' answers, and the pairs. Raises UsageError."""
    from posttrain.evaluation.answers import paired, read_answers

    names = options.names.split(",") if options.names else [None, None]
    if len(names) != 2 or "" in names:
        raise UsageError(f"--names are two names with a comma between, got {options.names!r}")
    a, b = read_answers(options.a, names[0]), read_answers(options.b, names[1])
    return a, b, paired(a, b, options.limit)


def _judge_pairs(options: argparse.Namespace) -> int:
    from posttrain.evaluation.answers import shown
    from posttrain.evaluation.win_rate import win_rate
    from posttrain.storage.jsonl import to_json
    from rewards.judge.audit import ask_all
    from rewards.judge.pairs import Pair

    a, b, pairs = read_sides(options)
    if options.out.exists():
        raise UsageError(f"{options.out} exists: choose another file with --out")
    judge = load_judge(options)
    judged = ask_all(judge, [Pair(one.prompt, one.a, one.b) for one in pairs])
    known = [i for i, one in enumerate(judged) if one.first.winner is not None]
    if not known:
        raise RunError("the judge gave no verdict on any pair")
    votes = [_vote(a, b, pairs[i], judged[i], options.model) for i in known]
    beside = options.out.with_name(options.out.name + ".new")
    beside.write_text("".join(to_json(vote) + "\n" for vote in votes))
    os.replace(beside, options.out)
    taken = [judged[i].first.value or 0.0 for i in known]
    lengths = [(len(shown(pairs[i].a)), len(shown(pairs[i].b))) for i in known]
    result = asdict(win_rate(taken, lengths)) | {
        "flipped": sum(judged[i].first.flipped for i in known) / len(known),
        "unjudged": len(pairs) - len(known),
    }
    _tell(a.name, b.name, result)
    print(json.dumps({"a": a.name, "b": b.name, "votes": str(options.out)} | result))
    return 0


def _vote(a: Side, b: Side, pair: Answered, judged: Judged, judge: str) -> dict[str, Any]:
    found = judged.first
    return {
        "a": a.name,
        "b": b.name,
        "winner": found.winner,
        "task": pair.task,
        "voter": f"judge:{judge}",
        "flipped": found.flipped,
        "reason": found.reason,
    }


def _tell(a: str, b: str, result: dict[str, Any]) -> None:
    for what, name in (("win rate", "win_rate"), ("at equal length", "length_controlled")):
        low, high = result["interval" if name == "win_rate" else f"{name}_interval"]
        numbers = f"{100 * result[name]:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        print(f"{a} over {b}, {what}: {numbers}", file=sys.stderr)
    print(
        f"{result['n']} questions, {result['unjudged']} not judged; the order changed "
        f"{100 * result['flipped']:.1f} % of verdicts; {a} writes {result['length_ratio']:.2f} "
        f"times as much",
        file=sys.stderr,
    )
