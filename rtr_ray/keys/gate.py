"""The gate of one replica: what the endpoint asks, gathered into few calls of the store.

While one call is on its way, the operations that come in wait for the next: so a busy replica makes
few large transactions, and an idle one waits for nobody. A settlement that could not be delivered
is kept and tried again; until then the money stays set aside, and if the replica dies first its lease
ends and the worst case is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from rtr_ray.errors import RtrError
from rtr_ray.gate import Caller, Hold, Offer, Refusal
from rtr_ray.keys.operations import Admit, Ask, Close, Operation, Result
from rtr_ray.keys.store import LEASE_S, KeyStore
from rtr_ray.keys.tokens import digest_of_bearer

_LOG = logging.getLogger(__name__)
_MOST_TOGETHER = 256  # operations of one transaction
_PATIENCE_S = 10.0  # for one call; a request must not hang on the keys
_CACHE_S = 5.0  # who has a token; what they may spend is read at every reservation
_MOST_CACHED = 4096
_AGAIN_S = 1.0  # between two tries to deliver what could not be
_OLDEST_S = 6 * 3600.0  # a hold that nobody has closed for so long is not going to be


class Bank(Protocol):
    """The store, as a gate sees it; between them may be another process."""

    async def apply(self, owner: str, operations: Sequence[Operation]) -> list[Result]:
        """Carry out operations in one transaction; raises an RtrError if nothing was done.

        Calls are carried out in the order in which they are made, or not at all; also those that
        somebody has stopped waiting for.
        """
        ...


class LocalBank:
    """A store in this process. Its transactions run in one thread, so that the event loop goes on."""

    def __init__(self, store: KeyStore) -> None:
        self.store = store
        self._thread = ThreadPoolExecutor(1, "keys")

    async def apply(self, owner: str, operations: Sequence[Operation]) -> list[Result]:
        """One transaction."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self.store.apply, owner, list(operations))


