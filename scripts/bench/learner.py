"""One optimiser step of the learner against TRL's GRPOTrainer and a plain transformers loop.

Tokens per second and peak memory of forward, GRPO loss, backward and AdamW on sequences that are
given, so nothing is generated. Every run is a process of its own, the sides alternate, medians are
quoted; one JSON line per cell of vocabulary x length.

- ours: ``RankLearner``, as a job uses it.
- trl: ``GRPOTrainer`` itself, fed through its ``rollout_func``; what it does to prepare a batch is
  not counted. Configurations: weights in float32 with bf16 autocast (its default), in bfloat16, and
  all in float32; ``--trl`` names which, the quickest of a cell is compared with, and the memory
  is also compared with the leanest. It pads: padding-free is not offered for GRPO.
- plain: a padded batch, all logits, log_softmax, AdamW. Left out where it would take over 6 GB.

All see the same sequences in micro-batches of the same number of them (``--row-tokens``), without
gradient checkpointing. ``--work full``: sequences of one length, each with a prompt of 16 tokens,
so that neither packing nor sharing of prompts helps; ``grpo``: a common prompt of a quarter of the
length, and answers from half to all of the rest. Memory: the most that was resident in the
steps, over what was before the model was loaded (so weights, gradients and moments count).

    python scripts/bench/learner.py --vocabulary 1024 32768 151936 --length 512 2048 8192
    python scripts/bench/learner.py --device cuda --size 0.6b --length 2048 --row-tokens 16384

On a GPU the lines have the MFU too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

IMPORTS = (
    "deepspeed",
    "posttrain.learner.learner",
    "transformers.models.qwen3.modeling_qwen3",
    "trl.trainer.grpo_trainer",
)
TRL = ("trl-bf16", "trl-bf16-weights", "trl-fp32")
RATE = 1e-6  # learning rate
PLAIN_LIMIT_GB = 6.0
# hidden, layers, heads, key-value heads, head width, inner width; the larger two are as Qwen's
SIZES = {
    "tiny": (256, 3, 4, 2, 64, 768),
    "0.6b": (1024, 28, 16, 8, 128, 3072),
    "1.5b": (1536, 28, 12, 2, 128, 8960),
}
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40": 181.0}  # bf16, dense


@dataclass(frozen=True, slots=True)
class Cell:
    """What one process measures."""

    model: str
    vocabulary: int
    length: int
    work: str
    steps: int
    threads: int
    device: str
    peak_tflops: float
    row_tokens: int
    tokens: int = 4096  # of a step, at least (and two sequences)

    def sequences(self) -> tuple[list[int], list[list[int]]]:
        """The prompt, and the answers of its group."""
        rng = np.random.default_rng(0)
        n = max(2, self.tokens // self.length)
        n_prompt = 16 if self.work == "full" else self.length // 4
        rest = self.length - n_prompt
        sizes = [rest] * n if self.work == "full" else np.linspace(rest // 2, rest, n).astype(int)
        draw = [rng.integers(10, self.vocabulary, size).tolist() for size in (n_prompt, *sizes)]
        return draw[0], draw[1:]

    @property
    def rows_at_once(self) -> int:
        return max(1, self.row_tokens // self.length)


def main() -> None:
    options = _options()
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "TRL_EXPERIMENTAL_SILENCE": "1"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # of whoever calls; here nobody is launched
        os.environ.pop(name, None)
    if options.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    for vocabulary in options.vocabulary:
        with tempfile.TemporaryDirectory() as folder:
            make_model(Path(folder), vocabulary, options.size)
            for length in options.length:
                shape = (folder, vocabulary, length, options.work, options.steps, options.threads)
                machine = (options.device, options.peak_tflops)
                cell = Cell(*shape, *machine, options.row_tokens, options.tokens)
                print(json.dumps({"size": options.size} | compare(cell, options)), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[151936])
    parser.add_argument("--length", type=int, nargs="+", default=[512])
    parser.add_argument("--work", choices=("full", "grpo"), default="full")
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny")
    parser.add_argument("--trl", nargs="*", choices=TRL, default=TRL)
    parser.add_argument("--ours", choices=("ours-bf16", "ours-fp32"), default="ours-bf16")
    parser.add_argument("--plain", default="plain-bf16", choices=("plain-bf16", "plain-fp32", ""))
    parser.add_argument("--row-tokens", type=int, default=4096, help="of a micro-batch")
    parser.add_argument("--tokens", type=int, default=4096, help="of a step, at least")
    parser.add_argument("--steps", type=int, default=3, help="counted; one more goes before")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="0: known by its name")
    options = parser.parse_args()
    if min(options.length) < 64 or min(options.vocabulary) < 64:
        parser.error("--length and --vocabulary: at least 64")
    if min(options.steps, options.repeats, options.threads, options.row_tokens) < 1:
        parser.error("--steps, --repeats, --threads and --row-tokens: at least 1")
    return options


# the driver


def compare(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Alternate the sides; medians and ratios of one cell."""
    names = [options.ours, *options.trl]
    if options.plain and _plain_gb(cell) <= PLAIN_LIMIT_GB:
        names.append(options.plain)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.repeats):
        for name, found in runs.items():
            found.append(_run(name, cell))
            print(name, found[-1], file=sys.stderr, flush=True)
    medians = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for name, found in runs.items()
    }
    ours = medians[options.ours]
    trl = [medians[name] for name in options.trl]
    line: dict[str, Any] = {k: v for k, v in asdict(cell).items() if k != "model"}
    line |= {"repeats": options.repeats, "sides": medians}
    if trl:
        quickest = max(trl, key=lambda side: side["tokens_per_s"])
        line["trl_quickest"] = options.trl[trl.index(quickest)]
        line["cpu_speed_ratio_trl"] = round(
            ours["tokens_per_cpu_s"] / max(side["tokens_per_cpu_s"] for side in trl), 2
        )
        line["speed_ratio_trl"] = round(ours["tokens_per_s"] / quickest["tokens_per_s"], 2)
        line["memory_ratio_trl"] = round(ours["peak_mb"] / quickest["peak_mb"], 3)
        leanest = min(side["peak_mb"] for side in trl)
        line["memory_ratio_trl_leanest"] = round(ours["peak_mb"] / leanest, 3)
    if options.plain in medians:
        plain = medians[options.plain]
        line["speed_ratio_plain"] = round(ours["tokens_per_s"] / plain["tokens_per_s"], 2)
        line["memory_ratio_plain"] = round(ours["peak_mb"] / plain["peak_mb"], 3)
    return line


