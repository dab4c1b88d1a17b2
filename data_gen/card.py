"""The data card: what a data set is, how it was made, what was dropped and why, how to use it.

The card has no YAML header: ``datasets`` finds ``data/train-*`` without one, and with one its cache
goes by the folder's name alone, so that another folder of the same name is taken for this one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN_CHARS = 600
_USES = {
    "messages": "SFT: `posttrain.sft(model, data)`, TRL's `SFTTrainer`, axolotl "
    "(`type: chat_template`), LLaMA-Factory (`formatting: sharegpt`, with `role`/`content` tags).",
    "chosen": "preferences and reward models: TRL's `DPOTrainer` and `RewardTrainer`, axolotl "
    "(`rl: dpo`), LLaMA-Factory (`ranking: true`).",
    "text": "pretraining: one document in `text`.",
    "prompt": "tasks: prompts with an `answer`, for `envs.load` with a reward.",
}


def card(
    job: Mapping[str, Any], summary: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]
) -> str:
    """The text of README.md."""
    judged = summary["kept"] + sum(summary["dropped"].values())
    lines = [
        f"# Data made by `{job['generator']}`",
        "",
        f"{summary['kept']} rows kept of {judged}; {summary['items']} items, "
        f"{summary['items_failed']} of them failed.",
        "",
        *_table("what became of the rows", {"kept": summary["kept"], **summary["dropped"]}),
        *_table("items that failed", summary["failures"]),
        "## Made with",
        "",
        "```json",
        json.dumps(job, indent=1, ensure_ascii=False, default=str),
        "```",
        "",
        *_table("diversity of the kept", _numbers(summary["diversity"])),
        *_table("requests", {**summary["requests"], "cost": round(summary["cost"], 4)}),
        *_use(examples),
        *_shown(examples),
    ]
    return "\n".join(lines) + "\n"


def _table(title: str, counts: Mapping[str, Any]) -> list[str]:
    if not counts:
        return []
    rows = [f"| {_cell(name)} | {value:,} |" for name, value in counts.items()]
    return [f"| {title} | |", "|---|---|", *rows, ""]


def _numbers(diversity: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are known, and the prompts by pass rate."""
    flat = {name: one for name, one in diversity.items() if isinstance(one, int | float)}
    rates = {f"prompts with pass rate {name}": n for name, n in diversity["pass_rate"].items()}
    return flat | rates


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())[:200]


def _use(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    if not examples:
        return []
    use = next(text for kind, text in _USES.items() if kind in examples[0])
    load = '`datasets.load_dataset("path/to/this/folder", split="train")`'
    return ["## Use", "", f"{load}. For {use}", ""]


def _shown(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first rows, as they are."""
    lines = ["## Examples", ""] if examples else []
    for row in examples:
        columns = {name: row[name] for name in _USES if name in row}
        columns |= {name: row[name] for name in ("rejected", "reward", "outcome") if name in row}
        text = json.dumps(columns, indent=1, ensure_ascii=False)[:_SHOWN_CHARS]
        lines += ["```json", text.replace("```", "` ` `"), "```", ""]
    return lines
