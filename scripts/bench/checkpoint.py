"""How long a checkpoint holds training up: the copy in memory, against waiting for the disk.

A random Qwen3 trains on packed rows as in a job; every second step is followed by a save. One JSON
line: ``stall_s`` is what a save costs the loop, ``on_disk_s`` the time until every file is written,
hashed and fsynced, which is what it would cost without the copy. ``step_s`` and
``step_beside_write_s`` say what the writing takes from the step that runs beside it. Medians.

    python scripts/bench/checkpoint.py --layers 8 --hidden 512 --folder /path/on/the/disk
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from posttrain.batching import pack
from posttrain.config import GrpoConfig
from posttrain.learner.inline import InlineLearner
from posttrain.types import Batch, Sample

VOCABULARY, LENGTH, SAMPLES = 8192, 256, 8


def make_model(folder: Path, hidden: int, layers: int) -> int:
    """Returns its number of parameters."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        head_dim=64,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def make_batch(step: int) -> Batch:
    rng = np.random.default_rng(step)
    mask = np.arange(LENGTH) >= 16
    samples = [
        Sample(
            rng.integers(0, VOCABULARY, LENGTH),
            mask,
            np.where(mask, -9.0, 0).astype(np.float32),
            np.where(mask, rng.normal(), 0).astype(np.float32),
            np.zeros(LENGTH, np.int64),
            str(i),
        )
        for i in range(SAMPLES)
    ]
    return pack(samples, LENGTH * SAMPLES, 1, step)


async def measure(learner: InlineLearner, folder: Path, saves: int) -> dict[str, float]:
    """Medians in seconds."""
    times: dict[str, list[float]] = {}

    def note(name: str, since: float) -> None:
        times.setdefault(name, []).append(time.perf_counter() - since)

    await learner.train(make_batch(0))
    for save in range(saves):
        began = time.perf_counter()
        await learner.train(make_batch(2 * save + 1))
        note("step_s", began)
        began = time.perf_counter()
        await learner.save(folder / str(save))
        note("stall_s", began)
        beside = time.perf_counter()
        await learner.train(make_batch(2 * save + 2))
        note("step_beside_write_s", beside)
        await learner.saved(folder / str(save))
        began = time.perf_counter()  # once more, with nothing beside it
        await learner.save(folder / f"{save}-alone")
        await learner.saved(folder / f"{save}-alone")
        note("on_disk_s", began)
    return {name: round(statistics.median(found), 3) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    given = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder = Path(scratch)
        parameters = make_model(folder / "model", given.hidden, given.layers)
        learner_settings = {"ranks": 0, "dtype": given.dtype, "threads": given.threads}
        config = GrpoConfig.model_validate(
            {"model": str(folder / "model"), "env": "none", "learner": learner_settings}
        )

        async def run() -> dict[str, float]:
            learner = InlineLearner(config, np.arange(2, 40))
            await learner.start()
            try:
                return await measure(learner, folder, given.saves)
            finally:
                await learner.close()

        found = asyncio.run(run())
        files = [path for path in (folder / "0").rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 2**20
    about = {"parameters_m": round(parameters / 1e6, 1), "dtype": given.dtype, "mib": round(size)}
    print(json.dumps(about | found))


if __name__ == "__main__":
    main()
