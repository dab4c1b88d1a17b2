"""``pretrain model``: what a size means, and an untrained checkpoint of it where one is wanted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pretrain.errors import UsageError
from pretrain.models.shape import ARCHITECTURES, MOE


def add_parser(commands: Any) -> None:
    """``model``, on the parser of the command line."""
    parser = commands.add_parser("model", help="parameters and FLOPs of a size; a fresh checkpoint")
    parser.add_argument("--params", required=True, help="all of them: 10M, 1.5B")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="qwen3")
    parser.add_argument("--vocab", type=int, default=0, help="tokens (default: the tokenizer's)")
    parser.add_argument("--tokenizer", type=Path, help="its folder")
    parser.add_argument("--length", type=int, default=2048, help="longest sequence, in tokens")
    parser.add_argument("--experts", type=int, help="per layer, of a mixture")
    parser.add_argument("--experts-per-token", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="new folder for the untrained model")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from pretrain.models.count import table
    from pretrain.models.dial import shape_for

    if options.out and not options.tokenizer:
        raise UsageError("--out needs --tokenizer: a checkpoint folder has both")
    tokenizer = _tokenizer(options)
    vocabulary = options.vocab
    if tokenizer is not None and not vocabulary:
        vocabulary = -(-len(tokenizer) // 64) * 64  # keeps the last matrix aligned
    if not vocabulary:
        raise UsageError("--vocab or --tokenizer is needed: the embedding is a part of the size")
    fixed = {"vocab_size": vocabulary, "max_length": options.length}
    if options.arch in MOE:
        given = {"experts": options.experts, "experts_per_token": options.experts_per_token}
        fixed |= {name: value for name, value in given.items() if value is not None}
    elif options.experts or options.experts_per_token:
        raise UsageError(f"{options.arch} has no experts: choose one of {', '.join(MOE)}")
    shape = shape_for(options.params, architecture=options.arch, **fixed)
    print(table(shape))
    if options.out:
        _write(shape, tokenizer, options)
    return 0


def _tokenizer(options: argparse.Namespace) -> Any:
    if options.tokenizer is None:
        return None
    from transformers import AutoTokenizer

    if not (options.tokenizer / "tokenizer_config.json").is_file():
        raise UsageError(f"{options.tokenizer} has no tokenizer_config.json")
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    if options.arch == "llava":
        from pretrain.models.vision import add_image_token

        add_image_token(tokenizer)
    return tokenizer


def _write(shape: Any, tokenizer: Any, options: argparse.Namespace) -> None:
    from pretrain.models.build import build
    from pretrain.models.vision import processor
    from pretrain.new_folder import check_free, new_folder

    check_free(options.out)
    model = build(shape, tokenizer, seed=options.seed)
    with new_folder(options.out) as folder:
        model.save_pretrained(folder)
        (processor(shape, tokenizer) if shape.vision else tokenizer).save_pretrained(folder)
    print(f"\nuntrained, seed {options.seed}: {options.out}")
