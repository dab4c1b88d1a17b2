"""Decides the order of an export: measure, write, read back, measure again, describe, put in place.

Nothing appears under the name asked for until all of it succeeded.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs import Environment
from posttrain.errors import UsageError
from posttrain.export import quality
from posttrain.export.card import Facts, card
from posttrain.export.checkpoint import (
    DTYPES,
    dtype_of,
    load_model,
    load_tokenizer,
    save,
    window_of,
)
from posttrain.export.merge import is_adapter, merge, write_merged
from posttrain.export.quantize import check_available, finish, quantize
from posttrain.export.records import licence_of, run_of, stages
from posttrain.preflight import read_config
from posttrain.storage.new_folder import check_free, new_folder

_LONGEST_TEXT = 1024  # tokens of a window in which a text is scored


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a checkpoint is to leave."""

    dtype: str = "auto"  # "auto": as it is; bfloat16 where it is quantised
    quantize: str = ""  # "", "int8", "int4"
    gguf: str = ""  # also one file for llama.cpp: "f32", "f16", "q8_0"
    max_shard: str = "5GB"
    base: str | None = None  # of an adapter
    name: str = ""  # of the model in its card; the folder's name
    licence: str = ""  # SPDX identifier
    text: Path | None = None  # for perplexity
    tasks: int = 200  # held-out tasks of the run that are played; 0: none
    env: Environment | None = None  # in place of the run's, where that was a Python object
    env_args: dict[str, Any] = field(default_factory=dict)  # in place of the run's


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what it cost."""

    path: Path
    before: quality.Quality
    after: quality.Quality
    megabytes: tuple[float, float]
    notes: tuple[str, ...]


def export(
    checkpoint: str | Path,
    out: str | Path,
    wishes: Wishes | None = None,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write ``checkpoint`` (or an adapter, merged) to ``out``, ready to be handed on.

    ``say`` is told what is being done. Raises UsageError for bad input, with nothing written.
    """
    wishes, out, checkpoint = wishes or Wishes(), Path(out), Path(checkpoint)
    check_free(out)
    _check_precision(wishes)
    if not is_adapter(checkpoint):
        read_config(str(checkpoint))
    with new_folder(out) as folder, tempfile.TemporaryDirectory(dir=folder.parent) as work:
        source, notes = checkpoint, []
        if is_adapter(checkpoint):
            say("merging the adapter")
            source = Path(work) / "merged"
            notes += _merged(checkpoint, source, wishes)
        measure, reason = _measure(checkpoint, source, wishes, Path(work))
        if reason:
            say(reason)  # it may name folders of this machine, which a card must not
            notes.append("no task score: the run's held-out tasks could not be made again")
        say("measuring the original")
        before = measure.original(source)
        notes += _doubts(before, checkpoint)
        say("writing")
        facts = _write(source, folder, wishes)
        if wishes.gguf:
            notes.append(_write_gguf(source, Path(work), wishes, out.name))
            for path in Path(work).glob("*.gguf"):
                shutil.move(path, folder)
        say("measuring what was written")
        after = measure.of(folder)
        whole = Facts(
            **facts,
            name=wishes.name or out.name,
            licence=wishes.licence or licence_of(checkpoint),
            stages=stages(checkpoint),
            tasks_name=measure.tasks_name,
            before=before,
            after=after,
            notes=notes,
        )
        (folder / "README.md").write_text(card(whole), encoding="utf-8")
    return Exported(out, before, after, whole.megabytes, tuple(notes))


def _check_precision(wishes: Wishes) -> None:
    if not wishes.quantize:
        return
    check_available(wishes.quantize)
    if wishes.dtype == "float32":
        raise UsageError(
            f"{wishes.quantize} weights are multiplied in bfloat16 or float16 (vLLM has no kernels "
            "for float32): leave the dtype out, or take one of these"
        )


