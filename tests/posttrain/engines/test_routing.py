"""Who goes next, and where to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from posttrain.engines.routing import OldestFirst, Pace, least_loaded


@dataclass
class Place:
    in_flight: int = 0
    pace: Pace = field(default_factory=Pace)


def place(token_s: float, in_flight: int = 0) -> Place:
    found = Place(in_flight)
    if token_s:
        found.pace.note(token_s, 1)
    return found


def test_the_pace_is_a_moving_average_of_seconds_per_token() -> None:
    pace = Pace()
    assert pace.token_s == 0.0
    pace.note(2.0, 10)
    assert pace.token_s == 0.2
    pace.note(4.0, 10)
    assert pace.token_s == pytest.approx(0.9 * 0.2 + 0.1 * 0.4)
    pace.note(1.0, 0)  # nothing written: as one token
    assert pace.token_s == pytest.approx(0.9 * 0.22 + 0.1 * 1.0)
    pace.forget()
    assert pace.token_s == 0.0


def shares(*places: Place, requests: int) -> list[int]:
    """How many of a burst of requests each gets."""
    for _ in range(requests):
        chosen = least_loaded(places)
        assert chosen is not None
        chosen.in_flight += 1
    return [one.in_flight for one in places]


def test_equal_servers_get_equal_shares() -> None:
    assert shares(place(0), place(0), requests=7) == [4, 3]
    assert shares(place(0.1), place(0.1), place(0.1), requests=9) == [3, 3, 3]
    assert shares(place(0, in_flight=3), place(0), requests=5) == [4, 4]


def test_a_server_four_times_as_slow_gets_a_fifth_of_a_burst() -> None:
    assert shares(place(0.4), place(0.1), requests=40) == [8, 32]


def test_a_server_of_unknown_pace_is_tried_as_if_it_were_the_fastest() -> None:
    assert shares(place(0.4), place(0.1), place(0), requests=90) == [10, 40, 40]
    assert least_loaded([]) is None


def test_the_oldest_step_goes_first_and_within_one_the_first_to_come() -> None:
    async def main() -> list[str]:
        slots, order = OldestFirst(1), []

        async def work(name: str, step: int) -> None:
            await slots.acquire(step)
            order.append(name)
            await asyncio.sleep(0)
            slots.release()

        names = [("a", 3), ("b", 3), ("c", 2), ("d", 4), ("e", 2)]
        await asyncio.gather(*(work(*one) for one in names))
        return order

    assert asyncio.run(main()) == ["a", "c", "e", "b", "d"]


def test_a_slot_is_not_lost_with_who_waited_for_it() -> None:
    async def main() -> None:
        slots = OldestFirst(1)
        await slots.acquire(0)
        waiting = [asyncio.create_task(slots.acquire(step)) for step in (1, 2, 3)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # while it waits
        await asyncio.sleep(0)
        slots.release()
        waiting[1].cancel()  # when it had been given the slot, and does not know
        await asyncio.wait_for(waiting[2], timeout=1)
        slots.release()
        await asyncio.wait_for(slots.acquire(9), timeout=1)  # free again

    asyncio.run(main())
