"""Dialogues with a simulated user behind a real server, and what its failures cost."""

from __future__ import annotations

import time

import pytest

import envs
import rewards
import rewards.judge
from envs import EndReason, UsageError
from envs.dialogue import SimulatedUser
from rewards import Outcome
from tests.envs.playing import call, play, told
from tests.rewards.judge_server import MODEL, JudgeServer, Reply

ROW = {"prompt": "I want a table.", "goal": "a table for 3", "persona": "curt", "answer": "3"}


def said(messages, answer, **columns) -> bool:
    """A reward of the whole conversation."""
    return any(answer in m["content"] for m in messages if m["role"] == "assistant")


def dialogue(url: str, **user):
    user = {"url": url, "model": MODEL, "timeout_s": 60.0, "attempts": 2} | user
    return envs.load(
        "dialogue", tasks=[ROW], reward=said, user=user, check=False, held_out_percent=0
    )


def behave(asked):
    last = asked.body["messages"][-1]["content"]
    return "Three of us." if "how many" in last else "Good. [DONE]"


def test_the_user_answers_until_it_stops_and_the_whole_is_judged() -> None:
    with JudgeServer(behave) as server:
        asked, over = play(dialogue(server.url), ["For how many?", "A table for 3, then."])
        first, second = (one.body["messages"] for one in server.asked)
    assert told(asked) == "Three of us."
    assert not asked.done
    assert over.done
    assert over.info == {"user_stopped": 1}
    assert over.score is not None
    assert over.score.outcome is Outcome.CORRECT
    assert "a table for 3" in first[0]["content"]
    assert "curt" in first[0]["content"]
    assert [(m["role"], m["content"]) for m in second[2:]] == [  # with the roles turned round
        ("assistant", "I want a table."),
        ("user", "For how many?"),
        ("assistant", "Three of us."),
        ("user", "A table for 3, then."),
    ]


@pytest.mark.parametrize(
    ("reply", "outcome", "requests", "why"),
    [
        (Reply("no", status=500), Outcome.ERROR, 2, "no reply in 2 attempts"),
        (Reply("no such model", status=404), Outcome.ERROR, 1, "no such model"),
        (Reply(drop=True), Outcome.ERROR, 2, "no reply"),
        (Reply(raw=b"<html>"), Outcome.ERROR, 2, "no chat completion"),
        (Reply("half a sen", finish="length"), Outcome.ERROR, 1, "cut off"),
        (Reply("  "), Outcome.ERROR, 1, "it said nothing"),
        (Reply("late", after_s=5.0), Outcome.TIMEOUT, 1, "no message within 0.5 s"),
    ],
    ids=["500", "404", "dropped", "no json", "cut", "empty", "late"],
)
def test_a_user_that_fails_leaves_the_episode_without_a_value(
    reply: Reply, outcome: Outcome, requests: int, why: str
) -> None:
    timeout_s = 0.5 if reply.after_s else 60.0
    with JudgeServer(lambda asked: reply) as server:
        (over,) = play(dialogue(server.url, timeout_s=timeout_s), ["For how many?"])
        assert len(server.asked) == requests
    assert over.done
    assert over.score is not None
    assert (over.score.value, over.score.outcome) == (None, outcome)
    assert why in over.score.detail


def test_a_server_that_is_gone_is_an_error_within_its_deadline() -> None:
    with JudgeServer(behave) as server:
        url = server.url
    started = time.monotonic()
    (over,) = play(dialogue(url), ["Hello?"])
    assert over.score is not None
    assert over.score.value is None
    assert time.monotonic() - started < 10


def test_a_conversation_out_of_turns_is_judged_and_one_cut_is_wrong() -> None:
    import asyncio

    async def ends(reason: EndReason) -> rewards.Score:
        with JudgeServer(lambda asked: "And?") as server:
            environment = dialogue(server.url)
            env = environment.make()
            env.start(environment.tasks.train(0), seed=0)
            await env.step({"role": "assistant", "content": "A table for 3."})
            return await env.unfinished(reason)

    assert asyncio.run(ends(EndReason.MAX_TURNS)).outcome is Outcome.CORRECT
    assert asyncio.run(ends(EndReason.LENGTH)).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    ("row", "user", "why"),
    [
        ({"goal": " "}, {}, "needs a goal"),
        ({}, {"url": "nowhere"}, "is no address"),
        ({}, {"patience": 1}, "unexpected keyword argument 'patience'"),
        ({}, {"timeout_s": 0}, "timeout_s is above 0"),
        ({}, {"stop": ""}, "stop phrase"),
    ],
)
def test_what_cannot_be_a_dialogue(row: dict, user: dict, why: str) -> None:
    user = {"url": "http://127.0.0.1:9/v1", "model": MODEL} | user
    with pytest.raises(UsageError, match=why):
        envs.load(
            "dialogue", tasks=[ROW | row], reward=said, user=user, check=False, held_out_percent=0
        )
    assert SimulatedUser("http://127.0.0.1:9", MODEL).url == "http://127.0.0.1:9/v1"


# a rubric at the end of an episode with tools


class Desk(envs.ToolEnv):
    def order(self, number: int) -> str:
        """The state of an order."""
        return f"order {number} was sent"


RUBRIC = [{"name": "looked", "question": "Was it looked up?", "choices": ["no", "yes"]}]


def desk(url: str) -> envs.Environment:
    judge = rewards.judge.load(
        url, MODEL, RUBRIC, conversation=True, check=False, attempts=1, asks=1
    )
    tasks = envs.generated(
        lambda rng: envs.Task("7", (envs.user("Where is it?"),)), held_out_percent=0
    )
    return envs.Episodes("desk", tasks, lambda: Desk(judge))


def test_a_rubric_sees_calls_and_results_and_decides() -> None:
    def judge(asked):
        seen = all(one in asked.user for one in ('calls {"name": "order"', "order 7 was sent"))
        return asked.verdict(looked="yes" if seen else "no")

    with JudgeServer(judge) as server:
        _, done = play(desk(server.url), [call("order", number=7), "It was sent."])
        (lazy,) = play(desk(server.url), ["It was sent, surely."])
    assert done.score is not None
    assert (done.score.value, done.score.outcome) == (1.0, Outcome.CORRECT)
    assert lazy.score is not None
    assert (lazy.score.value, lazy.score.outcome) == (0.0, Outcome.WRONG)


def test_a_judge_that_fails_is_no_zero() -> None:
    with JudgeServer(lambda asked: "I like it") as server:
        (done,) = play(desk(server.url), ["It was sent."])
    assert done.score is not None
    assert (done.score.value, done.score.outcome) == (None, Outcome.ERROR)
    (done,) = play(desk("http://127.0.0.1:9/v1"), ["It was sent."])
    assert done.score is not None
    assert done.score.value is None
