"""Keeping to a service's limits: requests and tokens per minute, and its Retry-After."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_MINUTE_S = 60.0
_MOST_S = 3600.0  # of a Retry-After


@dataclass(slots=True, eq=False)
class Pace:
    """Lets calls pass so that no minute holds more of them, or of their tokens, than is allowed.

    Tokens are counted at their worst case when the call begins, since nobody knows more then.
    A call larger than the whole limit passes alone. A call that would have to wait long is sent
    away: it holds money and room, and whoever watches the clock must not take it for lost.
    """

    requests_per_minute: int | None
    tokens_per_minute: int | None
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    patience_s: float = 10.0  # how long a call may wait for its turn
    _passed: deque[tuple[float, int]] = field(default_factory=deque)  # (when, tokens) of the last minute
    _tokens: int = 0  # of those
    _held_until: float = 0.0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def turn(self, tokens: int) -> float:
        """Wait until a call with so many tokens may begin; calls pass in the order in which they came.

        Returns:
            0 when it may begin; else it may not, and should come again after so many seconds.
        """
        came = self.clock()
        async with self._lock:
            while (wait := self._wait(tokens)) > 0:
                if self.clock() + wait - came > self.patience_s:
                    return wait
                await self.sleep(wait)
            self._passed.append((self.clock(), tokens))
            self._tokens += tokens
            return 0.0

    def hold(self, seconds: float | None) -> None:
        """Let nothing pass for so long; None: a second, since the server did not say."""
        self._held_until = max(self._held_until, self.clock() + (1.0 if seconds is None else seconds))

    def _wait(self, tokens: int) -> float:
        now = self.clock()
        while self._passed and self._passed[0][0] <= now - _MINUTE_S:
            self._tokens -= self._passed.popleft()[1]
        if now < self._held_until:
            return self._held_until - now
        full = self.requests_per_minute is not None and len(self._passed) >= self.requests_per_minute
        heavy = self.tokens_per_minute is not None and self._tokens + tokens > self.tokens_per_minute
        if self._passed and (full or heavy):
            return max(self._passed[0][0] + _MINUTE_S - now, 0.001)
        return 0.0


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or a date; None without one.

    At most an hour: who says "tomorrow" is asked before, so that a run notices if it is over sooner.
    """
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
        return min(max(seconds, 0.0), _MOST_S) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        seconds = (parsedate_to_datetime(value) - (now or datetime.now(UTC))).total_seconds()
        return min(max(seconds, 0.0), _MOST_S)
    except (TypeError, ValueError):
        return None
