"""Does `posttrain plan` foresee what a learner rank really holds? Two models, ZeRO stages, dtypes.

Each case is a process of its own: a rank trains three steps on samples of the planned shape, and
the peak of its resident memory during the steps stands beside the formula's sum.

    python scripts/bench/plan_memory.py --model runs/quickstart/sft
    python scripts/bench/plan_memory.py --others     mixture, adapters, NF4, offload, shared rows
    ... --no-holes     glibc gives every large block back at once: slower, and what is held is used
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

STAGES = {"bfloat16": (0, 1, 2), "float32": (0, 1, 2)}
PROMPTS, GROUP, PROMPT_TOKENS, ANSWER_TOKENS = 4, 8, 64, 64
MB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="the small one; the other is made here")
    parser.add_argument("--others", action="store_true", help="one case of each other thing")
    parser.add_argument("--no-holes", action="store_true", help="MALLOC_MMAP_THRESHOLD_=65536")
    parser.add_argument("--case", help="one case, as JSON; for the child processes")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.model, json.loads(options.case))))
        return
    if not options.others and not options.model:
        parser.error("give --model or --others")
    if options.no_holes:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with tempfile.TemporaryDirectory() as folder:
        if options.others:
            for model, case in _other_cases(Path(folder)):
                print(json.dumps(_in_process(model, case)), flush=True)
            return
        for model in (options.model, _random_model(Path(folder))):
            for case in _cases():
                print(json.dumps(_in_process(model, case)), flush=True)


def _cases() -> list[dict[str, object]]:
    return [
        {"dtype": dtype, "zero_stage": stage, "memory_savings": savings}
        for dtype, stages in STAGES.items()
        for stage in stages
        for savings in (((), ("checkpointing",)) if stage == 0 else ((),))
    ]


def _other_cases(folder: Path) -> list[tuple[str, dict[str, object]]]:
    dense = _random_model(folder / "dense")
    mixture = _random_model(folder / "mixture", mixture=True)
    plain: dict[str, object] = {"dtype": "float32", "zero_stage": 0}
    return [
        (dense, plain),
        (dense, plain | {"dtype": "bfloat16"}),
        (mixture, plain),
        (dense, plain | {"lora": {"rank": 16}}),
        (dense, plain | {"lora": {"rank": 16, "bits": 4}}),
        (dense, plain | {"zero_stage": 2}),
        (dense, plain | {"zero_stage": 2, "memory_savings": ["offload"]}),
        (dense, plain | {"zero_stage": 2, "ranks": 2}),
        (dense, plain | {"zero_stage": 2, "ranks": 2, "sequence_parallel": 2}),
    ]


def _in_process(model: str, case: dict[str, object]) -> dict[str, object]:
    ranks = str(case.get("ranks", 1))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
    command = [sys.executable, *(launcher if ranks != "1" else [])]
    command += [__file__, "--model", model, "--case", json.dumps(case)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return max(lines, key=_measured)  # of the ranks


def _measured(line: dict[str, object]) -> int:
    return int(str(line["measured_mb"]))


def measure(model: str, case: dict[str, object]) -> dict[str, object]:
    """Planned and measured MB of one case, in this process."""
    import torch

    torch.set_num_threads(1)
    from posttrain.config import make_config
    from posttrain.learner.learner import RankLearner
    from posttrain.learner.memory import Parts, model_size, rank_memory
    from posttrain.planning.workload import largest_row, workload

    config = make_config(
        {"model": model, "env": "none", "learner": {**case, "warmup_steps": 0}}
        | {"rollout": {"max_tokens": ANSWER_TOKENS}, "grpo": {"group_size": GROUP}}
    )
    rng = np.random.default_rng(0)
    size = model_size(model)
    prompts = [rng.integers(2, size.vocabulary, PROMPT_TOKENS) for _ in range(PROMPTS)]
    work = workload(prompts, config, size.vocabulary, answer_tokens=ANSWER_TOKENS)
    row = largest_row(work.batch, size.vocabulary)
    parts = Parts(ranks=config.learner.world_size, reference=False, critic=False, cuda=False)
    planned = rank_memory(size, row, config.learner, parts)
    learner = RankLearner(config, np.arange(1, 9))
    built = _resident("VmRSS")
    for _ in range(2):
        learner.train(work.batch)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    learner.train(work.batch)
    measured = _resident("VmHWM")
    total = sum(planned.values())
    return {
        "parameters": size.parameters,
        **case,
        "planned_mb": {name: round(n / MB) for name, n in planned.items()},
        "total_mb": round(total / MB),
        "measured_mb": round(measured / MB),
        "built_mb": round(built / MB),
        "error": round(total / measured - 1, 3),
    }


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(what))
    return int(kib) * 1024


def _random_model(folder: Path, *, mixture: bool = False) -> str:
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

    torch.manual_seed(0)
    kind = Qwen3MoeConfig if mixture else Qwen3Config
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 384}
    config = kind(
        **(experts if mixture else {}),
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
