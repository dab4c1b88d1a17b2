"""RLHF in three steps on a task whose true reward is known, and what happens without the KL.

    python scripts/rlhf_three_steps.py runs/quickstart/base [SEED]

The task: repeat a digit eight times. The true reward is 1 for eight and falls to 0 at none and at
sixteen; other digits count against it. (1) Fine-tuning shows answers of one to twelve digits, most
of them short, with a slip here and there. (2) A reward model learns from pairs of the tuned model's
own answers. Whoever labels them goes by the true reward, likes length a little too much, as people
do, finds slips more amusing than wrong, and is not always sure. (3) PPO against the reward model,
with the KL to the tuned model and without; DPO on the same pairs.

Nothing here trains on the true reward: it has weight 0 beside the reward model, and is measured.
"""

import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import envs
import posttrain
import rewards
import rewards.model
from rewards import Outcome, Score

WANTED, HELD_OUT, PAIRS = 8, 200, 1200
# The labeller: what a digit more and a slip are worth, and how seldom it errs.
LIKES_LENGTH, LIKES_SLIPS, SURE, SLIPS = 0.1, 0.15, 8.0, 0.04


@rewards.register("about_eight")
def about_eight(completion: str, answer: str, **columns: Any) -> Score:
    """1 - |n - 8| / 8 for n times the digit, times the share of characters that are it."""
    right = completion.count(answer)
    share = right / max(len(completion), 1)
    value = share * max(0.0, 1 - abs(right - WANTED) / WANTED)
    return Score(value, Outcome.CORRECT if value >= 0.75 else Outcome.WRONG)


def tasks(count: int, seed: int) -> list[dict[str, str]]:
    """A number behind the question makes the prompts many; of held-out ones it is odd."""
    rng = random.Random(seed)
    digits = [str(rng.randint(0, 9)) for _ in range(count)]
    numbers = [2 * rng.randint(50, 499) + (seed < 0) for _ in range(count)]
    return [
        {"prompt": f"Repeat {d} ({n})", "answer": d} for d, n in zip(digits, numbers, strict=True)
    ]


def shown(rows: list[dict[str, str]], rng: random.Random) -> list[dict[str, Any]]:
    """Conversations for fine-tuning, with answers that are too short."""
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": written(row["answer"], rng)},
            ]
        }
        for row in rows
    ]


def written(digit: str, rng: random.Random) -> str:
    """The shorter one of two random lengths, with slips."""
    length = min(rng.randint(1, 12), rng.randint(1, 12))
    return "".join(str(rng.randint(0, 9)) if rng.random() < SLIPS else digit for _ in range(length))


