"""Tools as methods: their schemas, and what the model is told when a call can't be run."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Literal

import pytest

import envs
from envs import Step, Task, ToolEnv, ToolFailure, UsageError, tool_spec
from rewards import Outcome


class Desk(ToolEnv):
    """Tools of every kind."""

    call_timeout_s = 0.3
    max_result_chars = 100

    def multiply(self, a: int, b: Annotated[int, "the second factor"] = 2) -> int:
        """The product of a and b."""
        return a * b

    async def later(self, unit: Literal["s", "ms"]) -> dict[str, str]:
        """Waits a little."""
        await asyncio.sleep(0)
        return {"unit": unit}

    def divide(self, a: float, b: float) -> float:
        """a / b."""
        return a / b

    def hang(self) -> None:
        """Never ready."""
        time.sleep(1.0)

    def broken(self) -> None:
        """The environment's own fault."""
        raise ToolFailure("the database is gone")

    def long(self, n: int) -> str:
        """n letters."""
        return "a" * n

    def judge(self, message):
        return message["content"] == self.task.answer


TASK = Task("t", (envs.user("?"),), answer="42")


def step(*calls, invalid=(), content="") -> Step:
    desk = Desk()
    desk.start(TASK, seed=0)
    functions = [
        {"id": str(i), "function": {"name": n, "arguments": a}} for i, (n, a) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": content}
    message |= {"tool_calls": functions} if calls else {}
    message |= {"invalid_tool_calls": list(invalid)} if invalid else {}
    return asyncio.run(desk.step(message))


def contents(done: Step) -> list[str]:
    return [message["content"] for message in done.messages]


def test_a_method_is_a_tool_with_its_schema() -> None:
    assert [spec.name for spec in Desk().tools()] == [
        *("multiply", "later", "divide", "hang", "broken", "long"),
    ]
    assert tool_spec(Desk.multiply).as_openai() == {
        "type": "function",
        "function": {
            "name": "multiply",
            "description": "The product of a and b.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer"},
                    "b": {"type": "integer", "default": 2, "description": "the second factor"},
                },
                "required": ["a"],
                "additionalProperties": False,
            },
        },
    }
    assert tool_spec(Desk.later).parameters["properties"]["unit"]["enum"] == ["s", "ms"]


def test_calls_are_run_in_order_and_answered_by_id() -> None:
    done = step(("multiply", {"a": 6, "b": 7}), ("later", {"unit": "s"}))
    assert contents(done) == ["42", '{"unit": "s"}']
    assert [(m["role"], m["name"], m["tool_call_id"]) for m in done.messages] == [
        ("tool", "multiply", "0"),
        ("tool", "later", "1"),
    ]
    assert not done.done
    assert done.score is None
    assert (done.info["tool_calls"], done.info["tool_errors"]) == (2, 0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("multiply", {"a": "six"}), "a: Input should be a valid integer"),
        (("multiply", {"a": 1, "c": 1}), "c: Extra inputs are not permitted"),
        (("multiply", {}), "a: Field required"),
        (("later", {"unit": "h"}), "Input should be 's' or 'ms'"),
        (("divide", {"a": 1, "b": 0}), "ZeroDivisionError"),
        (("hang", {}), "no result within 0.3 s"),
        (("judge", {"message": {}}), "there is no tool 'judge'; there is multiply"),
        (("__init__", {}), "there is no tool '__init__'"),
    ],
)
def test_what_can_not_be_run_is_told_and_counted(call, said: str) -> None:
    done = step(call)
    assert said in contents(done)[0]
    assert contents(done)[0].startswith("error: ")
    assert done.info["tool_errors"] == 1
    assert not done.done


def test_a_call_that_could_not_be_read_is_answered_too() -> None:
    done = step(invalid=["<tool_call> is not closed"])
    assert contents(done) == ["error: the call could not be read: <tool_call> is not closed"]
    assert done.info["malformed_calls"] == 1
    assert not done.done


def test_a_long_result_is_cut_in_its_middle() -> None:
    (text,) = contents(step(("long", {"n": 500})))
    assert text == f"{'a' * 50}\n[400 characters left out]\n{'a' * 50}"


def test_the_environments_own_failure_is_not_told_but_raised() -> None:
    with pytest.raises(ToolFailure, match="the database is gone"):
        step(("broken", {}))


def test_a_message_without_calls_is_the_answer() -> None:
    right, wrong = step(content="42"), step(content="41")
    assert right.done
    assert (right.info["tool_calls"], right.info["tool_errors"]) == (0, 0)  # counted, not left out
    assert right.score is not None
    assert (right.score.value, right.score.outcome) == (1.0, Outcome.CORRECT)
    assert wrong.score is not None
    assert wrong.score.outcome is Outcome.WRONG


def test_a_tool_without_type_hints_is_refused_when_it_is_written() -> None:
    with pytest.raises(UsageError, match=r"Bad\.add: parameter 'b' has no type hint"):

        class Bad(ToolEnv):
            def add(self, a: int, b) -> int:
                return a + b

    with pytest.raises(UsageError, match=r"Star\.add: \*numbers can't be described"):

        class Star(ToolEnv):
            def add(self, *numbers: int) -> int:
                return sum(numbers)


def test_slow_environments_hold_up_no_reward_and_share_many_threads() -> None:
    import threading

    from rewards.threads import JUDGES, WORLDS, in_thread

    free = threading.Event()

    async def everything() -> tuple[str, int]:
        slow = [
            asyncio.ensure_future(in_thread(lambda: free.wait(20.0), 20.0, WORLDS))
            for _ in range(JUDGES.threads * 4)
        ]
        await asyncio.sleep(0)
        judged = await in_thread(lambda: "judged", 5.0)  # while all of the others wait
        waiting = sum(not one.done() for one in slow)
        free.set()
        assert all(await asyncio.gather(*slow))
        return judged, waiting

    assert asyncio.run(everything()) == ("judged", JUDGES.threads * 4)


def test_an_override_of_an_instant_method_is_not_instant() -> None:
    class Opens(Desk):
        def close(self) -> None:
            """May wait."""

    assert getattr(Desk().close, "instant", False)
    assert not getattr(Opens().close, "instant", False)
