"""Replies that travel together; no cluster is needed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray.distributed.bundles import bundles


async def after(turns: int, number: int) -> int:
    for _ in range(turns):
        await asyncio.sleep(0)
    return number


@given(st.lists(st.integers(0, 30), max_size=40))
def test_everything_comes_once_and_nothing_comes_in_empty_bundles(turns: list[int]):
    async def collected() -> list[list[int]]:
        work = (after(count, number) for number, count in enumerate(turns))
        return [some async for some in bundles(work, gather_s=0)]

    found = asyncio.run(collected())
    assert sorted(number for some in found for number in some) == list(range(len(turns)))
    assert all(found)


async def test_a_slow_one_does_not_hold_the_others_and_those_of_one_moment_come_together():
    gate = asyncio.Event()

    async def slow() -> int:
        await gate.wait()
        return -1

    got = []
    async for some in bundles([slow(), *(after(1, number) for number in range(50))]):
        got.append(sorted(some))
        gate.set()  # only now: the others have come before
    assert got == [list(range(50)), [-1]]


async def test_the_last_one_is_not_kept_waiting_for_company():
    gate = asyncio.Event()

    async def second() -> int:
        await gate.wait()
        return 2

    async def first() -> int:
        asyncio.get_running_loop().call_later(0.05, gate.set)
        return 1

    async with asyncio.timeout(30):  # nobody sleeps an hour
        assert [some async for some in bundles([first(), second()], gather_s=3600)] == [[1, 2]]


async def test_closed_early_it_ends_what_is_running():
    ended = []

    async def endless() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)
        return 0

    async with contextlib.aclosing(bundles([endless(), after(0, 7), endless()])) as found:
        async for some in found:
            assert some == [7]
            break
    await asyncio.sleep(0)
    assert ended == [True, True]


async def test_what_one_raises_comes_after_the_results_before_it():
    async def broken() -> int:
        raise ValueError("broken")

    found = bundles([after(0, 1), broken(), asyncio.Event().wait()])
    assert await anext(found) == [1]
    with pytest.raises(ValueError, match="broken"):
        await anext(found)


async def test_what_has_come_while_nobody_looked_is_given_before_the_error_that_came_with_it():
    gate = asyncio.Event()

    async def one() -> int:
        await gate.wait()
        return 1

    async def broken() -> int:
        await gate.wait()
        raise ValueError("broken")

    found = bundles([after(0, 0), one(), broken()])
    assert await anext(found) == [0]
    gate.set()
    await after(5, 0)
    assert await anext(found) == [1]
    with pytest.raises(ValueError, match="broken"):
        await anext(found)


async def test_one_that_is_cancelled_from_elsewhere_ends_the_others_instead_of_keeping_them_waiting():
    async def gone() -> int:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await anext(bundles([gone(), asyncio.Event().wait()]))
