"""Training speed against transformers' Trainer: same model, rows, optimiser and precision.

    python scripts/bench/pretraining.py [--rounds 3] [--steps 10] [--dtype float32] [--threads 1]

In each round both train the same fresh model on the same batches, one after the other, in this
process. The first two steps of each are not timed. Wall time is what a user waits for; CPU time is
what can be compared while other work runs on the machine. Losses of the first round stand side by
side. bfloat16 is not the same on both sides: Trainer casts float32 weights in each forward pass
(autocast), the engine keeps bfloat16 weights beside float32 master weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
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
        self._began = (time.perf_counter(), time.process_time())

    def lap(self) -> None:
        now = (time.perf_counter(), time.process_time())
        self.seconds.append((now[0] - self._began[0], now[1] - self._began[1]))
        self._began = now


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


def ours(stream: Fixed, dtype: torch.dtype) -> Clock:
    phase = {"rows": stream.rows, "length": stream.length, "tokens": stream.tokens_before(1)}
    config = TrainConfig(
        out="unused",
        data={"shards": ["unused"], "phases": [phase]},
        optimizer={"rate": RATE, "z_loss": 0.0},
        parallel={"micro_tokens": stream.tokens_before(1)},
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


def trainer(stream: Fixed, dtype: torch.dtype) -> Clock:
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
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stream, dtype = (
        Fixed(options.rows, options.length, options.steps),
        getattr(torch, options.dtype),
    )
    sides = {"Trainer": trainer, "pretrain": ours}
    clocks: dict[str, list[Clock]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            clocks[name].append(side(stream, dtype))
    first = zip(clocks["Trainer"][0].losses, clocks["pretrain"][0].losses, strict=True)
    print("\n".join(f"step {i:3}  loss {a:.5f} {b:.5f}" for i, (a, b) in enumerate(first)))
    tokens = options.rows * options.length
    for kind, index in (("wall", 0), ("CPU", 1)):
        medians = {
            name: statistics.median(s[index] for clock in each for s in clock.seconds[WARM:])
            for name, each in clocks.items()
        }
        ratio = medians["Trainer"] / medians["pretrain"]
        speeds = "  ".join(f"{name} {tokens / s:,.0f} tokens/s" for name, s in medians.items())
        print(f"{options.dtype}, {kind} time: {speeds}  ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
