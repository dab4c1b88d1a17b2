"""Episodes with tools: what the model saw and wrote, which of it is trained, and why they end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs
from envs import Budget, EndReason, Task, ToolEnv
from posttrain.batching import samples_of
from posttrain.chat import Chat
from posttrain.errors import UsageError
from posttrain.rollout import EpisodeLimits, Player
from posttrain.types import Completion, FinishReason, Request, Rollout, Sampling
from pretrain.tokenizer import train_tokenizer
from rewards import Outcome


class Calculator(ToolEnv):
    """Multiplies."""

    def multiply(self, a: int, b: int) -> int:
        """a * b"""
        return a * b

    def slow(self) -> str:
        """Takes a while."""
        time.sleep(0.5)
        return "done"

    def judge(self, message):
        return message["content"].strip() == self.task.answer


TASK = Task("t", (envs.user("What is 6 * 7?"),), answer="42")
CALL = '<tool_call>\n{"name": "multiply", "arguments": {"a": 6, "b": 7}}\n</tool_call>'


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(train_tokenizer(["What is 6 * 7 ? tool call name"] * 50, vocab_size=400))


class Scripted:
    """An engine that writes the given ids, turn by turn."""

    def __init__(self, chat: Chat, turns: list[Any]) -> None:
        self.chat, self.turns = chat, turns
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> Completion:
        self.requests.append(request)
        said = self.turns[min(len(self.requests), len(self.turns)) - 1]
        ids = (
            [*self.chat.encode(said), self.chat.stop_token_ids[0]]
            if isinstance(said, str)
            else said
        )
        cut = len(ids) > request.sampling.max_tokens
        ids = np.array(ids[: request.sampling.max_tokens], np.int64)
        reason = FinishReason.LENGTH if cut else FinishReason.STOP
        return Completion(
            ids, np.full(len(ids), -1.0, np.float32), np.zeros(len(ids), np.int64), reason
        )

    def leave(self) -> None:
        pass


def play(
    chat: Chat, turns: list[Any], *, budget: Budget | None = None, max_turns: int = 4
) -> Rollout:
    tasks = envs.generated(lambda rng: TASK)
    environment = envs.Episodes("calculator", tasks, Calculator, budget or Budget())
    engine = Scripted(chat, turns)
    player = Player(
        engine,  # type: ignore[arg-type]
        environment,
        chat,
        Sampling(200, 1.0, chat.stop_token_ids),
        EpisodeLimits(max_turns, 2000, 5.0),
    )
    group = asyncio.run(player.group(TASK, seed=0, where=(0, 0), size=1))
    return group.rollouts[0]


def text_of(chat: Chat, ids: Any) -> str:
    return str(chat.tokenizer.decode(list(ids), skip_special_tokens=False))


def test_a_call_is_answered_and_the_answer_is_judged(chat: Chat) -> None:
    rollout = play(chat, [f"I multiply.{CALL}", "42"])
    assert [m["role"] for m in rollout.messages] == ["user", "assistant", "tool", "assistant"]
    called, answered = rollout.messages[1:3]
    assert called["content"] == "I multiply."
    assert called["tool_calls"][0]["function"] == {
        "name": "multiply",
        "arguments": {"a": 6, "b": 7},
    }
    assert (answered["content"], answered["name"]) == ("42", "multiply")
    assert (rollout.score.outcome, rollout.end_reason) == (Outcome.CORRECT, EndReason.DONE)
    assert (rollout.info["tool_calls"], rollout.info["malformed_calls"]) == (1.0, 0.0)


def test_the_model_is_told_of_its_tools_and_of_results(chat: Chat) -> None:
    rollout = play(chat, [CALL, "42"])
    first = text_of(chat, rollout.turns[0].prompt_ids)
    assert '"name": "multiply"' in first
    assert '"description": "a * b"' in first
    second = text_of(chat, rollout.turns[1].prompt_ids)
    assert second == (
        f"{first}{CALL}<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_malformed_call_can_be_mended_and_is_counted(chat: Chat) -> None:
    rollout = play(chat, ["<tool_call>multiply(6, 7)</tool_call>", CALL, "42"])
    assert "the call could not be read" in rollout.messages[2]["content"]
    assert rollout.info["malformed_calls"] == 1.0
    assert rollout.score.outcome is Outcome.CORRECT


@given(data=st.data())
def test_turns_end_to_end_are_what_was_sampled_and_only_that_is_trained(
    chat: Chat, data: Any
) -> None:
    """Whatever ids the model writes, calls among them, none is encoded anew."""
    size = len(chat.tokenizer)
    noise = st.lists(st.integers(5, size - 1), max_size=8)
    turns = []
    for call in data.draw(st.lists(st.booleans(), min_size=1, max_size=3)):
        ids = data.draw(noise) + (chat.encode(CALL) if call else []) + data.draw(noise)
        turns.append([*ids, chat.stop_token_ids[0]])
    rollout = play(chat, turns)
    (sample,) = samples_of(rollout, 1.0)
    written = [t for turn in rollout.turns for t in turn.completion.token_ids.tolist()]
    assert sample.token_ids[sample.loss_mask].tolist() == written
    for before, after in zip(rollout.turns, rollout.turns[1:], strict=False):
        kept = [*before.prompt_ids.tolist(), *before.completion.token_ids.tolist()]
        assert after.prompt_ids[: len(kept)].tolist() == kept
    last = rollout.turns[-1]
    whole = [*last.prompt_ids.tolist(), *last.completion.token_ids.tolist()]
    assert sample.token_ids.tolist() == whole


@pytest.mark.parametrize(
    ("turns", "budget", "reason", "n_turns"),
    [
        ([CALL], Budget(turns=2), EndReason.MAX_TURNS, 2),
        ([CALL], Budget(), EndReason.MAX_TURNS, 4),
        ([CALL], Budget(turns=9, tokens=100), EndReason.TOKENS, None),
        (['<tool_call>{"name": "slow"}</tool_call>'], Budget(tool_s=0.9), EndReason.TOOL_TIME, 2),
        (['<tool_call>{"name": "slow"}</tool_call>'], Budget(total_s=0.4), EndReason.TOTAL_TIME, 1),
    ],
)
def test_a_budget_that_is_spent_ends_the_episode_as_wrong(
    chat: Chat, turns: list[str], budget: Budget, reason: EndReason, n_turns: int | None
) -> None:
    rollout = play(chat, turns, budget=budget)
    assert rollout.end_reason is reason
    assert (rollout.score.value, rollout.score.outcome) == (0.0, Outcome.WRONG)
    assert n_turns is None or len(rollout.turns) == n_turns
    if budget.tokens is not None:
        assert rollout.n_completion_tokens == budget.tokens


def test_a_template_without_tools_is_refused() -> None:
    tokenizer = train_tokenizer(["a"] * 20, vocab_size=300)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(UsageError, match="does not tell the model of tools"):
        Chat(tokenizer).tool_format  # noqa: B018
