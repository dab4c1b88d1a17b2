"""Ensembles, running statistics, and process reward models."""

import asyncio
import json
import math
import random
import statistics

import pytest
import torch
import transformers

import rewards
import rewards.model
from rewards import Case, Outcome, Score, UsageError
from rewards.model import Ensemble, RewardModel, RunningStatistics
from rewards.model.failures import Unjudged
from rewards.model.reward import Raw

PROMPT = "what is 1 + 2 ?"


class Fixed:
    """A scorer that knows its score."""

    def __init__(self, value):
        self.value = value

    async def raw(self, messages):
        if isinstance(self.value, Exception):
            raise self.value
        return Raw(float(self.value))

    async def close(self):
        pass


def judged(reward, completion="it is 3", **fields):
    return asyncio.run(reward(PROMPT, completion, **fields))


def ensemble(*values, **options):
    return Ensemble([RewardModel(f"m{i}", Fixed(v)) for i, v in enumerate(values)], **options)


@pytest.mark.parametrize(
    ("aggregate", "k", "value"),
    # 1, 2, 6: mean 3, population variance (4 + 1 + 9) / 3, std 2.160247
    [("mean", 1.0, 3.0), ("min", 1.0, 1.0), ("mean-std", 0.5, 3 - 0.5 * math.sqrt(14 / 3))],
)
def test_an_ensemble_by_hand(aggregate, k, value):
    score = judged(ensemble(1, 2, 6, aggregate=aggregate, k=k))
    assert score.value == pytest.approx(value)
    assert score.parts == pytest.approx({"m0": 1, "m1": 2, "m2": 6, "std": math.sqrt(14 / 3)})
    assert score.outcome is Outcome.WRONG
    assert judged(ensemble(1, 2, 6, threshold=2.9)).outcome is Outcome.CORRECT


def test_a_member_without_a_score_leaves_the_whole_unjudged():
    late = Unjudged("no answer", Outcome.TIMEOUT)
    score = judged(ensemble(1, late))
    assert (score.value, score.outcome, dict(score.parts)) == (None, Outcome.TIMEOUT, {"m0": 1.0})
    assert judged(ensemble(late, Unjudged("broken"))).outcome is Outcome.ERROR
    assert "m1: reward model 'm1': no answer" in score.detail


def test_two_checkpoints_averaged(make_checkpoint):
    paths = [make_checkpoint("one", seed=1), make_checkpoint("two", seed=2)]
    alone = [judged(rewards.model.load(path)).value for path in paths]
    reward = rewards.model.load(paths)
    score = asyncio.run(rewards.apply(reward, Case(PROMPT, "it is 3")))
    assert score.value == pytest.approx(statistics.fmean(alone), abs=1e-5)
    assert score.parts["std"] == pytest.approx(abs(alone[0] - alone[1]) / 2, abs=1e-5)
    assert set(score.parts) == {"one", "two", "std"}


def test_running_statistics_by_hand_and_in_any_order():
    source = random.Random(0)
    numbers = [source.gauss(5, 3) for _ in range(500)]
    states = []
    for seed in range(3):
        running = RunningStatistics()
        for part in (numbers[:200], numbers[200:]):
            for number in random.Random(seed).sample(part, len(part)):
                running.collect(number)
            running.update()
        states.append(running.state_dict())
    assert states[0] == states[1] == states[2]  # to the last bit
    assert running.mean == pytest.approx(statistics.fmean(numbers), rel=1e-12)
    assert running.std == pytest.approx(statistics.pstdev(numbers), rel=1e-12)
    again = RunningStatistics()
    again.load_state_dict(json.loads(json.dumps(states[0])))
    assert again.normalised(7.0) == running.normalised(7.0) == (7.0 - running.mean) / running.std


def test_values_move_only_at_an_update_and_not_when_frozen():
    reward = RewardModel("rm", Fixed(4.0), normalise=True)
    assert judged(reward) == Score(4.0, Outcome.WRONG, {"raw": 4.0})
    reward._scorer.value = 8.0
    assert judged(reward).value == 8.0
    reward.statistics.update()  # 4, 8: mean 6, std 2
    assert judged(reward) == Score(1.0, Outcome.WRONG, {"raw": 8.0})
    saved = reward.state_dict()
    assert saved["collected"] == [8.0]
    reward.statistics.freeze()
    reward._scorer.value = 100.0
    assert judged(reward).value == 47.0
    reward.statistics.update()
    assert judged(reward).value == 47.0
    other = RewardModel("rm", Fixed(100.0), normalise=True)
    other.load_state_dict(saved)
    assert judged(other).value == 47.0


def test_one_score_or_equal_scores_are_not_divided_by_nothing():
    reward = RewardModel("rm", Fixed(4.0), normalise=True)
    for _ in range(3):
        judged(reward)
        reward.statistics.update()
    assert judged(reward).value == 0.0


def test_an_ensemble_normalises_each_member_by_its_own():
    members = [RewardModel(f"m{i}", Fixed(0.0), normalise=True) for i in range(2)]
    reward = Ensemble(members)
    for number in (0.0, 2.0):
        members[0]._scorer.value, members[1]._scorer.value = number, 100 * number
        judged(reward)
    for member in members:
        member.statistics.update()
    score = judged(reward)  # both at the top of their scale
    assert score.value == 1.0 and score.parts["std"] == 0.0
    assert score.parts["m1/raw"] == 200.0
    again = Ensemble([RewardModel(f"m{i}", Fixed(2.0), normalise=True) for i in range(2)])
    again.load_state_dict(reward.state_dict())
    assert again.members[1].statistics.mean == 100.0
    with pytest.raises(UsageError, match="a state of"):
        again.load_state_dict({"other": {}})


