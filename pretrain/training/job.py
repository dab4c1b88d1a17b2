"""Decides what training a base model means: check everything, train, and leave an ordinary folder.

OUT/config.json           settings, versions
OUT/metrics.jsonl         records.py
OUT/samples.jsonl         what the model writes after the prompts
OUT/checkpoints/          checkpoints.py
OUT/final/                model, tokenizer, generation config, pretrain.json
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.errors import RunError, UsageError
from pretrain.training.settings import TrainConfig, read_config

FINAL = "final"
# Settings that change no weight, or that a resumed run may have otherwise.
_FREE = ("out", "report", "checkpoint", "spikes")
# What a run may have otherwise that starts from another run's checkpoint.
_BRANCH = (*_FREE, "data", "schedule", "optimizer", "seed", "model", "stream")


def train_model(config: TrainConfig | Mapping[str, Any] | str | Path, *overrides: str) -> Path:
    """Train a base model; returns the folder of the finished one.

    ``config`` is a TOML file or the same as a tree; ``overrides`` are ``section.key=value``. Under
    torchrun or DeepSpeed's launcher every rank calls it. Ctrl-C saves and raises KeyboardInterrupt;
    the same call goes on from there. Raises UsageError before anything is trained, RunError later.
    """
    if isinstance(config, str | Path):
        config = read_config(config, overrides)
    elif isinstance(config, Mapping):
        config = TrainConfig(**config)
    from pretrain.data.shards import Shards, join
    from pretrain.data.stream import Stream

    first_rank = int(os.environ.get("RANK", "0")) == 0
    stream = Stream(config.data, seed=config.seed, verify=first_rank)
    shards = Shards.open(config.data.shards[0], verify=False)
    held = [Shards.open(folder) for folder in config.report.held_out]
    for one in held:
        one.check_tokenizer(shards.tokenizer)
    return run(config, stream, shards.tokenizer, join(held))


def run(
    config: TrainConfig, stream: Any, tokenizer_folder: Path, held_out: Mapping[str, Any]
) -> Path:
    """``train_model`` with the stream given; ``held_out`` are token sources by name."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    from pretrain.optimizer import forward_dtype
    from pretrain.training import arithmetic
    from pretrain.training.engine import check_ranks
    from pretrain.training.network import check_compilable
    from pretrain.training.rank_files import failure
    from pretrain.training.start import check_tokenizer, model_config, start_model

    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    dtype = forward_dtype(config.dtype)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    with torch.device("meta"):
        shape = model_config(config, tokenizer)
    if shape.vocab_size < stream.vocabulary:
        raise UsageError(
            f"model {config.model}: its vocabulary has {shape.vocab_size} words, the data's "
            f"tokenizer {stream.vocabulary}: tokenise with the model's own, or extend the model"
        )
    check_tokenizer(config, tokenizer_folder)
    if config.compile:
        check_compilable(shape)
    ranks, here = (int(os.environ.get(n, "1")) for n in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    check_ranks(ranks, config.parallel, shape)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    needed = arithmetic.needed_bytes(
        shape,
        stage=config.parallel.zero_stage,
        ranks=ranks,
        low=dtype is torch.bfloat16,
        micro_tokens=config.parallel.micro_tokens,
        stages=config.parallel.pipeline,
    )
    arithmetic.check_memory(needed, arithmetic.free_bytes(device), here if device == "cpu" else 1)
    config.out.mkdir(parents=True, exist_ok=True)
    with folder_lock(config.out):
        model = start_model(config, tokenizer)
        try:
            return _Job(config, stream, tokenizer, dtype).train(model, held_out)
        except (OSError, SafetensorError) as error:  # a full disk, while records or weights go out
            raise RunError(failure(error, config.out)) from error


class _Job:
    """The parts of a run, joined."""

    def __init__(self, config: TrainConfig, stream: Any, tokenizer: Any, dtype: Any) -> None:
        self.config, self.stream, self.tokenizer, self.dtype = config, stream, tokenizer, dtype

    def train(self, model: Any, held_out: Mapping[str, Any]) -> Path:
        from pretrain.training.engine import Engine
        from pretrain.training.pipeline import Pipeline

        parameters = sum(weight.numel() for weight in model.parameters())
        loop_parts = self._parts(model)
        kind = Pipeline if self.config.parallel.pipeline > 1 else Engine
        self.engine = kind(model, self._rated(loop_parts["peak_rate"]), self.dtype)
        loop = self._loop(loop_parts, held_out)
        self._resume(loop)
        self._announce(loop, parameters)
        if not loop.run():
            raise KeyboardInterrupt(
                f"the state after step {loop.progress.step} is in {loop.checkpoints.folder}; the "
                "same command goes on from there"
            )
        return self._export(loop, parameters)

    def _rated(self, rate: float) -> TrainConfig:
        """With the peak rate that the rule gave, where none was set."""
        settings = self.config.optimizer.model_copy(update={"rate": rate})
        return self.config.model_copy(update={"optimizer": settings})

    def _parts(self, model: Any) -> dict[str, Any]:
        """What is to be known of the model before DeepSpeed divides it."""
        from pretrain.schedules import rate_for_size
        from pretrain.training.arithmetic import flops_per_token, matrix_parameters
        from pretrain.training.batches import check_phases

        parallel, model_config = self.config.parallel, model.config
        world = int(os.environ.get("WORLD_SIZE", "1"))
        readers = max(1, world // parallel.together)
        check_phases(self.stream, readers, parallel.sequence, model_config.max_position_embeddings)
        matrices = matrix_parameters(model)
        without_head = matrices - model.get_output_embeddings().weight.numel()
        tokens = self.stream.tokens_before(self.stream.steps)
        rate = self.config.optimizer.rate or rate_for_size(without_head, tokens)
        flops = lambda length: flops_per_token(matrices, model_config, length)  # noqa: E731
        return {"peak_rate": rate, "flops": flops, "tokens": tokens}

    def _loop(self, parts: Mapping[str, Any], held_out: Mapping[str, Any]) -> Any:
        from pretrain.training.arithmetic import peak
        from pretrain.training.checkpoints import Checkpoints
        from pretrain.training.loop import Loop
        from pretrain.training.records import Records

        config, place = self.config, self.engine.place
        given = config.report.peak_tflops * 1e12
        top, self.peak_from = (given, "set") if given else peak(self.dtype, self.engine.device)
        records = Records(
            config.out,
            place.rank,
            config.report.every,
            self.stream.steps,
            parts["tokens"],
            top * place.world,
        )
        keep = (config.checkpoint.keep_last, config.checkpoint.keep_every)
        return Loop(
            config,
            self.stream,
            self.engine,
            Checkpoints(config.out / "checkpoints", place.rank, place.world, *keep),
            records,
            parts["peak_rate"],
            parts["flops"],
            self._identity(),
            _Watch(self, records, held_out).after,
        )

    def _identity(self) -> dict[str, Any]:
        tree = self.config.model_dump(mode="json", exclude=set(_FREE))
        tree["ranks"], tree["stream"] = self.engine.place.world, self.stream.fingerprint
        tree["dtype"] = str(self.dtype).removeprefix("torch.")
        tree.pop("data")  # the stream's fingerprint says more than the names of its folders
        return tree

    def _resume(self, loop: Any) -> None:
        """Go on from the newest whole checkpoint of this run, or from one of another run."""
        import torch.distributed as dist

        from pretrain.training import checkpoints as saved

        settings, folder = self.config.checkpoint, loop.checkpoints.folder
        found: list[Any] = [None, []]
        if loop.engine.place.rank == 0:
            if settings.resume == "never" and saved.written(folder):
                raise UsageError(f"{folder} has checkpoints: choose another out, or resume")
            found = list(saved.newest_whole(folder))
        dist.broadcast_object_list(found)
        start, damaged = found
        free: Sequence[str] = ()
        if start is None and settings.start_from:
            start, free = Path(settings.start_from), _BRANCH
        for text in damaged:
            loop.records.say(text)
        if start is None:
            loop.records.rewind(0)  # of a life that ended before its first checkpoint was whole
            return
        check_identity(start, saved.read_manifest(start)["identity"], loop.identity, free)
        if free:
            if fault := saved.fault_of(start):
                raise UsageError(f"{start} is damaged: {fault}")
            loop.check_share(start)
        loop.load(start)
        loop.records.rewind(loop.progress.step)
        loop.records.say(f"going on from {start}, step {loop.progress.step}")

    def _announce(self, loop: Any, parameters: int) -> None:
        from pretrain.training.start import size_table

        if said := size_table(self.config, self.tokenizer):
            loop.records.say(said)
        precision = str(self.dtype).removeprefix("torch.")
        engine, parallel = self.engine, self.config.parallel
        loop.records.say(
            f"{parameters:,} parameters, {loop.stream.steps:,} steps, {loop.records.tokens:,} "
            f"tokens; {precision} with float32 master weights; peak rate {loop.peak_rate:.2e}"
            + (" by Step Law" if not self.config.optimizer.rate else "")
        )
        loop.records.say(
            f"{engine.place.world} rank(s) on {engine.device.type}, ZeRO-{engine.stage}, tensor "
            f"{parallel.tensor}, sequence {parallel.sequence}, pipeline {parallel.pipeline}"
            f"{self._bubble()}; MFU against "
            f"{loop.records.peak / 1e12:.2f} TFLOP/s ({self.peak_from})"
        )
        if engine.place.rank == 0:
            (self.config.out / "config.json").write_text(json.dumps(self._about(), indent=1) + "\n")

    def _bubble(self) -> str:
        """How long the stages of a pipeline wait for each other in the first phase."""
        place, phase = self.engine.place, self.stream.plan_of(0).phase
        if place.stages == 1:
            return ""
        at_once = max(1, self.config.parallel.micro_tokens // phase.length)
        n = -(-phase.rows // place.readers // at_once)
        share = (place.stages - 1) / (n + place.stages - 1)
        return f" ({n} micro-batches: {100 * share:.0f}% of the time is waiting)"

    def _about(self) -> dict[str, Any]:
        import torch
        import transformers

        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        return {"settings": self.config.model_dump(mode="json"), "versions": versions}

    def _export(self, loop: Any, parameters: int) -> Path:
        """The finished model; the one of a shorter run is replaced."""
        import torch.distributed as dist

        from pretrain.base import save

        final, weights = self.config.out / FINAL, self.engine.weights()
        if self.engine.place.rank == 0:
            record = {
                **self._about(),
                "parameters": parameters,
                "tokens": loop.records.tokens,
                "steps": loop.progress.step,
                "dtype": str(self.dtype).removeprefix("torch."),
                "peak_rate": loop.peak_rate,
                "skipped_updates": loop.guard.skipped,
                "rollbacks": loop.progress.rollbacks,
            }
            old = final.with_name(".final-before")
            shutil.rmtree(old, ignore_errors=True)
            if final.exists():
                final.rename(old)
            save(final, self.engine.model, self.tokenizer, record, weights)
            shutil.rmtree(old, ignore_errors=True)
            loop.records.say(f"done: {final}")
        dist.barrier()
        return final


class _Watch:
    """Validation and samples, when they are due."""

    def __init__(self, job: _Job, records: Any, held_out: Mapping[str, Any]) -> None:
        from pretrain.training.validation import HeldOut, Validation

        self._job, self._records = job, records
        config, stream = job.config, job.stream
        most = config.report.evaluate_tokens
        self._validation = Validation(
            {name: HeldOut.read(one, job.tokenizer, most) for name, one in held_out.items()},
            length=stream.plan_of(0).phase.length,
            micro_tokens=config.parallel.micro_tokens,
            vocabulary=stream.vocabulary,
        )

    def after(self, step: int) -> None:
        """Look at the model after ``step`` steps."""
        report, last = self._job.config.report, step == self._job.stream.steps
        if step % report.evaluate_every == 0 or last:
            self._evaluate(step)
        if step % report.sample_every == 0 or last:
            self._sample(step)

    def _evaluate(self, step: int) -> None:
        for name, scores in self._validation.measure(self._job.engine).items():
            self._records.append({"step": step, "held_out": name, **scores})
            self._records.say(
                f"step {step}: held-out {name}: loss {scores['loss']:.3f}, "
                f"{scores['bits_per_byte']:.3f} bits per byte"
            )
        self._records.restart_clock()

    def _sample(self, step: int) -> None:
        job = self._job
        for number, prompt in enumerate(job.config.report.prompts):
            ids = job.tokenizer(prompt)["input_ids"] or [job.tokenizer.eos_token_id]
            found = job.engine.sample(ids, job.config.report.sample_tokens, seed=number)
            text = job.tokenizer.decode(found)
            self._records.append({"step": step, "prompt": prompt, "text": text}, "samples.jsonl")
            self._records.say(f"step {step}: {prompt!r} -> {text!r}")
        self._records.restart_clock()


def check_identity(
    checkpoint: Path, was: Mapping[str, Any], now: Mapping[str, Any], free: Sequence[str]
) -> None:
    """Raises UsageError that names every setting in which a run differs from its checkpoint."""
    old, new = dict(_leaves(was)), dict(_leaves(now))
    lines = [
        f"  {name}: {old.get(name)!r} there, {new.get(name)!r} now"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name) and name.split(".")[0] not in free
    ]
    if lines:
        hint = "take the settings of that run, or another out"
        if not free:
            hint += "; to extend or branch it, checkpoint.start_from in another out"
        raise UsageError(
            "\n".join([f"{checkpoint} was written with other settings:", *lines, hint])
        )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found += _leaves(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


class folder_lock:
    """One run at a time in a folder; the kernel lets go of it whatever happens."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"

    def __enter__(self) -> None:
        self._file = self._path.open("w")
        if int(os.environ.get("RANK", "0")):
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"another run is at work in {self._path.parent}") from error

    def __exit__(self, *_: object) -> None:
        self._file.close()