@dataclass(slots=True, eq=False)
class KeyGate:
    """A `Gate` over the keys. For one event loop."""

    bank: Bank
    lease_s: float = LEASE_S  # not longer than the store's
    patience_s: float = _PATIENCE_S
    oldest_s: float = _OLDEST_S
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    _callers: dict[bytes, tuple[float, Caller]] = field(default_factory=dict)
    _queue: list[tuple[Operation, asyncio.Future[Result]]] = field(default_factory=list)
    _open: dict[str, float] = field(default_factory=dict)  # hold -> when it was made
    _owed: dict[str, Close] = field(default_factory=dict)  # what could not be delivered
    _trouble: str = ""  # what was logged last
    _pumping: asyncio.Task[None] | None = None
    _keeping: asyncio.Task[None] | None = None

    async def admit(self, bearer: str | None) -> Caller | Refusal:
        """Who this is; asked of the store every few seconds."""
        token = digest_of_bearer(bearer)
        if token is None:
            what = "An API key is needed" if not bearer else "The API key is not valid, or was revoked"
            return Refusal("invalid_api_key", f"{what}. Send it as Authorization: Bearer rtr-...")
        at = asyncio.get_running_loop().time()
        known = self._callers.get(token)
        if known is not None and known[0] > at:
            return known[1]
        found = await self._send(Admit(token))
        if isinstance(found, Caller):  # a refusal is not kept: the key may be made in a moment
            if len(self._callers) >= _MOST_CACHED:
                self._callers.pop(next(iter(self._callers)))
            self._callers[token] = (at + _CACHE_S, found)
        assert isinstance(found, Caller | Refusal)
        return found

    async def reserve(self, caller: Caller, offers: Sequence[Offer]) -> Hold | Refusal:
        """Put aside for the first of the offers that the caller can pay."""
        ask = Ask(f"hold-{uuid.uuid4().hex}", caller.key_id, tuple(offers))
        try:
            found = await self._send(ask)
        except asyncio.CancelledError:
            # the answer may have come already; else the pump sees that nobody wants it
            if self._open.pop(ask.hold_id, None) is not None:
                self._owed[ask.hold_id] = Close(ask.hold_id)
                self._keep()
            raise
        assert isinstance(found, Hold | Refusal)
        return found

    async def settle(self, hold: Hold, spent_usd: Decimal, tokens: int, *, unknown: bool = False) -> None:
        """What it came to."""
        await self._end(Close(hold.id, spent_usd, tokens, unknown))

    async def release(self, hold: Hold) -> None:
        """Nothing was generated."""
        await self._end(Close(hold.id))

    @property
    def open_holds(self) -> int:
        """How many are not closed yet."""
        return len(self._open)

    @property
    def owed(self) -> int:
        """Settlements that could not be delivered yet."""
        return len(self._owed)

    async def aclose(self) -> None:
        """Deliver what can be delivered, and stop; what is still held is lost when the lease ends."""
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        while self._pumping is not None and not self._pumping.done():
            await asyncio.shield(self._pumping)
        if self._owed:
            await self._call([])

    async def _end(self, close: Close) -> None:
        if self._open.pop(close.hold_id, None) is not None:
            await self._send(close)

    async def _send(self, one: Operation) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((one, future))
        if self._pumping is None or self._pumping.done():
            self._pumping = asyncio.create_task(self._pump())
        return await future

    async def _pump(self) -> None:
        """Runs on its own, so that a request that is cancelled cancels nobody's operations."""
        while self._queue:
            together, self._queue = self._queue[:_MOST_TOGETHER], self._queue[_MOST_TOGETHER:]
            results = await self._call([one for one, _ in together])
            for (_, future), result in zip(together, results, strict=True):
                if not future.cancelled():
                    if isinstance(result, Hold):
                        self._open[result.id] = asyncio.get_running_loop().time()
                    future.set_result(result)
                elif isinstance(result, Hold):  # who asked for it is gone, and will not release it
                    self._owed[result.id] = Close(result.id)
            self._keep()

    async def _call(self, operations: list[Operation]) -> list[Result]:
        """One call, with what is owed before it; never raises."""
        owed = dict(self._owed)
        try:
            async with asyncio.timeout(self.patience_s):
                results = await self.bank.apply(self.owner, [*owed.values(), *operations])
        except (RtrError, TimeoutError) as error:
            self._say(error.message if isinstance(error, RtrError) else "The keys did not answer in time.")
            # it may have been carried out although no answer came: so what was asked for is released later
            for one in operations:
                if not isinstance(one, Admit):
                    close = Close(one.hold_id) if isinstance(one, Ask) else one
                    self._owed.setdefault(close.hold_id, close)
            return [None if isinstance(one, Close) else _unavailable() for one in operations]
        self._say("")
        for hold_id, close in owed.items():
            if self._owed.get(hold_id) is close:
                del self._owed[hold_id]
        return results[len(owed) :]

    def _say(self, trouble: str) -> None:
        """Log what is wrong, once for each change."""
        if trouble != self._trouble:
            if trouble:
                _LOG.error("%s Nothing is spent until the keys can be read.", trouble)
            else:
                _LOG.warning("The keys can be read again.")
            self._trouble = trouble

    def _keep(self) -> None:
        """See to it that the lease is renewed, and what is owed delivered, as long as there is any."""
        if (self._open or self._owed) and (self._keeping is None or self._keeping.done()):
            self._keeping = asyncio.create_task(self._keep_on())

    async def _keep_on(self) -> None:
        loop = asyncio.get_running_loop()
        while self._open or self._owed:
            await asyncio.sleep(min(_AGAIN_S, self.lease_s / 3) if self._owed else self.lease_s / 3)
            old = [hold_id for hold_id, made in self._open.items() if made + self.oldest_s < loop.time()]
            for hold_id in old:
                del self._open[hold_id]
                self._owed[hold_id] = Close(hold_id, unknown=True)
            if self._open or self._owed:
                await self._call([])


def _unavailable() -> Refusal:
    """Who cannot be asked grants nothing. Where the file is and what is wrong stands in the log alone."""
    return Refusal(
        "unavailable", "The API keys cannot be read just now. Nothing is spent until they can be.", 1.0
    )