def _plain_gb(cell: Cell) -> float:
    """Logits, their float32 copy, log-probs and the gradient of both: 16 bytes, about."""
    return cell.rows_at_once * cell.length * cell.vocabulary * 16 / 1e9


def _run(side: str, cell: Cell) -> dict[str, float]:
    """In a process of its own. On a CPU it is forked from one that has only imported."""
    context: Any = get_context("spawn" if cell.device == "cuda" else "forkserver")
    if cell.device == "cpu":
        context.set_forkserver_preload(list(IMPORTS))
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(measure, side, cell).result(timeout=1800)


def make_model(folder: Path, vocabulary: int, size: str) -> None:
    """A random Qwen3 with tied embeddings, and a tokenizer for what TRL asks of one."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    hidden, layers, heads, kv_heads, width, inner = SIZES[size]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)


# one side, in a process of its own


def measure(side: str, cell: Cell) -> dict[str, float]:
    """Median over the counted steps of one side, and its peak memory in MB."""
    import torch

    for module in IMPORTS:  # the same for every side, and none of it counts
        importlib.import_module(module)
    torch.set_num_threads(cell.threads)
    name, _, kind = side.partition("-")
    prepare = {"ours": _ours, "trl": _trl, "plain": _plain}[name]
    meter = Meter(cell.device)
    with redirect_stdout(sys.stderr):  # TRL prints its metrics
        wall, cpu = prepare(cell, kind, meter)(cell.steps + 1)
    prompt, answers = cell.sequences()
    tokens = sum(len(prompt) + len(answer) for answer in answers)
    seconds = statistics.median(wall[1:])
    found = {
        "tokens_per_s": round(tokens / seconds, 1),
        "tokens_per_cpu_s": round(tokens / statistics.median(cpu[1:]), 1),
        "peak_mb": meter.peak_mb(),
        "step_s": round(seconds, 3),
        "tokens": tokens,
    }
    if cell.device == "cuda":
        found["mfu"] = round(_flops(cell) / seconds / (_peak(cell) * 1e12), 4)
    return found


class Meter:
    """Peak memory since ``start``, over what was resident when it was made."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._base = 0.0

    def baseline(self) -> None:
        """After the imports, before the model."""
        self._base = 0.0 if self._cuda else _status_mb("VmRSS")

    def start(self) -> None:
        """Before the first step: what loading took for a moment does not count."""
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM

    def peak_mb(self) -> float:
        if self._cuda:
            import torch

            return round(torch.cuda.max_memory_allocated() / 1e6, 1)
        return round(_status_mb("VmHWM") - self._base, 1)


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(name))
    return int(kib) * 1024 / 1e6


