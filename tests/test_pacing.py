"""Keeping to a service's limits, on a clock that nobody waits for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from rtr_ray.executors.pacing import Pace, retry_after_s
from tests.fakes import run_virtually
from tests.openai_server import most_in_a_minute


@pytest.mark.parametrize(("requests", "tokens"), [(5, None), (None, 900), (7, 1000), (1, None)])
def test_whatever_comes_at_once_passes_no_faster_than_allowed(requests: int | None, tokens: int | None):
    sizes = [100, 250, 30, 5000, 400] * 6  # 5000 is more than a whole minute may have: it goes alone
    passed: list[tuple[float, int]] = []

    async def all_of_them() -> None:
        now = asyncio.get_running_loop().time
        pace = Pace(requests, tokens, now)

        async def one(size: int) -> None:
            while wait := await pace.turn(size):
                assert wait > 0
                await asyncio.sleep(wait)
            passed.append((now(), size))

        async with asyncio.timeout(36_000):
            await asyncio.gather(*map(one, sizes))

    run_virtually(all_of_them())
    assert sorted(size for _, size in passed) == sorted(sizes)
    if requests is not None:
        assert most_in_a_minute(passed)[0] <= requests
    if tokens is not None:
        for at, size in passed:
            together = sum(other for when, other in passed if at <= when < at + 60)
            assert together <= tokens or together == size


def test_a_call_waits_a_few_seconds_for_its_turn_and_is_sent_away_for_longer():
    async def calls() -> None:
        now = asyncio.get_running_loop().time
        pace = Pace(None, None, now)
        pace.hold(8.0)
        assert (await pace.turn(1), now()) == (0.0, 8.0)
        pace.hold(100.0)
        pace.hold(3.0)  # the longer one stands
        assert (await pace.turn(1), now()) == (100.0, 8.0)
        pace.hold(None)
        await asyncio.sleep(100.0)
        assert (await pace.turn(1), now()) == (0.0, 108.0)

    run_virtually(calls())


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-5", 0.0),
        ("86400", 3600.0),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Sun, 22 Nov 2026 08:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 09:00:30 +0100", 30.0),
        ("Sun, 22 Nov 2026 07:00:00 GMT", 0.0),
        ("Mon, 23 Nov 2026 08:00:00 GMT", 3600.0),
        ("Sun, 99 Nov 2026 07:00:00 GMT", None),
        (None, None),
    ],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(value: str | None, seconds: float | None):
    headers = {} if value is None else {"retry-after": value}
    assert retry_after_s(headers, datetime(2026, 11, 22, 8, tzinfo=UTC)) == seconds
