import pytest

import envs
from posttrain.chat import Chat
from posttrain.config import make_config
from posttrain.errors import UsageError
from posttrain.tasks import TaskPlan
from pretrain.tokenizer import train_tokenizer


def _plan(rows, on_long_prompt, window=40):
    environment = envs.from_tasks(rows, reward=lambda completion: 1.0, name="rows")
    chat = Chat(train_tokenizer(["what is 1 + 2 ?"] * 50, vocab_size=300))
    grpo = {"steps": 3, "prompts_per_step": 4, "on_long_prompt": on_long_prompt}
    config = make_config({"model": "m", "env": "e", "grpo": grpo})
    return TaskPlan(environment, chat, config, window)


SHORT = [{"prompt": f"what is {i} + 2 ?", "answer": str(i)} for i in range(20)]
LONG = [{"prompt": f"{i} " + "1 + " * 60, "answer": str(i)} for i in range(20)]


def test_steps_are_a_function_of_the_step_alone():
    forward, backward = _plan(SHORT, "error"), _plan(SHORT, "error")
    late = backward.step(2)
    assert [t.task_id for t in forward.step(0)] == [t.task_id for t in backward.step(0)]
    assert [t.task_id for t in forward.step(2)] == [t.task_id for t in late]
    ids = [t.task_id for step in range(3) for t in forward.step(step)]
    assert len(set(ids)) == 12


def test_long_prompts_are_an_error_that_names_and_counts_them():
    with pytest.raises(UsageError, match=r"\d+ of 12 prompts fill the model's window of 40 tokens"):
        _plan(SHORT + LONG, "error").check([])
    _plan(SHORT, "error").check([])


def test_long_prompts_are_dropped_when_asked_and_counted():
    plan = _plan(SHORT + LONG, "drop")
    plan.check([])
    tasks = [task for step in range(3) for task in plan.step(step)]
    assert len(tasks) == 12
    assert all("1 + 1 +" not in str(task.messages) for task in tasks)
    assert plan.dropped


def test_only_long_prompts_end_instead_of_searching_for_ever():
    with pytest.raises(UsageError, match="nothing to train on"):
        _plan(LONG, "drop").check([])