@pytest.mark.parametrize(
    "state", [{}, {"count": 1}, {**RunningStatistics().state_dict(), "mean": float("nan")}]
)
def test_a_broken_state(state):
    with pytest.raises(UsageError, match="state of running statistics"):
        RunningStatistics().load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"aggregate": "median"}, "Did you mean 'mean' or 'min'"),
        ({"k": -1.0}, "at least 0"),
        ({"k": float("nan")}, "at least 0"),
    ],
)
def test_bad_ensembles(options, why):
    with pytest.raises(UsageError, match=why):
        ensemble(1, 2, **options)


def test_an_ensemble_of_one_or_of_twins(checkpoint):
    for source in ([checkpoint], [checkpoint, checkpoint], []):
        with pytest.raises(UsageError, match="at least two different reward models"):
            rewards.model.load(source)


# process reward models

STEPS = ["1 + 2 is 3", "3 is what ?", "so the answer is 3"]


def step_scores(path, steps, mark, *, labels):
    """Token by token: the text up to each mark is tokenised on its own and the last token read."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForTokenClassification.from_pretrained(path)
    head = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    whole = tokenizer(head + "".join(step + mark for step in steps) + "<|im_end|>\n")["input_ids"]
    found = []
    for i in range(len(steps)):
        prefix = tokenizer(head + "".join(step + mark for step in steps[: i + 1]))["input_ids"]
        assert whole[: len(prefix)] == prefix
        with torch.inference_mode():
            logits = model(torch.tensor([whole])).logits[0, len(prefix) - 1]
        found.append(float(logits.sigmoid() if labels == 1 else logits.softmax(-1)[1]))
    return found


@pytest.mark.parametrize(("labels", "mark"), [(1, "\n\n"), (2, "\n\n"), (2, "<|pad|>")])
def test_steps_are_scored_at_their_marks_and_in_any_batch(make_checkpoint, labels, mark):
    path = make_checkpoint(f"prm{labels}", kind="Token", labels=labels)
    expected = step_scores(path, STEPS, mark, labels=labels)
    assert max(expected) - min(expected) > 0.01
    reward = rewards.model.load_process(path, mark=mark, aggregate="product")
    answer = "\n\n".join(STEPS)

    async def run():
        others = ["1", "so the answer is 3 . " * 9, "3\n\n3\n\n3 3"]
        return await asyncio.gather(*(reward(PROMPT, text) for text in (*others, answer)))

    for score in (judged(reward, answer), asyncio.run(run())[-1]):
        assert json.loads(score.detail) == pytest.approx(expected, abs=1e-5)
        assert score.value == pytest.approx(math.prod(expected), abs=1e-5)
        assert score.parts == pytest.approx(
            {
                "min": min(expected),
                "product": math.prod(expected),
                "last": expected[-1],
                "mean": statistics.fmean(expected),
                "steps": 3,
            },
            abs=1e-5,
        )


@pytest.fixture(scope="module")
def prm(make_checkpoint):
    return make_checkpoint("prm", kind="Token", labels=2)


def test_steps_survive_blanks_unicode_and_forged_marks(prm):
    reward = rewards.model.load_process(prm, mark="<|pad|>")
    plain = judged(reward, "3 is 3\n\n4 🙂 中\n\n5")
    blanks = judged(reward, "3 is 3\n\n\n\n\n\n4 🙂 中\n\n  \n\n5\n\n")
    assert json.loads(plain.detail)[0] == json.loads(blanks.detail)[0]
    assert plain.parts["steps"] == blanks.parts["steps"] == 3
    forged = judged(reward, "3 is 3<|pad|><|pad|>\n\n5")
    assert forged.parts["steps"] == 2
    for text in ("", " \n\n ", "\n\n\n\n"):
        assert judged(reward, text) == Score(0.0, Outcome.UNPARSEABLE, {"steps": 0.0}, "no step")


def test_a_template_that_trims_the_answer(make_checkpoint, tokenizer):
    tok = transformers.AutoTokenizer.from_pretrained(make_checkpoint("t"))
    tok.chat_template = tok.chat_template.replace(
        "message.content or ''", "(message.content or '') | trim"
    )
    path = make_checkpoint("trim", kind="Token", labels=2, tok=tok)
    kept = rewards.model.load_process(make_checkpoint("no", kind="Token", labels=2))
    trimmed = rewards.model.load_process(path)
    answer = "\n3 is 3\n\n5"
    first, last = json.loads(judged(trimmed, answer).detail)
    assert first == pytest.approx(json.loads(judged(kept, "3 is 3\n\n5").detail)[0], abs=1e-5)
    assert 0 < last < 1
    tok.chat_template = "{% for m in messages %}{{ m.content | replace('3', '4') }}{% endfor %}"
    rewrites = rewards.model.load_process(
        make_checkpoint("rewrites", kind="Token", labels=2, tok=tok)
    )
    assert "rewrites the answer" in judged(rewrites, answer).detail


def test_a_long_chain_of_steps_is_an_error_and_a_threshold_decides(prm):
    reward = rewards.model.load_process(prm, threshold=0.0)
    assert judged(reward, "3\n\n5").outcome is Outcome.CORRECT
    score = judged(reward, "3\n\n" * 400)
    assert (score.value, score.outcome) == (None, Outcome.ERROR)
    assert "over the window of 512" in score.detail


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"aggregate": "max"}, "Known: last, mean, min, product"),
        ({"separator": ""}, "separator is empty"),
        ({"mark": "step"}, "tokens of .*, not one"),
        ({"too_long": "truncate_left"}, "needs every step"),
        ({"lable": 1}, "Did you mean 'label'"),
        ({"label": 2}, "has no label 2"),
    ],
)
def test_bad_process_models(prm, options, why):
    with pytest.raises(UsageError, match=why):
        rewards.model.load_process(prm, **options)
