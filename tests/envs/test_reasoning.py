"""Every dataset of reasoning-gym through the real worker processes."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import envs
import rewards
from envs import UsageError, reasoning_pool
from envs.reasoning import NO_GOLD, dataset_names, final_answer
from envs.reasoning_guards import refused
from rewards import Case, Outcome, Score

# An item of these takes 0.2 to 0.4 s to make, and one in ten is held out.
SLOW = {"knight_swap", "futoshiki", "arc_agi", "zebra_puzzles", "sokoban"}
COMPOSITE = {"datasets": [{"name": "chain_sum"}, {"name": "puzzle24", "weight": 0.5}]}


def load(name, **args):
    config = COMPOSITE if name == "composite" else {}
    return envs.load(f"reasoning_gym:{name}", **{**config, **args})


def judged(environment, task, completion):
    case = Case("", completion, task.answer, (), task.columns)
    return asyncio.run(rewards.apply(environment.reward, case))


def test_there_are_106_datasets():
    names = dataset_names()
    assert len(names) == 106
    assert {"chain_sum", "composite", "zebra_puzzles"} <= set(names)


@pytest.mark.slow
def test_every_dataset_gold_scores_one_empty_and_echo_nothing_and_nothing_is_left_to_chance(
    monkeypatch,
):
    monkeypatch.setattr("envs.reasoning.SCORER_TIMEOUT_S", 120.0)  # by the clock, on busy cores
    pools = (reasoning_pool.TASKS, reasoning_pool.SCORES)
    before = [pool.restarts for pool in pools]
    failures, without_gold = [], set()
    for name in dataset_names():
        # half held out, so that few candidates are made for a held-out task
        report = envs.check(load(name, held_out_percent=50), 1 if name in SLOW else 4)
        failures += [str(report)] * (not report.ok)
        assert report.tasks == (2 if name in SLOW else 8)
        if report.without_gold:
            without_gold.add(name)
            assert report.without_gold == report.tasks
    assert failures == []
    assert without_gold == NO_GOLD
    assert [pool.restarts for pool in pools] == before


def test_tasks_are_the_same_in_another_process_whatever_its_hash_seed():
    # three datasets whose items depend on PYTHONHASHSEED, two on global random state, one on order
    names = ["polynomial_multiplication", "ransom_note", "isomorphic_strings"]
    names += ["list_functions", "pool_matrix", "word_ladder"]
    code = (
        "import sys, envs, hashlib\n"
        "for name in sys.argv[2:]:\n"
        "    tasks = envs.load('reasoning_gym:' + name, seed=3).tasks\n"
        "    order = range(20) if sys.argv[1] == '1' else reversed(range(20))\n"
        "    seen = {i: tasks.train(i) for i in order}\n"
        "    text = repr([(seen[i].messages, seen[i].answer) for i in range(20)])\n"
        "    print(name, hashlib.md5(text.encode()).hexdigest())\n"
    )
    outputs = []
    for hash_seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", code, hash_seed, *names],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        outputs.append(ran.stdout)
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 6


def test_held_out_and_training_tasks_of_chain_sum():
    tasks = load("chain_sum", seed=1).tasks
    train = {tasks.train(i).columns["question"] for i in range(500)}
    aside = [t.columns["question"] for t in tasks.held_out(50)]
    assert all(map(envs.held_out, aside))
    assert not any(map(envs.held_out, train))
    assert len(set(aside)) == 50
    assert load("chain_sum", seed=2).tasks.held_out(50) == tasks.held_out(50)
    assert load("chain_sum", seed=2).tasks.train(7) != tasks.train(7)
    assert load("chain_sum", seed=1).tasks.train(123_456) == tasks.train(123_456)


def test_config_reaches_the_dataset():
    tasks = load("chain_sum", min_terms=2, max_terms=2, max_digits=1).tasks
    assert all(tasks.train(i).columns["metadata"]["num_terms"] == 2 for i in range(20))
    composite = load("composite").tasks
    seen = {composite.train(i).columns["metadata"]["source_dataset"] for i in range(40)}
    assert seen == {"chain_sum", "puzzle24"}


@pytest.mark.parametrize(
    ("name", "config", "why"),
    [
        ("chain_sums", {}, "no dataset 'chain_sums'. Did you mean 'chain_sum'"),
        ("qwertyuiop", {}, r"no dataset 'qwertyuiop'. Known: ab, .*\(106 in all\)"),
        ("chain_sum", {"min_term": 3}, "no argument 'min_term'. Did you mean 'min_terms'"),
        ("chain_sum", {"size": 3}, "size has no meaning here"),
        ("chain_sum", {"min_terms": 5, "max_terms": 2}, "chain_sum refuses .*Accepted arguments"),
        ("chain_sum", {"min_terms": "two"}, "chain_sum refuses"),
        ("composite", {"datasets": []}, "Must specify at least one dataset"),
    ],
)
def test_bad_arguments(name, config, why):
    with pytest.raises(UsageError, match=why):
        load(name, **config)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (" 42\n", "42"),
        ("<think>7</think> 42", "42"),
        ("<think>a</think>b<think>c</think>42", "42"),
        ("so <answer> 41 </answer> no, <answer>42</answer> it is", "42"),
        ("<think><answer>1</answer></think><answer>42</answer>", "42"),
        ("<think>42", ""),
        ("42 <think>", ""),
        ("<think>a</think>", ""),
        ("<answer></answer>", ""),
        ("42</answer>", "42</answer>"),
        ("", ""),
    ],
)
def test_the_final_answer(completion, answer):
    assert final_answer(completion) == answer


def test_scores_of_chain_sum():
    environment = load("chain_sum")
    task = environment.tasks.train(0)
    gold = task.answer
    right = Score(1.0, Outcome.CORRECT, {"scorer": 1.0})
    assert judged(environment, task, f"<think>hm</think>{gold}") == right
    assert judged(environment, task, "") == Score(0.0, Outcome.UNPARSEABLE)
    assert judged(environment, task, f"<think>{gold}") == Score(0.0, Outcome.UNPARSEABLE)
    hedge = f"{gold} or {gold}"
    score = judged(environment, task, hedge)
    share = len(gold) / len(hedge)  # the scorer's partial credit for containing the answer
    assert score == Score(0.0, Outcome.WRONG, {"scorer": pytest.approx(share)})
    generous = load("chain_sum", partial_credit=True)
    assert judged(generous, task, hedge).value == pytest.approx(share)
    assert judged(generous, task, hedge).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("game_of_life_halting", "whatever"),
        ("coin_flip", "0"),
        ("complex_arithmetic", "nan"),
        ("puzzle24", "6*4*1*1"),
        ("prime_factorization", "a x b"),
        ("intermediate_integration", "Integral(x, x)"),
    ],
)
def test_answers_that_fool_a_scorer_are_judged_and_wrong(name, answer):
    environment = load(name)
    for index in range(3):
        score = judged(environment, environment.tasks.train(index), answer)
        assert score.value == 0.0
        assert score.outcome in (Outcome.WRONG, Outcome.UNPARSEABLE)


ATTACKS = [
    "__import__('os').system('touch {file}')",
    "open('{file}', 'w')",
    "[open('{file}', 'w') for x in 'a']",
    "().__class__.__base__.__subclasses__()",
    "exec('1')",
    "x.subs(x, 1)",
    "(lambda: 1)()",
    "f'{{1}}'",
    "9**9**9**9",
    "2**99999999",
    "factorial(99999999)",
]


@pytest.mark.parametrize(
    "name", ["countdown", "simple_integration", "n_queens", "string_insertion"]
)
def test_model_text_is_not_evaluated(name, tmp_path):
    environment = load(name)
    task = environment.tasks.train(0)
    for attack in ATTACKS:
        text = attack.format(file=tmp_path / "owned")
        score = judged(environment, task, text)
        assert (score.value, score.outcome) == (0.0, Outcome.WRONG), text
        assert score.parts == {}, text  # the scorer was not asked
    assert list(tmp_path.iterdir()) == []


def test_every_scorer_that_evaluates_model_text_is_guarded():
    import reasoning_gym

    root = Path(reasoning_gym.__file__).parent
    guarded = 0
    for path in root.glob("*/**/*.py"):
        text = path.read_text()
        if "eval(answer)" in text or "parse_expr(answer" in text:
            assert refused(path.stem, "open('x')", "gold", {"numbers": []}), path
            guarded += 1
    assert guarded == 9


def test_a_job_past_its_deadline_is_a_time_out_and_the_next_one_works():
    worker = reasoning_pool.Worker("test")
    config = {"min_terms": 2}
    entry = {"question": "q", "answer": "3", "metadata": {}}
    try:
        assert worker.call("score", "chain_sum", config, "3", entry, deadline_s=30.0) == 1.0
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no answer after 0\.05 s"):
            worker.call("item", "knight_swap", {"max_attempts": 10**6}, "s", 3, deadline_s=0.05)
        assert time.monotonic() - started < 20
        assert worker.restarts == 1
        assert worker.call("score", "chain_sum", config, "3", entry, deadline_s=30.0) == 1.0
    finally:
        worker.close()


def test_a_scorer_broken_on_its_gold_answer_is_an_error():
    environment = load("prime_factorization")
    task = environment.tasks.train(0)
    broken = envs.Task("b", task.messages, "not a number", task.columns)
    score = judged(environment, broken, "also not")
    assert (score.value, score.outcome) == (None, Outcome.ERROR)
    assert "ValueError" in score.detail


def test_a_killed_worker_is_replaced():
    worker = reasoning_pool.Worker("test")
    try:
        item = worker.call("item", "chain_sum", {}, "s", 3, deadline_s=30.0)
        process = worker._process
        process.kill()
        process.wait(10)
        assert worker.call("item", "chain_sum", {}, "s", 3, deadline_s=30.0) == item
        assert worker._process.pid != process.pid
    finally:
        worker.close()


def test_workers_end_with_a_program_that_is_killed():
    code = (
        "import envs, os, signal\n"
        "from envs.reasoning_pool import TASKS\n"
        "envs.load('reasoning_gym:chain_sum')\n"
        "print(TASKS._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == -9
    stat = Path(f"/proc/{int(ran.stdout)}/stat")

    def gone():
        try:
            return ") Z " in stat.read_text()
        except OSError:  # reaped, perhaps while it was read
            return True

    until = time.monotonic() + 20
    while time.monotonic() < until and not gone():
        time.sleep(0.05)
    assert gone()
