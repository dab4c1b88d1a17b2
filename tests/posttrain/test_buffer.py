import asyncio

import numpy as np
import pytest

from envs import EndReason
from posttrain.buffer import RolloutBuffer
from posttrain.errors import RunError
from posttrain.types import Completion, FinishReason, Group, Rollout, Turn
from rewards import Outcome, Score


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


@pytest.mark.parametrize(("versions", "told"), [([2, 5], "2 to 5"), ([4, 6], "4 to 6")])
def test_a_token_too_old_or_of_weights_not_made_yet_is_refused(versions, told):
    def filled(versions):
        n = len(versions)
        zeros = np.zeros(n)
        written = Completion(zeros, zeros, np.array(versions), FinishReason.STOP)
        turn, score = Turn(np.array([1]), written), Score(1.0, Outcome.CORRECT)
        return [Group(5, 0, (Rollout("5-0-0", "t", 0, (turn,), (), score, EndReason.DONE),))]

    async def main():
        buffer = RolloutBuffer(2)
        await buffer.put(5, filled([3, 4, 5]))  # the oldest and the newest allowed
        with pytest.raises(RunError, match=f"5-0-0 .* {told}; step 5 takes those of 3 to 5"):
            await RolloutBuffer(2).put(5, filled(versions))

    asyncio.run(main())
