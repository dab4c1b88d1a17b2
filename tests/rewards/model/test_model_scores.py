"""Scores of a checkpoint in this process depend on its tokens alone."""

import asyncio
import json
import random
import threading
import time

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import rewards
import rewards.model
from rewards import Case, Outcome
from rewards.model.batching import MicroBatcher, by_length

PROMPT = "what is 1 + 2 ?"
ANSWERS = [
    "it is 3",
    "it is 4",
    "",
    "a" * 150,
    "so the answer is 3 . " * 20,
    "7",
    "\n\n",
    "3 3 3 3 3 3",
    "what ? 🙂 中文",
]


def scored(reward, answers, **fields):
    async def run():
        return await asyncio.gather(*(reward(PROMPT, answer, **fields) for answer in answers))

    return asyncio.run(run())


def values(reward, answers):
    return [score.value for score in scored(reward, answers)]


def by_hand(path, answer, *, drop_last=0):
    """The score head at the last token of one unpadded row, without transformers' own pooling."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path).float()
    said = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(said, return_dict=True)["input_ids"]
    ids = ids[: len(ids) - drop_last]
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids])).last_hidden_state
        return float(model.score(hidden[0, -1]))


def test_a_score_is_the_head_at_the_last_token_whatever_the_batch(checkpoint):
    expected = [by_hand(checkpoint, answer) for answer in ANSWERS]
    assert max(expected) - min(expected) > 0.5  # different inputs, different scores
    reward = rewards.model.load(checkpoint)
    assert [values(reward, [answer])[0] for answer in ANSWERS] == pytest.approx(expected, abs=1e-5)
    assert values(reward, ANSWERS) == pytest.approx(expected, abs=1e-5)
    for seed in range(3):
        order = random.Random(seed).sample(range(len(ANSWERS)), len(ANSWERS))
        shuffled = values(reward, [ANSWERS[i] for i in order])
        assert shuffled == pytest.approx([expected[i] for i in order], abs=1e-5)
    small = rewards.model.load(checkpoint, token_budget=64)  # most rows alone
    assert values(small, ANSWERS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", ["own", "eos", "none", "last"])
def test_padding_side_and_pad_token_do_not_matter(make_checkpoint, tokenizer, pad, side):
    tok = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|endoftext|>",
        chat_template=tokenizer.chat_template.replace(
            "<|im_end|>' -}}{%- end", "' + eos_token -}}{%- end"
        ).replace("{{- '\\n' -}}\n{%- endfor", "{%- endfor"),
        model_max_length=512,
        padding_side=side,
    )
    newline = tokenizer("\n")["input_ids"][0]
    ids = {"own": tokenizer.pad_token_id, "eos": tok.eos_token_id, "none": None, "last": newline}
    if ids[pad] is not None:
        tok.pad_token = tok.convert_ids_to_tokens(ids[pad])
    path = make_checkpoint(pad + side, tok=tok, pad_token_id=ids[pad])
    assert json.loads((path / "config.json").read_text()).get("pad_token_id") == ids[pad]
    reward = rewards.model.load(path, eos="keep")
    expected = [by_hand(path, answer) for answer in ANSWERS]
    assert values(reward, ANSWERS) == pytest.approx(expected, abs=1e-5)
    assert [values(reward, [a])[0] for a in ANSWERS] == pytest.approx(expected, abs=1e-5)


def test_messages_and_prompt_make_the_same_tokens_and_apply_passes_them(checkpoint):
    reward = rewards.model.load(checkpoint)
    said = ({"role": "user", "content": PROMPT}, {"role": "assistant", "content": "it is 3"})
    alone, whole, open_ended = (
        asyncio.run(rewards.apply(reward, Case(PROMPT, "it is 3", None, messages)))
        for messages in ((), said, said[:1])
    )
    assert alone == whole == open_ended
    assert rewards.required_columns(reward) == frozenset()
    longer = ({"role": "system", "content": "be brief"}, *said)
    assert asyncio.run(reward(PROMPT, "it is 3", longer)).value != pytest.approx(alone.value)
    other = asyncio.run(reward(PROMPT, "it is 4", said))
    assert (other.value, other.outcome) == (None, Outcome.ERROR)
    assert "not the completion" in other.detail


def test_the_outcome_needs_a_threshold_and_reads_the_raw_score(checkpoint):
    reward = rewards.model.load(checkpoint, name="rm")
    raw = values(reward, ANSWERS)
    assert {score.outcome for score in scored(reward, ANSWERS)} == {Outcome.WRONG}
    middle = sorted(raw)[4]
    judged = scored(rewards.model.load(checkpoint, threshold=middle), ANSWERS)
    assert sum(score.outcome is Outcome.CORRECT for score in judged) == 4  # strictly above
    combined = rewards.combine({reward: 2.0, (lambda: 1.0): 1.0})
    score = asyncio.run(rewards.apply(combined, Case(PROMPT, ANSWERS[0])))
    assert score.value == pytest.approx(2 * raw[0] + 1.0, abs=1e-5)
    assert score.parts["rm"] == pytest.approx(raw[0], abs=1e-5)


def test_a_label_is_chosen_by_index_or_name(make_checkpoint):
    path = make_checkpoint("many", labels=3, id2label={0: "bad", 1: "ok", 2: "good"})
    by_index = [values(rewards.model.load(path, label=i), ["it is 3"])[0] for i in range(3)]
    assert len({round(value, 4) for value in by_index}) == 3
    assert values(rewards.model.load(path, label="good"), ["it is 3"]) == by_index[2:]


def test_half_precision_keeps_a_full_precision_head(make_checkpoint):
    path = make_checkpoint("half")
    half = rewards.model.load(path, dtype="bfloat16")
    full = values(rewards.model.load(path), ANSWERS)
    low = values(half, ANSWERS)
    assert low == pytest.approx(full, abs=0.1)
    assert any(value != float(torch.tensor(value, dtype=torch.bfloat16)) for value in low)


def test_many_calls_share_passes_and_leave_the_loop_free(checkpoint):
    reward = rewards.model.load(checkpoint, wait_s=0.02)
    inner = reward._scorer._checkpoint
    passes, threads, original = [], set(), inner.logits

    def spy(rows):
        passes.append(len(rows))
        threads.add(threading.get_ident())
        return original(rows)

    inner.logits = spy

    async def run():
        ticks = 0
        work = asyncio.gather(*(reward(PROMPT, f"it is {i}") for i in range(200)))
        while not work.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks, await work

    ticks, scores = asyncio.run(run())
    assert len(scores) == 200 == sum(passes) and all(score.judged for score in scores)
    assert len(passes) <= 4  # of rows of about 20 tokens 800 fit into one
    assert ticks >= 10
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_calls_from_several_loops_at_once(checkpoint):
    reward = rewards.model.load(checkpoint)
    expected = values(reward, ANSWERS)
    results = {}

    def loop(number):
        results[number] = values(reward, ANSWERS)

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [0, 1, 2, 3]
    for found in results.values():
        assert found == pytest.approx(expected, abs=1e-5)


class Row(list):
    """Something with a length."""


def test_a_cancelled_call_is_not_run_and_a_failing_batch_costs_one_sample():
    ran = []

    def run(rows):
        ran.append([row[0] for row in rows])
        if any(row[0] == "bad" for row in rows):
            raise MemoryError("too much")
        return [row[0].upper() for row in rows]

    batcher = MicroBatcher(lambda word: Row([word]), run, token_budget=100, wait_s=0.1)

    async def many():
        tasks = [asyncio.ensure_future(batcher.submit(w)) for w in ("a", "gone", "bad", "b", "c")]
        await asyncio.sleep(0)  # all of them wait now
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    a, gone, bad, b, c = asyncio.run(many())
    assert (a, b, c) == ("A", "B", "C")
    assert isinstance(gone, asyncio.CancelledError) and isinstance(bad, MemoryError)
    assert "gone" not in {word for batch in ran for word in batch}


def test_a_sample_that_can_not_be_prepared_fails_alone():
    def prepare(word):
        if word == "bad":
            raise ValueError("no")
        return Row([word])

    batcher = MicroBatcher(prepare, lambda rows: [r[0] for r in rows], token_budget=9, wait_s=0)

    async def run():
        calls = (batcher.submit(word) for word in ("a", "bad", "b"))
        return await asyncio.gather(*calls, return_exceptions=True)

    a, bad, b = asyncio.run(run())
    assert (a, b) == ("a", "b") and str(bad) == "no"


def test_the_deadline_of_apply_holds_while_the_model_computes():
    release = threading.Event()

    def slow(rows):
        release.wait(20)
        return [0.0 for _ in rows]

    batcher = MicroBatcher(lambda word: Row([word]), slow, token_budget=9, wait_s=0)

    async def reward(completion):
        return await batcher.submit(completion)

    started = time.monotonic()
    score = asyncio.run(rewards.apply(reward, Case("p", "c"), timeout_s=0.1))
    assert (score.value, score.outcome) == (None, Outcome.TIMEOUT)
    assert time.monotonic() - started < 5
    release.set()


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 100))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    batches = by_length(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
        assert lengths[batch[0]] == max(lengths[i] for i in batch)


def test_batches_by_hand():
    # 5 and 4 share 2 x 5 = 10; a third row would make 15; 3, 3, 2 fill 9 of 10
    assert by_length([3, 5, 2, 4, 3], 10) == [[1, 3], [0, 4, 2]]


def test_strip_reads_where_transformers_does_when_pad_is_eos(make_checkpoint, tokenizer):
    tok = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template="{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
        model_max_length=512,
    )
    path = make_checkpoint("peft", tok=tok, pad_token_id=tok.eos_token_id)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    ids = tok(PROMPT + tok.eos_token + "it is 3" + tok.eos_token, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        theirs = float(model(ids).logits)
    stripped = values(rewards.model.load(path, eos="strip"), ["it is 3"])[0]
    with pytest.warns(UserWarning, match="inputs end in its pad token"):
        kept = values(rewards.model.load(path), ["it is 3"])[0]
    assert stripped == pytest.approx(theirs, abs=1e-5)
    assert abs(kept - theirs) > 1e-3


@pytest.mark.parametrize("family", ["Bert", "Roberta", "GPT2", "Llama", "ModernBert"])
def test_encoders_and_older_decoders_do_not_depend_on_the_batch_either(family, tokenizer, tmp_path):
    torch.manual_seed(0)
    size = dict(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.2)
    ids = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    if family == "GPT2":
        size |= dict(n_embd=32, n_layer=2, n_head=2, n_positions=514)
    else:
        size |= dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        size |= dict(intermediate_size=64, max_position_embeddings=514)
    config = getattr(transformers, f"{family}Config")(**size, **ids)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = rewards.model.load(tmp_path)
    alone = [values(reward, [answer])[0] for answer in ANSWERS]
    assert values(reward, ANSWERS) == pytest.approx(alone, abs=1e-5)
    said = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWERS[0]}]
    row = tokenizer.apply_chat_template(said, return_dict=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(input_ids=row["input_ids"], attention_mask=row["attention_mask"]).logits
    assert alone[0] == pytest.approx(float(theirs), abs=1e-5)
    assert max(alone) - min(alone) > 1e-3


def test_no_text_crashes_it(checkpoint):
    reward = rewards.model.load(checkpoint)
    odd = ["\ud800 lone", "\x00", "\ufeff\u202e", "e\u0301" * 50, "{{ 1 / 0 }} {% raw %}"]
    assert all(score.judged for score in scored(reward, odd))
    (score,) = scored(reward, ["\ud800"], messages=({"role": "user", "content": "\udfff"},))
    assert score.judged
    broken = ({"role": "user", "content": {"no": "text"}},)
    (score,) = scored(reward, ["3"], messages=broken)
    assert (score.value, score.outcome) == (None, Outcome.ERROR)


def test_a_device_that_fails_is_an_error(checkpoint):
    reward = rewards.model.load(checkpoint)

    def fails(rows):
        raise RuntimeError("device lost")

    reward._scorer._checkpoint.logits = fails
    for score in scored(reward, ANSWERS[:3]):
        assert (score.value, score.outcome) == (None, Outcome.ERROR)
        assert "device lost" in score.detail


def test_a_configuration_file_can_name_it(checkpoint):
    reward = rewards.load(f"reward_model(source={str(checkpoint)!r}, name='rm', threshold=-99.0)")
    (score,) = scored(reward, ["it is 3"])
    assert score.value == pytest.approx(by_hand(checkpoint, "it is 3"), abs=1e-5)
    assert score.outcome is Outcome.CORRECT and rewards.name_of(reward) == "rm"
    with pytest.raises(rewards.UsageError, match="no option 'tresh'"):
        rewards.load("reward_model", source=checkpoint, tresh=1)