def _merged(adapter: Path, folder: Path, wishes: Wishes) -> list[str]:
    done = merge(adapter, wishes.base)
    dtype = dtype_of(done.base) if wishes.dtype == "auto" else wishes.dtype
    rounding = write_merged(done, folder, dtype, wishes.max_shard)
    told = (
        f"an adapter was merged into its base: on a probe the log-probs of the merged and the "
        f"unmerged model differ by {done.mean_gap:.1e} (mean), by {rounding:.1e} once written in "
        f"{dtype}; the adapter itself changes them by {done.effect:.1e}"
    )
    return [told, *done.notes]


def _measure(
    checkpoint: Path, source: Path, wishes: Wishes, work: Path
) -> tuple[quality.Measure, str]:
    """What can be measured of this checkpoint, and why there is no task score, if there is none."""
    tokenizer = load_tokenizer(source)
    run, job, reason = run_of(checkpoint), None, ""
    if run is not None and wishes.tasks:
        try:
            job = quality.job_of_run(
                run, source, tasks=wishes.tasks, env=wishes.env, env_args=wishes.env_args
            )
        except UsageError as error:
            reason = f"no task score: {error}"
    measure = quality.Measure(job, work)
    if wishes.text is not None:
        window = min(window_of(read_config(str(source))), _LONGEST_TEXT)
        texts = quality.texts_of_file(wishes.text, tokenizer, window)
        measure.texts[wishes.text.name] = texts
    return measure, reason


def _doubts(before: quality.Quality, checkpoint: Path) -> list[str]:
    """A run whose environment was a Python object left its name only, not its arguments."""
    told = [stage.scores["after"] for stage in stages(checkpoint)[:1] if "after" in stage.scores]
    if not told or before.tasks is None:
        return []
    lowest, highest = told[0]["accuracy_low"], told[0]["accuracy_high"]
    if before.tasks.accuracy_low <= highest and before.tasks.accuracy_high >= lowest:
        return []
    return [
        f"the run measured {told[0]['accuracy']:.1%} of its own model, here the same model reached "
        f"{before.tasks.accuracy:.1%}: these are not the run's tasks. Were the arguments of its "
        "environment given in Python? Then give them again"
    ]


def _write_gguf(source: Path, folder: Path, wishes: Wishes, name: str) -> str:
    """Write the GGUF file of the original, away from what could be read in its place, and say in
    the card what it is."""
    from posttrain.export.gguf_file import check_gguf, write_gguf

    model, tokenizer = load_model(source, DTYPES["float32"]), load_tokenizer(source)
    check_gguf(wishes.gguf, model.config, tokenizer)
    path = folder / f"{wishes.name or name}-{wishes.gguf}.gguf"
    gap = write_gguf(model, tokenizer, path, wishes.gguf)
    return (
        f"`{path.name}` ({path.stat().st_size / 1e6:,.1f} MB) is the original for llama.cpp; read "
        f"back by transformers its log-probs differ by {gap:.1e} (mean, on a probe)"
    )


def _write(source: Path, folder: Path, wishes: Wishes) -> dict[str, Any]:
    """Write the weights and the tokenizer; the card's facts of the model."""
    own = dtype_of(source)
    dtype = own if wishes.dtype == "auto" else wishes.dtype
    if wishes.quantize and dtype == "float32":
        dtype = "bfloat16"
    model, tokenizer = load_model(source, DTYPES[dtype]), load_tokenizer(source)
    parameters = sum(weight.numel() for weight in model.parameters())
    if wishes.quantize:
        quantize(model, wishes.quantize)
    save(model, tokenizer, folder, wishes.max_shard)
    if wishes.quantize:
        finish(model, folder)
    written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {
        "architecture": type(model).__name__,
        "parameters": parameters,
        "window": window_of(model.config),
        "has_template": bool(tokenizer.chat_template),
        "dtype": dtype,
        "quantised": wishes.quantize,
        "megabytes": (parameters * DTYPES[own].itemsize / 1e6, written / 1e6),
    }
