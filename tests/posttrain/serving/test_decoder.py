"""Many readers of one model: the engine's own tokens, nobody held up, nothing left running."""

import asyncio

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from posttrain.engines.embedded import EmbeddedEngine
from posttrain.serving import decoder as decoder_module
from posttrain.serving.decoder import Ask, Decoder, QueueFull, cut
from posttrain.types import Request, Sampling

PROMPT = np.arange(5, 12)


@pytest.fixture(scope="module")
def model(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def ask(name="0", *, prompt=PROMPT, n=12, temperature=1.0, seed=0, stop=(), **more):
    return Ask(Request(name, prompt, Sampling(n, temperature, tuple(stop)), seed), **more)


async def read(decoder, one):
    return [token async for token in decoder.stream(one)]


def run(model, *asks, **settings):
    async def main():
        decoder = Decoder(model, **({"max_rows": 8} | settings))
        return await asyncio.gather(*(read(decoder, one) for one in asks))

    return asyncio.run(main())


def test_tokens_are_those_of_the_engine_that_rollouts_use(checkpoint, model):
    asks = [ask(str(i), prompt=PROMPT[: 3 + i], seed=i, temperature=i % 3 / 2) for i in range(6)]

    async def rollouts():
        engine = EmbeddedEngine(checkpoint, dtype="float32", max_probe_gap=1, max_batch=8)
        await engine.start()
        engine.admit(len(asks))
        return await asyncio.gather(*(engine.generate(one.request) for one in asks))

    engine = asyncio.run(rollouts())
    for tokens, completion in zip(run(model, *asks), engine, strict=True):
        assert [token.token_id for token in tokens] == completion.token_ids.tolist()


def test_who_comes_later_joins_and_changes_nothing(model):
    """Each alone, and all together with arrivals at every token, of prompts of unlike lengths."""
    asks = [
        ask(str(i), prompt=np.arange(4, 6 + 3 * (i % 5)), n=4 + i % 7, seed=i, temperature=i % 3)
        for i in range(24)
    ]
    asks[3] = ask("3", n=40, top_p=0.9, top_k=5)
    alone = [run(model, one)[0] for one in asks]

    async def main():
        decoder = Decoder(model, max_rows=8)
        most, tasks = 0, []
        for one in asks:
            tasks.append(asyncio.create_task(read(decoder, one)))
            await asyncio.sleep(0.005)
            most = max([most, *(len(batch.requests) for batch in decoder._batches)])
        return await asyncio.gather(*tasks), most

    together, most = asyncio.run(main())
    assert [[t.token_id for t in one] for one in together] == [
        [t.token_id for t in one] for one in alone
    ]
    for one, other in zip(together, alone, strict=True):
        assert [t.logprob for t in one] == pytest.approx([t.logprob for t in other], abs=1e-4)
    assert 1 < most <= 16  # they were joined, and the ended ones are not kept


def test_a_cache_with_windows_is_kept_apart_and_right():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.2,
        use_sliding_window=True,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    )
    model = Qwen3ForCausalLM(config).eval()
    asks = [ask(str(i), n=40 + i, temperature=0, prompt=np.arange(5 + i, 15)) for i in range(6)]

    async def rest(first, stream):
        return [first] + [token async for token in stream]

    async def main():
        decoder = Decoder(model, max_rows=8)
        tasks, most = [], 0
        for one in asks:  # each comes when the one before has begun
            stream = decoder.stream(one)
            first = await anext(stream)
            most = max(most, len(decoder._batches))
            tasks.append(asyncio.create_task(rest(first, stream)))
        return await asyncio.gather(*tasks), most

    together, most = asyncio.run(main())
    assert most > 1
    for one, tokens in zip(asks, together, strict=True):
        ids = one.request.prompt_ids.tolist()
        for token in tokens:
            with torch.no_grad():
                assert token.token_id == int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token.token_id)


def test_log_probs_are_the_models_own_whatever_the_temperature(model):
    (tokens,) = run(model, ask(temperature=0.3, top_k=2, n_alternatives=3))
    ids = torch.tensor([*PROMPT, *(token.token_id for token in tokens)])
    with torch.no_grad():
        own = torch.log_softmax(model(ids[None]).logits[0], -1)
    for place, token in enumerate(tokens, len(PROMPT) - 1):
        assert token.logprob == pytest.approx(float(own[place, token.token_id]), abs=1e-4)
        best = own[place].topk(3)
        assert [one for one, _ in token.alternatives] == best.indices.tolist()
        assert [p for _, p in token.alternatives] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert token.token_id in best.indices[:2].tolist()  # top_k=2


