"""``pretrain tokenizer train | report | import | extend | check``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.errors import UsageError


def add_parser(commands: Any) -> None:
    """The arguments of all of them."""
    tokenizer = commands.add_parser("tokenizer", help="train, compare, import, extend, check one")
    actions = tokenizer.add_subparsers(dest="action", required=True, metavar="action")
    _add_train(actions)
    report = actions.add_parser("report", help="fertility by language and domain, against others")
    report.add_argument("tokenizers", nargs="+", metavar="FOLDER")
    report.add_argument("--documents", action="append", required=True, metavar="FOLDER")
    report.add_argument("--characters", type=int, default=200_000, help="of each source")
    report.add_argument("--json", metavar="FILE", help="the numbers, too")
    report.set_defaults(run=run_report)
    take = actions.add_parser("import", help="check someone's tokenizer and copy it")
    take.add_argument("folder")
    take.add_argument("out")
    take.set_defaults(run=run_import)
    extend = actions.add_parser("extend", help="add tokens to a checkpoint and its tokenizer")
    extend.add_argument("checkpoint")
    extend.add_argument("out")
    extend.add_argument(
        "--token",
        action="append",
        required=True,
        metavar="TOKEN=WORD,WORD",
        help="starts at the words' mean embedding; without words, at its own pieces'",
    )
    extend.add_argument("--special", action="store_true", help="left out of decoded text")
    extend.set_defaults(run=run_extend)
    check = actions.add_parser("check", help="whether a tokenizer is a checkpoint's own")
    check.add_argument("checkpoint")
    check.add_argument("--tokenizer", default="", metavar="FOLDER", help="the one in it")
    check.set_defaults(run=run_check)


def _add_train(actions: Any) -> None:
    train = actions.add_parser("train", help="learn one from documents, languages in balance")
    train.add_argument("out", help="new folder")
    train.add_argument("--documents", action="append", required=True, metavar="FOLDER")
    train.add_argument("--kind", help="bpe or unigram (bpe)")
    train.add_argument("--vocab-size", type=int, help="everything together (32768)")
    train.add_argument("--groups", help="chat,thinking,tools,fim,image (all)")
    train.add_argument("--reserved", type=int, help="special tokens for later uses (0)")
    train.add_argument("--digits", type=int, help="most digits in one token: 1 or 3 (1)")
    train.add_argument("--max-length", type=int, help="window of the model (4096)")
    train.add_argument("--share", action="append", metavar="LANGUAGE=SHARE")
    train.add_argument("--temperature", type=float, help="where no shares are given (1)")
    train.add_argument("--characters", type=int, help="to learn from, at most (100000000)")
    train.add_argument("--seed", type=int)
    train.set_defaults(run=run_train)


def run_train(options: argparse.Namespace) -> int:
    """Sample, learn, save, and report on the documents it was learnt from."""
    from pretrain.tokenizer_sample import SampleSettings, sample
    from pretrain.tokenizer_training import TokenizerSettings, save_trained

    groups = options.groups.split(",") if options.groups else None
    settings = TokenizerSettings(
        **_given(options, "kind", "vocab_size", "reserved", "digits", "max_length"),
        **({} if groups is None else {"groups": groups}),
    )
    shares = {name: _number(share) for name, share in _pairs(options.share or [])}
    sampling = SampleSettings(
        documents=options.documents,
        shares=shares,
        **_given(options, "temperature", "characters", "seed"),
    )
    drawn = sample(sampling)
    for language, share in sorted(drawn.shares.items()):
        rate = drawn.rates[language]
        print(f"{language:10} {share:7.2%}, each document {rate:.2f} times", file=sys.stderr)
    out = save_trained(drawn, settings, options.out)
    print(f"{out}: {settings.kind}, {settings.vocab_size} tokens, {drawn.characters:,} characters")
    return 0


def run_report(options: argparse.Namespace) -> int:
    """Print the table."""
    from pretrain.tokenizer_files import read_tokenizer
    from pretrain.tokenizer_report import compare
    from pretrain.tokenizer_sample import read_texts

    names = [Path(folder).name for folder in options.tokenizers]
    if len(set(names)) < len(names):
        names = options.tokenizers
    tokenizers = {
        name: read_tokenizer(folder) for name, folder in zip(names, options.tokenizers, strict=True)
    }
    report = compare(tokenizers, read_texts(tuple(options.documents)), options.characters)
    if options.json:
        Path(options.json).write_text(json.dumps(report.as_json(), indent=1) + "\n")
    print(report.text())
    return 0


def run_import(options: argparse.Namespace) -> int:
    """Copy, and say what to know of it."""
    from pretrain.tokenizer_checks import import_tokenizer

    for note in import_tokenizer(options.folder, options.out):
        print(f"note: {note}")
    print(options.out)
    return 0


def run_extend(options: argparse.Namespace) -> int:
    """Write the larger checkpoint."""
    from pretrain.tokenizer_extension import extend_checkpoint

    tokens = {}
    for one in options.token:
        token, _, words = one.partition("=")
        tokens[token] = [word for word in words.split(",") if word]
    print(extend_checkpoint(options.checkpoint, options.out, tokens, special=options.special))
    return 0


def run_check(options: argparse.Namespace) -> int:
    """Say so, or why not."""
    from pretrain.tokenizer_checks import check_belongs

    check_belongs(options.checkpoint, options.tokenizer)
    print(f"{options.tokenizer or options.checkpoint} belongs to {options.checkpoint}")
    return 0


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _pairs(values: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, number) for name, _, number in (value.partition("=") for value in values)]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"--share LANGUAGE=SHARE: {text!r} is no number") from error
