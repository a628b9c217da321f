"""Deployments that somebody else runs, beside those that run here."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rtr_ray.executors.base import StreamError
from rtr_ray.online.engines import Engines, Failure, Piece
from rtr_ray.online.folding import Counted, Folded

_SUSPECT_S = 5.0


class Stream(Protocol):
    """What answers."""

    def chunks(self, body: Mapping[str, Any], worst_tokens: int) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of one answer; raises StreamError."""
        ...


@dataclass(slots=True, eq=False)
class Elsewhere:
    """Engines behind an API: there is no replica to look at, and nobody says what was generated in between.

    Args:
        streams: By deployment id.
        limits: Requests that may be at each.
        clock: Seconds that only grow.
    """

    streams: Mapping[str, Stream]
    limits: Mapping[str, int]
    clock: Callable[[], float] = time.monotonic
    _flying: dict[str, int] = field(default_factory=dict)
    _suspected: dict[str, float] = field(default_factory=dict)  # since when

    def up(self) -> frozenset[str]:
        """Those that have not failed just now."""
        trusted = self.clock() - _SUSPECT_S
        return frozenset(name for name in self.streams if self._suspected.get(name, trusted) <= trusted)

    def replicas(self) -> Mapping[str, int]:
        """One each: how many there are is somebody else's affair."""
        return dict.fromkeys(self.streams, 1)

    def peers(self) -> int:
        """Not known."""
        return 1

    def full(self, deployment: str) -> bool:
        """Whether as many requests are there as may be."""
        return self._flying.get(deployment, 0) >= self.limits[deployment]

    def suspect(self, deployment: str) -> None:
        """Leave it out for a while."""
        self._suspected[deployment] = self.clock()

    async def stop(self, deployment: str, call: str) -> Counted | None:
        """Nobody says what a call had generated when its connection was closed."""
        return None

    async def generate(
        self, deployment: str, call: str, body: Mapping[str, Any], stream: bool
    ) -> AsyncGenerator[Piece, None]:
        """Generate; what goes wrong comes as a piece."""
        self._flying[deployment] = self._flying.get(deployment, 0) + 1
        folded, started = Folded(), self.clock()
        source = self.streams[deployment].chunks(body, _worst(body))
        try:
            async for chunk in source:
                folded.add(chunk)
                chunk.pop("usage", None)
                if stream:
                    yield Piece(chunks=[chunk])
            if not folded.ended:
                yield Piece(
                    failure=Failure("the service's stream ended before its end", 503, maybe_paid=True)
                )
                return
            yield Piece(
                folded.counted,
                choices=None if stream else folded.response_choices(),
                ended=True,
                took_s=self.clock() - started,
                uncounted=not folded.counted.output_tokens,
            )
        except StreamError as error:
            yield Piece(failure=_failure(deployment, error))
        finally:
            self._flying[deployment] -= 1
            await source.aclose()


def _failure(deployment: str, error: StreamError) -> Failure:
    return Failure(
        f"{deployment} did not answer ({error.message}).",
        error.status,
        "server_error" if error.status >= 500 else "invalid_request_error",
        transient=error.transient,
        maybe_paid=error.maybe_paid,
    )


def _worst(body: Mapping[str, Any]) -> int:
    """What the service counts against its limits: about the prompt, and the longest answers."""
    size = sum(len(str(message.get("content") or "")) for message in body["messages"])
    return size // 3 + int(body.get("max_tokens") or 0) * int(body.get("n") or 1)


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """Several kinds of engines as one; each has deployments of its own."""

    kinds: Mapping[str, Engines]  # by deployment id
    all_kinds: tuple[Engines, ...]

    @classmethod
    def of(cls, *kinds: tuple[Engines, frozenset[str]]) -> Mixed:
        """Engines, each with the deployments that are its own."""
        return cls({name: one for one, names in kinds for name in names}, tuple(one for one, _ in kinds))

    def up(self) -> frozenset[str]:
        """Those that can be sent to."""
        return frozenset().union(*(one.up() for one in self.all_kinds))

    def replicas(self) -> Mapping[str, int]:
        """Running replicas of each."""
        return {name: count for one in self.all_kinds for name, count in one.replicas().items()}

    def peers(self) -> int:
        """How many endpoints send to them."""
        return max(one.peers() for one in self.all_kinds)

    def full(self, deployment: str) -> bool:
        """Whether as many requests are there as may wait."""
        return self.kinds[deployment].full(deployment)

    def generate(
        self, deployment: str, call: str, body: Mapping[str, Any], stream: bool
    ) -> AsyncGenerator[Piece, None]:
        """Generate."""
        return self.kinds[deployment].generate(deployment, call, body, stream)

    async def stop(self, deployment: str, call: str) -> Counted | None:
        """What a call had generated."""
        return await self.kinds[deployment].stop(deployment, call)

    def suspect(self, deployment: str) -> None:
        """It has just failed."""
        self.kinds[deployment].suspect(deployment)
