import asyncio

import pytest

from posttrain.buffer import RolloutBuffer


def _may_start(buffer, step):
    """Whether rollouts for ``step`` could start now."""

    async def main():
        try:
            await asyncio.wait_for(buffer.may_start(step), timeout=0.01)
        except TimeoutError:
            return False
        return True

    return main()


@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_rollouts_start_when_they_can_be_at_most_max_lag_old(max_lag):
    async def main():
        buffer = RolloutBuffer(max_lag)
        await buffer.advance(5)
        return [await _may_start(buffer, step) for step in range(5, 10)]

    assert asyncio.run(main()) == [step <= 5 + max_lag for step in range(5, 10)]


def test_nothing_starts_before_the_first_sync():
    async def main():
        return await _may_start(RolloutBuffer(0), 0)

    assert asyncio.run(main()) is False


def test_a_full_slot_can_not_be_filled_again():
    async def main():
        buffer = RolloutBuffer(0)
        await buffer.put(3, [])
        with pytest.raises(ValueError, match="trained on twice"):
            await buffer.put(3, [])
        assert await buffer.take(3) == []
        with pytest.raises(TimeoutError):  # taken: gone
            await asyncio.wait_for(buffer.take(3), timeout=0.01)

    asyncio.run(main())


def test_waiters_wake():
    async def main():
        buffer = RolloutBuffer(1)
        taken = asyncio.ensure_future(buffer.take(0))
        started = asyncio.ensure_future(buffer.may_start(2))
        await asyncio.sleep(0)
        assert not taken.done() and not started.done()
        await buffer.advance(1)
        await buffer.put(0, [])
        await asyncio.wait_for(asyncio.gather(taken, started), timeout=1)

    asyncio.run(main())
