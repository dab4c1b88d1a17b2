"""What a person sees before fine-tuning starts: the first examples as the model will see them, and
the report of the data. On stderr; the tokens that carry loss are green, or between ⟦ and ⟧ where
there are no colours.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from posttrain.trainers.examples import COUNTS, Example

EXAMPLES = 3
_LONGEST = 400  # characters of one part on the screen

Part = tuple[str, bool]  # text, whether it is trained on


def parts_of(tokenizer: Any, example: Example) -> list[Part]:
    """The example's text in runs of tokens that carry loss and that carry none."""
    runs: list[tuple[list[int], bool]] = []
    for token, on in zip(example.token_ids, example.trained, strict=True):
        if not runs or runs[-1][1] != bool(on):
            runs.append(([], bool(on)))
        runs[-1][0].append(token)
    return [(tokenizer.decode(ids, skip_special_tokens=False), on) for ids, on in runs]


def show(
    shown: Sequence[Mapping[str, Any]], report: Mapping[str, Any], stream: TextIO | None = None
) -> None:
    """Print the examples, as ``sft.json`` keeps them, and the report."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
    colours = console.is_terminal
    for example in shown:
        console.rule(f"{example['source']}, row {example['row']}", align="left", style="dim")
        text = Text()
        for part, on in example["parts"]:
            said = _shortened(part)
            text.append(said if colours or not on else f"⟦{said}⟧", "bold green" if on else "dim")
        console.print(text)
    console.rule("data", align="left", style="dim")
    for line in report_lines(report):
        console.print(line, markup=False)


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The report in a few lines; numbers that are zero are left out."""
    read = ", ".join(
        f"{name}: {rows:,} rows ({', '.join(report['formats'][name])})"
        for name, rows in report["rows"].items()
    )
    length = report["length"]
    share = report["trained_tokens"] / report["tokens"]
    lines = [
        read,
        f"{report['examples']:,} examples, {report['tokens']:,} tokens, {share:.0%} trained on",
        f"tokens of an example: median {length['p50']:,}, 90 % up to {length['p90']:,}, "
        f"99 % up to {length['p99']:,}, longest {length['max']:,}",
    ]
    lines += [f"{report[name]:,} {said}" for name, said in COUNTS.items() if report[name]]
    lines += [f"{n:,} rows hold text of {name}" for name, n in report["contaminated"].items()]
    for name, part in report.get("mix", {}).items():
        lines.append(
            f"{name}: {part['share']:.1%} of the mix, {part['examples']:,} examples, "
            f"{part['passes']:.2f} passes"
        )
    if not report["ends_turns"]:
        lines.append("the template ends no turn with a special token: nothing teaches to stop")
    return lines


def _shortened(text: str) -> str:
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} [...] {text[-half:]}"
