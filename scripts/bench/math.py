r"""Pairs per second of the math reward beside math-verify's: same rows, same machine, same run.

Each repetition times both, one after the other; the JSON line has the medians of the paired runs.
``gsm8k`` rows are the worked solutions of a GSM8K file as responses, every second one with
another final number, against the gold number, in both forms that are common: ``#### 72`` and
``\boxed{72}``. ``mixed`` rows are labelled pairs of answers. math-verify is called as its README
does, ``verify(parse(gold), parse(pred))``, in one process, as its time-outs ask for the main
thread; ours is ``score_batch``, whose workers use every core.

    python scripts/bench/math.py --gsm8k gsm8k_test.jsonl.gz --mixed math_cases.jsonl
"""

import sys
from pathlib import Path

# Python puts this folder first in its path, where this file would hide the standard library's math
# from every import, also those of the scripts beside it.
_HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [entry for entry in sys.path if entry != _HERE]
if __name__ == "math":  # another script of this folder asked for the standard library's
    import importlib

    del sys.modules["math"]
    sys.modules["math"] = importlib.import_module("math")
    sys.path.insert(0, _HERE)

import argparse  # noqa: E402
import gzip  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402

Pair = tuple[str, str]  # gold, response


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gsm8k", type=Path, required=True)
    parser.add_argument("--mixed", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=300, help="of the gsm8k file")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    from rewards.math.scoring import workers

    workers().start()
    result: dict[str, object] = {"cores": len(os.sched_getaffinity(0)), "repeats": options.repeats}
    for name, rows in (
        ("gsm8k", gsm8k_pairs(options.gsm8k, options.rows)),
        ("mixed", mixed_pairs(options.mixed)),
    ):
        result[name] = compare(rows, options.repeats, bare=name == "mixed")
    print(json.dumps(result))


def compare(pairs: list[Pair], repeats: int, *, bare: bool) -> dict[str, float | int]:
    """Medians over paired runs; the first, unmeasured run of each warms up imports."""
    ours, theirs = our_run(bare), math_verify_run
    ours(pairs[:20])
    theirs(pairs[:20])
    rates, peer_rates = [], []
    for _ in range(repeats):
        rates.append(len(pairs) / seconds(ours, pairs))
        peer_rates.append(len(pairs) / seconds(theirs, pairs))
    ratios = [a / b for a, b in zip(rates, peer_rates, strict=True)]
    return {
        "pairs": len(pairs),
        "ours_per_s": round(statistics.median(rates), 1),
        "math_verify_per_s": round(statistics.median(peer_rates), 1),
        "ratio": round(statistics.median(ratios), 2),
        "lowest_ratio": round(min(ratios), 2),
    }


def seconds(run: Callable[[list[Pair]], object], pairs: list[Pair]) -> float:
    started = time.perf_counter()
    run(pairs)
    return time.perf_counter() - started


def our_run(bare: bool) -> Callable[[list[Pair]], object]:
    """Our side, with the caches of gold answers and texts emptied first: no row is seen twice."""
    from rewards.math import normal, score_batch, scoring

    def run(pairs: list[Pair]) -> object:
        for cache in (scoring._gold_answer, scoring._gold_node, normal.normalised):
            cache.cache_clear()
        golds, responses = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        return score_batch(responses, golds, bare=bare)

    return run


def math_verify_run(pairs: list[Pair]) -> object:
    from math_verify import parse, verify
    from math_verify.parser import extract_latex, parse_expr_cached, parse_latex_cached

    for cache in (extract_latex, parse_expr_cached, parse_latex_cached):
        cache.cache_clear()
    return [verify(parse(gold), parse(response)) for gold, response in pairs]


def gsm8k_pairs(file: Path, count: int) -> list[Pair]:
    """(gold number, response): worked solutions, every second one with another result."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(count), lines, strict=False)]
    pairs = []
    for i, row in enumerate(rows):
        work, _, gold = row["answer"].rpartition("####")
        gold = gold.strip()
        number = gold if i % 2 else f"{int(gold.replace(',', '')) + 1}"
        ending = f"#### {number}" if i % 4 < 2 else f"The answer is $\\boxed{{{number}}}$."
        pairs.append((gold, work + ending))
    return pairs


def mixed_pairs(file: Path) -> list[Pair]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(row["gold"], row["pred"]) for row in rows]


if __name__ == "__main__":
    main()