def test_an_end_token_stops_and_max_tokens_does(model):
    (free,) = run(model, ask(temperature=0))
    assert len(free) == 12 and free[-1].last and not free[-1].stopped
    end = free[3].token_id
    first = [token.token_id for token in free].index(end)
    (ended,) = run(model, ask(temperature=0, stop=[end]))
    assert len(ended) == first + 1 and ended[-1].last and ended[-1].stopped


def test_a_newcomer_does_not_wait_for_a_long_answer(model):
    async def main():
        decoder = Decoder(model, max_rows=8)
        long = decoder.stream(ask("long", n=50))
        for _ in range(3):
            await anext(long)
        short = await read(decoder, ask("short", n=2))
        rest = [token async for token in long]
        return len(short), len(rest)

    assert asyncio.run(main()) == (2, 47)


def test_rows_are_bounded_and_the_queue_is_served_in_order(model):
    widths = []

    class Measured(torch.nn.Module):
        """The model, noting how many rows it is given."""

        config, device = model.config, model.device

        def forward(self, input_ids, **more):
            widths.append(len(input_ids))
            return model(input_ids=input_ids, **more)

    async def main():
        decoder = Decoder(Measured(), max_rows=2, max_queue=4)
        ended = []

        async def one(i):
            async for _ in decoder.stream(ask(str(i), n=2 + i, seed=i)):
                pass
            ended.append(i)

        tasks = [asyncio.create_task(one(i)) for i in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="4 requests are waiting"):
            await read(decoder, ask("too much"))
        await asyncio.gather(*tasks)
        return ended

    assert asyncio.run(main()) == [0, 1, 2, 3]
    assert max(widths) == 2


def test_who_leaves_frees_the_place(model):
    async def main():
        decoder = Decoder(model, max_rows=1)
        first = decoder.stream(ask("leaves", n=50))
        await anext(first)
        await first.aclose()
        return await asyncio.wait_for(read(decoder, ask("next", n=2)), 10)

    assert len(asyncio.run(main())) == 2


def test_a_failure_is_told_to_those_it_concerns(model):
    class Fails(torch.nn.Module):
        """The model, but for prompts that begin with 7."""

        config, device = model.config, model.device

        def forward(self, input_ids, **more):
            if input_ids[0, 0] == 7:
                raise ValueError("no sevens")
            return model(input_ids=input_ids, **more)

    async def main():
        decoder = Decoder(Fails(), max_rows=8)
        well = decoder.stream(ask("well", n=6))
        await anext(well)
        with pytest.raises(ValueError, match="no sevens"):
            await read(decoder, ask("ill", prompt=np.array([7, 8])))
        return 1 + len([token async for token in well])

    assert asyncio.run(main()) == 6


def test_nobody_waits_for_ever_when_batches_can_not_be_joined(model, monkeypatch):
    def fails(batches):
        raise MemoryError("no room")

    monkeypatch.setattr(decoder_module, "_joined", fails)

    async def main():
        decoder = Decoder(model, max_rows=8)
        with pytest.raises(MemoryError):
            await asyncio.wait_for(read(decoder, ask("first")), 10)
        monkeypatch.undo()
        return await asyncio.wait_for(read(decoder, ask("second", n=3)), 10)

    assert len(asyncio.run(main())) == 3


def test_the_nucleus_against_numbers_worked_by_hand():
    """Probabilities 0.5, 0.3, 0.15, 0.05 at temperature 1."""
    logits = torch.log(torch.tensor([[0.15, 0.5, 0.05, 0.3]]))

    def kept(top_p=1.0, top_k=4, temperature=1.0):
        heat = torch.tensor([[temperature]])
        left = cut(logits, heat, torch.tensor([top_p]), torch.tensor([top_k]))
        return (left > -torch.inf)[0].tolist()

    assert kept() == [True, True, True, True]
    assert kept(top_p=0.5) == [False, True, False, False]  # 0.5 is reached by the first alone
    assert kept(top_p=0.51) == [False, True, False, True]
    assert kept(top_p=0.9) == [True, True, False, True]
    assert kept(top_k=2) == [False, True, False, True]
    # of the two left, 0.5 / 0.8 = 0.625 is the share of the first
    assert kept(top_k=2, top_p=0.6) == [False, True, False, False]
    # squared and normalised at temperature 0.5: 0.685, 0.247, 0.062, 0.007
    assert kept(top_p=0.6, temperature=0.5) == [False, True, False, False]
    assert kept(top_p=0.7, temperature=0.5) == [False, True, False, True]