Times = tuple[list[float], list[float]]  # of each step: wall and CPU seconds
Steps = Callable[[int], Times]


def _timed(once: Callable[[], None]) -> Steps:
    def run(n: int) -> Times:
        wall, cpu = [], []
        for _ in range(n):
            start = time.perf_counter(), time.process_time()
            once()
            wall.append(time.perf_counter() - start[0])
            cpu.append(time.process_time() - start[1])
        return wall, cpu

    return run


def _ours(cell: Cell, kind: str, meter: Meter) -> Steps:
    from posttrain.batching import pack
    from posttrain.config import GrpoConfig
    from posttrain.learner.learner import RankLearner

    meter.baseline()
    dtype = "bfloat16" if kind == "bf16" else "float32"
    settings = {"dtype": dtype, "tokens_per_row": cell.row_tokens, "learning_rate": RATE}
    config = GrpoConfig.model_validate(
        {"model": cell.model, "env": "none", "run_dir": "none", "learner": settings}
    )
    learner = RankLearner(config, np.arange(1, 9))
    batch = pack(_samples(cell), cell.row_tokens, 1, 0)
    meter.start()
    return _timed(lambda: _must(not learner.train(batch).skipped))


def _samples(cell: Cell) -> list[Any]:
    from posttrain.types import Sample

    prompt, answers = cell.sequences()
    samples = []
    for i, answer in enumerate(answers):
        mask = np.arange(len(prompt) + len(answer)) >= len(prompt)
        sample = Sample(
            token_ids=np.array(prompt + answer),
            loss_mask=mask,
            logprobs=np.where(mask, -np.log(cell.vocabulary), 0.0).astype(np.float32),
            advantages=np.where(mask, 1.0 if i % 2 else -1.0, 0.0).astype(np.float32),
            weight_versions=np.zeros(len(mask), np.int64),
            rollout_id=str(i),
        )
        samples.append(sample)
    return samples


def _trl(cell: Cell, kind: str, meter: Meter) -> Steps:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    wall, cpu = [], []
    begun = [0.0, 0.0]

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            begun[:] = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if cell.device == "cuda":
                torch.cuda.synchronize()
            wall.append(time.perf_counter() - begun[0])
            cpu.append(time.process_time() - begun[1])

    class Trainer(GRPOTrainer):
        def _prepare_inputs(self, generation_batch: Any) -> Any:
            start = time.perf_counter(), time.process_time()
            prepared = super()._prepare_inputs(generation_batch)
            begun[0] += time.perf_counter() - start[0]
            begun[1] += time.process_time() - start[1]
            return prepared

    prompt, answers = cell.sequences()

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        logprobs = [[-float(np.log(cell.vocabulary))] * len(answer) for answer in answers]
        ids = [prompt] * len(prompts)
        return {"prompt_ids": ids, "completion_ids": answers, "logprobs": logprobs}

    def reward(completions: list[Any], **_: Any) -> list[float]:
        return [float(i % 2) for i in range(len(completions))]

    def run(n: int) -> Times:
        with tempfile.TemporaryDirectory() as folder:
            meter.baseline()
            dtype = torch.bfloat16 if kind == "bf16-weights" else torch.float32
            trainer = Trainer(
                model=AutoModelForCausalLM.from_pretrained(cell.model, dtype=dtype),
                reward_funcs=reward,
                args=_trl_config(cell, folder, n, kind),
                train_dataset=Dataset.from_list([{"prompt": "<eos>"}] * n),
                processing_class=AutoTokenizer.from_pretrained(cell.model),
                rollout_func=rollout,
                callbacks=[Clock()],
            )
            meter.start()
            trainer.train()
        _must(len(wall) == n)
        return wall, cpu

    return run


