"""Training speed against transformers' Trainer: same model, rows, optimiser and precision.

    python scripts/bench/pretraining.py [--rounds 3] [--steps 10] [--dtype float32] [--threads 1]
        [--plain]

In each round Trainer and ours, each as it is and compiled (``torch_compile=True``, ``compile =
true``), train the same fresh model on the same batches, one after the other, each in a process of
its own: where a process group exists, as ours has one, Trainer would train through DDP.
``--plain`` leaves the compiled ones out. The first two steps of each are not timed, and are told
apart: compiling is in them. Wall time is what a user waits for; CPU time, of a process and its
children, is what can be compared while other work runs on the machine. Ratios are of like with
like, those of the rounds (each side's median step), and of them the median.

In float32 the losses must agree to ``CLOSE``, or the script fails. bfloat16 is not the same on both
sides: Trainer casts float32 weights in each forward pass (autocast), the engine keeps bfloat16
weights beside float32 master weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.data import SequentialSampler
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, TrainingArguments

from pretrain.training.batches import Batches
from pretrain.training.engine import Engine
from pretrain.training.network import MicroBatch
from pretrain.training.settings import TrainConfig

WARM, VOCABULARY, RATE = 2, 8192, 1e-3
CLOSE = 1e-4  # of a loss, relative


@dataclass
class Fixed:
    """Rows drawn once, with the frequencies of words (Zipf)."""

    rows: int
    length: int
    steps: int
    vocabulary: int = VOCABULARY
    fingerprint: str = ""

    def __post_init__(self) -> None:
        shape = (self.steps * self.rows, self.length)
        self.ids = np.random.default_rng(0).zipf(1.2, shape).clip(max=VOCABULARY - 1)

    def tokens_before(self, step: int) -> int:
        return step * self.rows * self.length

    def plan_of(self, step: int) -> Any:
        return SimpleNamespace(phase=self)

    def batch(self, step: int) -> Any:
        ids = self.ids[step * self.rows : (step + 1) * self.rows]
        positions = np.arange(self.length).repeat(self.rows).reshape(self.length, -1).T
        return SimpleNamespace(ids=ids, labels=ids, positions=positions)


class Clock:
    """Wall and CPU seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[tuple[float, float]] = []
        self.losses: list[float] = []
        self.start()

    def start(self) -> None:
        self._began = self._now()

    def lap(self) -> None:
        now = self._now()
        self.seconds.append((now[0] - self._began[0], now[1] - self._began[1]))
        self._began = now

    @staticmethod
    def _now() -> tuple[float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime

    def step(self, index: int) -> float:
        """Median seconds of a step: of wall time (0) or of CPU time (1)."""
        return statistics.median(each[index] for each in self.seconds[WARM:])


def new_model() -> Any:
    """5.2 M parameters, the shape of scripts/configs/pretrain.toml."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
        )
    )


def ours(stream: Fixed, dtype: torch.dtype, *, compiled: bool) -> Clock:
    phase = {"rows": stream.rows, "length": stream.length, "tokens": stream.tokens_before(1)}
    config = TrainConfig(
        out="unused",
        data={"shards": ["unused"], "phases": [phase]},
        optimizer={"rate": RATE, "z_loss": 0.0},
        parallel={"micro_tokens": stream.tokens_before(1)},
        compile=compiled,
    )
    engine = Engine(new_model(), config, dtype)
    batches = Batches(stream, 0, 1, stream.tokens_before(1))
    clock = Clock()
    for step in range(stream.steps):
        part = batches.get(step)
        micro = [MicroBatch.of(*rows, engine.device) for rows in part.micro]
        clock.losses.append(engine.train(micro, part.n_tokens, RATE, lambda loss: "").loss)
        clock.lap()
    batches.close()
    return clock


class _Laps(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._clock.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._clock.lap()


class _InOrder(Trainer):
    clock: Clock

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)

    def training_step(self, *args: Any, **keywords: Any) -> Any:
        loss = super().training_step(*args, **keywords)
        self.clock.losses.append(float(loss))
        return loss


def trainer(stream: Fixed, dtype: torch.dtype, *, compiled: bool) -> Clock:
    data = [{"input_ids": row, "labels": row} for row in stream.ids]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=stream.rows,
            max_steps=stream.steps,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            weight_decay=0.1,
            optim="adamw_torch_fused",
            bf16=dtype is torch.bfloat16,
            torch_compile=compiled,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        one = _InOrder(
            model=new_model(), args=arguments, train_dataset=data, callbacks=[_Laps(clock)]
        )
        one.clock = clock
        one.train()
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="nothing compiled")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    stream = Fixed(options.rows, options.length, options.steps)
    sides: dict[str, Callable[[Fixed, torch.dtype], Clock]] = {}
    for kind in ("",) if options.plain else ("", ", compiled"):
        for name, side in (("Trainer", trainer), ("pretrain", ours)):
            sides[name + kind] = partial(side, compiled=bool(kind))
    clocks: dict[str, list[Clock]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, one in sides.items():
            clocks[name].append(apart_from_others(one, stream, dtype, options.threads))
            print(f"{name}: {told(clocks[name][-1], options.rows * options.length)}", flush=True)
    print("\n".join(losses(clocks)))
    for name in sides:
        if name.startswith("pretrain"):
            print("\n".join(ratios(clocks, name, options.dtype)))
    worst = max(apart(clocks["Trainer"][0], each[0]) for each in clocks.values())
    print(f"largest relative difference of a loss: {worst:.1e}")
    if dtype is torch.float32 and worst > CLOSE:
        sys.exit(f"in float32 at most {CLOSE} is rounding")


def ratios(clocks: dict[str, list[Clock]], name: str, dtype: str) -> list[str]:
    """Of our side ``name`` over Trainer, compiled or not as ours is."""
    peer = name.replace("pretrain", "Trainer")
    lines = []
    for kind, index in (("wall", 0), ("CPU", 1)):
        pairs = zip(clocks[peer], clocks[name], strict=True)
        found = statistics.median(theirs.step(index) / own.step(index) for theirs, own in pairs)
        lines.append(f"{dtype}, {kind} time, {name} over {peer}: {found:.2f} times")
    return lines


def apart_from_others(
    side: Callable[[Fixed, torch.dtype], Clock], stream: Fixed, dtype: torch.dtype, threads: int
) -> Clock:
    """One side in a new process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, torch.set_num_threads, (threads,)) as pool:
        return pool.apply_async(side, (stream, dtype)).get(timeout=3600)


def told(clock: Clock, tokens: int) -> str:
    """Of one side in one round."""
    first = " and ".join(f"{sum(s[i] for s in clock.seconds[:WARM]):.1f}" for i in (0, 1))
    speeds = f"{tokens / clock.step(0):,.0f} tokens/s, {tokens / clock.step(1):,.0f} per CPU second"
    return f"{speeds}; the first {WARM} steps {first} s (wall, CPU)"


def losses(clocks: dict[str, list[Clock]]) -> list[str]:
    """Of the first round, side by side, in the order of ``clocks``."""
    rows = zip(*(each[0].losses for each in clocks.values()), strict=True)
    return [f"step {i:3}  loss " + " ".join(f"{x:.5f}" for x in row) for i, row in enumerate(rows)]


def apart(one: Clock, other: Clock) -> float:
    """The largest relative difference of a step's loss."""
    return max(abs(a - b) / abs(a) for a, b in zip(one.losses, other.losses, strict=True))


if __name__ == "__main__":
    main()
