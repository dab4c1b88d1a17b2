"""TRL's reward functions and environments as ours, and ours as TRL's; its trainer is real."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import envs
from envs.adapters.trl import (
    environment_from_trl,
    environment_to_trl,
    reward_from_trl,
    reward_to_trl,
    rows_for_trl,
)
from rewards import Case, Outcome, UsageError, apply
from tests.envs.episodes import called, play


def lengths(prompts: list[Any], completions: list[Any], limit: list[int], **kwargs: Any) -> Any:
    """As TRL's: None where there is nothing to say."""
    assert kwargs["trainer_state"] is None
    pairs = zip(completions, limit, strict=True)
    return [None if text == "" else float(len(text) <= most) for text, most in pairs]


def test_a_reward_of_trls_judges_here() -> None:
    async def judged(*texts: str) -> list[Any]:
        reward = reward_from_trl(lengths)
        cases = [Case("p", text, columns={"limit": 3}) for text in texts]
        return list(await asyncio.gather(*(apply(reward, case) for case in cases)))

    short, long, empty = asyncio.run(judged("ab", "abcd", ""))
    assert (short.value, short.outcome) == (1.0, Outcome.CORRECT)
    assert (long.value, long.outcome) == (0.0, Outcome.WRONG)
    assert (empty.value, empty.outcome) == (None, Outcome.ERROR)


def test_an_async_one_sees_messages() -> None:
    async def last_role(completions: list[Any], prompts: list[Any], **kwargs: Any) -> list[float]:
        return [
            float(c[0]["role"] == "assistant" and p[-1]["content"] == "hi")
            for c, p in zip(completions, prompts, strict=True)
        ]

    environment = envs.from_tasks(
        [{"prompt": "hi"}], reward=reward_from_trl(last_role, messages=True), held_out_percent=0
    )
    assert play(environment, ["hello"])[1].value == 1.0


def test_our_reward_answers_as_one_of_trls() -> None:
    exact = reward_to_trl("exact")
    assert exact.__name__ == "exact"
    values = asyncio.run(
        exact(
            prompts=["a", [envs.user("b")]],
            completions=["7", [{"role": "assistant", "content": "8"}]],
            completion_ids=[[1], [2]],
            answer=["7", "7"],
            trainer_state=object(),
        )
    )
    assert values == [1.0, 0.0]


class Counter:
    """An environment as TRL 1.16 takes one."""

    def reset(self, start: int, **kwargs: Any) -> str:
        self.value = start
        return f" The counter is at {start}."

    def add(self, n: int) -> str:
        """Add to the counter.

        Args:
            n: how much
        """
        self.value += n
        return f"now {self.value}"

    def get_reward(self) -> float:
        return float(self.value == 10)


COUNTER_ROWS = [{"prompt": [envs.user(f"Make it 10 ({n}).")], "start": n} for n in range(8)]


def test_an_environment_of_trls_is_played_here() -> None:
    def short(completions: list[Any], **kwargs: Any) -> list[float]:
        return [0.5 * (len(one[-1]["content"]) < 9) for one in completions]

    environment = environment_from_trl(Counter, COUNTER_ROWS, rewards=[short])
    task = environment.tasks.train(0)
    start = task.columns["row"]["start"]
    env = environment.make()
    assert [tool.name for tool in env.tools()] == ["add"]  # type: ignore[attr-defined]
    messages, score = play(environment, [called("add", n=10 - start), "done"], task)
    assert messages[0]["content"] == f"Make it 10 ({start}). The counter is at {start}."
    assert next(m for m in messages if m["role"] == "tool")["content"] == "now 10"
    assert (score.value, score.outcome) == (1.5, Outcome.CORRECT)
    assert play(environment, ["done"], task)[1].value == 0.5
    with pytest.raises(UsageError, match="no get_reward"):
        environment_from_trl(type("Bare", (), {"reset": lambda self: None}), COUNTER_ROWS)


class Adder(envs.ToolEnv):
    """Ours."""

    def add(self, a: int, b: int) -> int:
        """The sum.

        Args:
            a: first
            b: second
        """
        return a + b

    def judge(self, message: Any) -> float:
        return float(message["content"].strip() == self.task.answer)


def adder() -> envs.Environment:
    rows = [{"prompt": f"{n} + 1?", "answer": str(n + 1)} for n in range(30)]
    tasks = envs.from_tasks(rows, reward="exact").tasks
    return envs.Episodes("adder", tasks, Adder)


def test_trls_own_trainer_takes_our_environment_and_reward(tmp_path: Any, checkpoint: Any) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl.chat_template_utils import qwen3_chat_template

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = qwen3_chat_template  # TRL must know how calls are read

    seen: list[Any] = []
    environment = adder()
    factory, judged = environment_to_trl(environment)

    async def noted(environments: Any, completions: Any, **kwargs: Any) -> Any:
        seen.extend(one.env.task.task_id for one in environments)
        seen.append(environments[0].add(a=2, b=3))
        return await judged(environments=environments, completions=completions, **kwargs)

    rows = rows_for_trl(environment, 4)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(checkpoint),
        processing_class=tokenizer,
        reward_funcs=[noted, reward_to_trl("exact")],
        environment_factory=factory,
        train_dataset=Dataset.from_list([{**row, "answer": "1"} for row in rows]),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=4,
            max_steps=1,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
        ),
    )
    trainer.train()
    known = {row["task_id"] for row in rows}
    assert seen[0] == seen[1]
    assert seen[0] in known
    assert 5 in seen
    assert set(trainer.reward_func_names) == {"noted", "exact"}
    assert "rewards/exact/mean" in trainer.state.log_history[0]


def test_what_trl_could_not_play_is_refused() -> None:
    with pytest.raises(UsageError, match="no ToolEnv"):
        environment_to_trl(envs.from_tasks([{"prompt": "a", "answer": "b"}] * 20, reward="exact"))