def _trl_config(cell: Cell, folder: str, steps: int, kind: str) -> Any:
    from trl import GRPOConfig

    n = len(cell.sequences()[1])
    micro = min(n, cell.rows_at_once)
    return GRPOConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=n // micro,
        num_generations=n,
        max_completion_length=cell.length,
        temperature=1.0,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        beta=0.0,
        loss_type="dapo",
        epsilon_high=0.28,
        bf16=kind != "fp32",
        gradient_checkpointing=False,
        use_cpu=cell.device == "cpu",
        report_to=[],
        logging_steps=10**6,
        save_strategy="no",
        disable_tqdm=True,
    )


def _plain(cell: Cell, kind: str, meter: Meter) -> Steps:
    import torch
    from transformers import AutoModelForCausalLM

    meter.baseline()
    model = AutoModelForCausalLM.from_pretrained(cell.model, dtype=torch.float32).to(cell.device)
    adam = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    prompt, answers = cell.sequences()
    ids, mask = np.zeros((2, len(answers), len(prompt) + max(map(len, answers))), np.int64)
    for i, answer in enumerate(answers):
        ids[i, : len(prompt) + len(answer)] = prompt + answer
        mask[i, : len(prompt) + len(answer)] = 1
    token_ids, attention = (torch.from_numpy(x).to(cell.device) for x in (ids, mask))
    old = -float(np.log(cell.vocabulary))
    n_tokens = sum(map(len, answers))

    def once() -> None:
        for at in range(0, len(answers), cell.rows_at_once):
            part = slice(at, at + cell.rows_at_once)
            with torch.autocast(cell.device, torch.bfloat16, enabled=kind == "bf16"):
                logits = model(token_ids[part], attention_mask=attention[part]).logits
            kept = logits[:, len(prompt) - 1 : -1].float()
            targets = token_ids[part, len(prompt) :]
            logprobs = torch.log_softmax(kept, -1).gather(2, targets[..., None])[..., 0]
            side = torch.arange(at, at + len(logprobs), device=cell.device) % 2 * 2.0 - 1.0
            ratio = torch.exp(logprobs - old)
            bounded = ratio.clamp(0.8, 1.28)
            gain = torch.minimum(ratio * side[:, None], bounded * side[:, None])
            (-(gain * attention[part, len(prompt) :]).sum() / n_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        if cell.device == "cuda":
            torch.cuda.synchronize()

    meter.start()
    return _timed(once)


def _must(holds: bool) -> None:
    if not holds:
        raise RuntimeError("a step that is measured did nothing")


# model flops, for MFU


def _flops(cell: Cell) -> float:
    """Of a step's forward and backward pass, without anything that is computed again.

    6 per weight and token; attention 12 x heads x width per pair of tokens, half of them causal;
    the head only for the tokens that carry a loss.
    """
    config = json.loads((Path(cell.model) / "config.json").read_text())
    heads, width = config["num_attention_heads"], config["head_dim"]
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    projections = hidden * width * 2 * (heads + config["num_key_value_heads"])
    layer = projections + 3 * hidden * inner
    prompt, answers = cell.sequences()
    total = 0.0
    for answer in answers:
        n = len(prompt) + len(answer)
        body = 6 * layer * n + 12 * heads * width * n * n / 2
        total += config["num_hidden_layers"] * body + 6 * hidden * cell.vocabulary * len(answer)
    return total


def _peak(cell: Cell) -> float:
    import torch

    if cell.peak_tflops:
        return cell.peak_tflops
    name = torch.cuda.get_device_name()
    for known, tflops in PEAK_TFLOPS.items():
        if known in name:
            return tflops
    raise SystemExit(f"the peak of {name} is not known here: give it with --peak-tflops")


if __name__ == "__main__":
    main()