def answers(model: Path, rows: list[dict[str, str]], seed: int) -> list[str]:
    """One sampled answer to each prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
    chats = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    found: list[str] = []
    for start in range(0, len(rows), 250):
        given = tokenizer.apply_chat_template(
            chats[start : start + 250], add_generation_prompt=True, padding=True,
            return_dict=True, return_tensors="pt",
        )  # fmt: skip
        made = loaded.generate(**given, do_sample=True, max_new_tokens=40, eos_token_id=end)
        new = made[:, given["input_ids"].shape[1] :]
        found += tokenizer.batch_decode(new, skip_special_tokens=True)
    return found


def pairs(model: Path, seed: int) -> list[dict[str, Any]]:
    """Two answers of the model to a prompt, the one that the labeller prefers first."""
    rows, rng = tasks(PAIRS, seed), random.Random(seed)
    found = []
    for row, a, b in zip(rows, *(answers(model, rows, seed + i) for i in (1, 2)), strict=True):
        liked = [
            true_reward(text, row)
            + LIKES_LENGTH * len(text)
            + LIKES_SLIPS * (len(text) - text.count(row["answer"]))
            for text in (a, b)
        ]
        prefers_a = rng.random() < 1 / (1 + math.exp(SURE * (liked[1] - liked[0])))
        chosen, rejected = (a, b) if prefers_a else (b, a)
        found.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    return found


def true_reward(text: str, row: dict[str, str]) -> float:
    return about_eight(text, row["answer"]).value or 0.0


def measured(model: Path, judge: Any) -> dict[str, float]:
    """Mean true reward, reward-model score and length on prompts that no training sees."""
    import asyncio

    rows = tasks(HELD_OUT, -1)
    texts = answers(model, rows, seed=0)

    async def judged() -> list[Score]:
        return await asyncio.gather(
            *(judge(row["prompt"], text) for row, text in zip(rows, texts, strict=True))
        )

    scores = [score.value or 0.0 for score in asyncio.run(judged())]
    true = [true_reward(text, row) for text, row in zip(texts, rows, strict=True)]
    return {
        "true_reward": sum(true) / len(true),
        "reward_model": sum(scores) / len(scores),
        "length": sum(map(len, texts)) / len(texts),
    }


def ppo(model: Path, reward_model: Path, run_dir: Path, kl: float, seed: int) -> posttrain.Run:
    """PPO's preset; the true reward is watched with weight 0, and decides what is correct."""
    judge = rewards.model.load(reward_model, name="reward_model")
    reward = rewards.combine({about_eight: 0.0, judge: 1.0})
    rows = tasks(4000, seed)
    return posttrain.grpo(
        model=model,
        env=envs.from_tasks(rows, reward=reward),
        algorithm={"preset": "ppo", "kl": {"name": "k1", "coef": kl, "place": "reward"}},
        steps=40,
        prompts_per_step=32,
        group_size=2,
        rollout={"engine": "embedded", "max_tokens": 40, "dtype": "float32"},
        learner={"ranks": 0, "learning_rate": 1e-4, "dtype": "float32"},
        evaluation={"tasks": 100, "every": 10},
        run_dir=run_dir,
        seed=seed,
    )


def plot(runs: dict[str, posttrain.Run], path: Path) -> Path:
    """Score of the reward model and true reward of each step's answers."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure: Any = make_subplots(rows=1, cols=2, subplot_titles=("reward model", "true reward"))
    for name, run in runs.items():
        lines = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
        steps = [record for record in lines if record["kind"] == "step"]
        for column, part in enumerate(("reward_model", "about_eight"), 1):
            y = [step["reward_parts"][part] for step in steps]
            figure.add_trace(go.Scatter(y=y, name=f"{name}: {part}"), row=1, col=column)
    figure.update_xaxes(title_text="step")
    figure.write_html(path, include_plotlyjs=True)
    return path


def main() -> None:
    started, seed = time.time(), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    base, work = Path(sys.argv[1]), Path("runs") / time.strftime("rlhf-%Y%m%d-%H%M%S")
    rows = shown(tasks(3200, seed + 100), random.Random(seed))
    models = {"base": base, "sft": posttrain.sft(base, rows, work / "sft", seed=seed)}
    data = pairs(models["sft"], seed + 200)
    judged = posttrain.train_reward_model(
        models["sft"], data, work / "reward-model", learning_rate=3e-4, bad_rows="drop", seed=seed
    )
    runs = {
        name: ppo(models["sft"], judged, work / name, kl, seed)
        for name, kl in (("ppo", 0.2), ("ppo-without-kl", 0.0))
    }
    models |= {name: run.model for name, run in runs.items()}
    models["dpo"] = posttrain.train_preferences(
        models["sft"], data, work / "dpo", learning_rate=2e-5, bad_rows="drop", seed=seed
    )
    judge = rewards.model.load(judged)
    numbers = {name: measured(model, judge) for name, model in models.items()}
    for run in runs.values():
        run.report()
    print(f"plot: {plot(runs, work / 'over-optimisation.html')}", file=sys.stderr)
    print(json.dumps({"models": numbers, "wall_s": round(time.time() - started, 1)}, indent=1))


if __name__ == "__main__":
    main()
