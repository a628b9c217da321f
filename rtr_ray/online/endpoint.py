"""The endpoint: from a request's bytes to a reply, with its money put aside before and closed after.

Nothing here knows of HTTP servers or of Ray: engines, gate and clock are given.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rtr_ray.answers import Answerer
from rtr_ray.gate import Caller, Gate, Hold, Offer, Refusal
from rtr_ray.online.asking import Asked, parse_chat
from rtr_ray.online.buffered import whole_answer
from rtr_ray.online.engines import Engines, Generation, Piece
from rtr_ray.online.folding import Counted, usage_of
from rtr_ray.online.load import Begun, Load
from rtr_ray.online.notes import Note, Notes
from rtr_ray.online.orders import Order, as_it_is, may_serve, order
from rtr_ray.online.problems import RequestError, overloaded, unavailable
from rtr_ray.online.reply import DONE, Named, Reply, event, failed
from rtr_ray.online.routing import Question, Routed, Routing
from rtr_ray.online.showing import model_cards, routing_shown
from rtr_ray.online.turns import Reads, query_of, text_of
from rtr_ray.pool import Pool
from rtr_ray.types import Candidate, Query

_LOG = logging.getLogger("rtr_ray.online")
ATTEMPTS = 4
"""How often a request is put to an engine at most, where those before failed."""


class _AgainError(Exception):
    """The generation failed, and another one may not."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """Answers chat completions.

    Args:
        reads: What the router reads of a conversation.
        most: Requests that may be here at the same time; beyond, 503.
        patience_s: Seconds until a generation must have begun.
    """

    pool: Pool
    engines: Engines
    gate: Gate
    routing: Routing
    answerer: Answerer
    notes: Notes = field(default_factory=Notes)
    reads: Reads = "last_user"
    most: int = 1024
    patience_s: float = 60.0
    shadow: Routing | None = None
    targets: Mapping[str, float] = field(default_factory=dict)  # see `Load`
    load: Load = field(init=False)
    here: int = 0  # requests under way
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.load = Load(self.pool, self.targets)

    async def chat(self, raw: bytes, bearer: str | None = None, request_id: str = "") -> Reply:
        """Answer a chat completion. What is wrong with it is a reply, too.

        Args:
            raw: The body.
            bearer: The token of the Authorization header.
            request_id: Another name of the request, that feedback may use.
        """
        if self.here >= self.most:
            return Reply.of(overloaded(f"{self.most} requests are here already."))
        self.here += 1
        handed_on = False
        try:
            reply = await self._chat(raw, bearer, request_id)
            handed_on = reply.events is not None
            return reply
        except RequestError as problem:
            return Reply.of(problem)
        finally:
            if not handed_on:
                self.here -= 1

    async def _chat(self, raw: bytes, bearer: str | None, request_id: str) -> Reply:
        caller = await self.admitted(bearer)
        asked = parse_chat(raw, self.pool)
        query = query_of(f"chatcmpl-{uuid.uuid4().hex}", asked.messages)
        left_out: set[str] = set()
        failed_at: list[str] = []
        for attempt in range(ATTEMPTS):
            routed = await self.routed(asked, query, caller, left_out) if asked.routed else None
            generation, named = await self._begun(asked, query, caller, routed, attempt)
            note = Note(query, text_of(query, self.reads), named, caller.name, request_id)
            handed_on = False
            try:
                reply = await self._answered(generation, named, note)
                handed_on = reply.events is not None
                return reply
            except _AgainError:
                deployment = generation.order.deployment
                self.engines.suspect(deployment)
                if asked.routed:  # the same one again only where it has other replicas, and once
                    if deployment in failed_at or deployment not in self.engines.up():
                        left_out.add(deployment)
                    failed_at.append(deployment)
                elif attempt + 1 < ATTEMPTS:
                    await asyncio.sleep(0.2 * 2**attempt)
            finally:
                if not handed_on:
                    await generation.close()
        assert generation.failure is not None
        raise failed(generation.failure)

    async def route(self, raw: bytes, bearer: str | None = None) -> Reply:
        """What would be chosen for a chat completion, and why; nothing is generated."""
        try:
            caller = await self.admitted(bearer)
            asked = parse_chat(raw, self.pool)
            if not asked.routed:
                raise RequestError("Only requests to 'auto' are routed. Set model to 'auto'.", param="model")
            query = query_of(f"route-{uuid.uuid4().hex}", asked.messages)
            routed = await self.routed(asked, query, caller, set())
            return Reply(200, body=routing_shown(routed, query.query_id))
        except RequestError as problem:
            return Reply.of(problem)

    async def models(self, bearer: str | None = None, name: str | None = None) -> Reply:
        """What `model` may be: all, or one by its name."""
        try:
            cards = model_cards(self.pool, (await self.admitted(bearer)).candidates)
            if name is None:
                return Reply(200, body={"object": "list", "data": cards})
            for card in cards:
                if card["id"] == name:
                    return Reply(200, body=card)
            raise RequestError(
                f"There is no model '{name[:80]}'. GET /v1/models lists those there are.",
                status=404,
                param="model",
                code="model_not_found",
            )
        except RequestError as problem:
            return Reply.of(problem)

    async def admitted(self, bearer: str | None) -> Caller:
        """Who asks.

        Raises:
            RequestError: If the gate does not know.
        """
        try:
            caller = await self.gate.admit(bearer)
        except Exception as error:  # whatever it is: nobody gets in whom nobody has checked
            raise _no_gate(error) from error
        if isinstance(caller, Refusal):
            raise RequestError.of(caller)
        return caller

    async def routed(self, asked: Asked, query: Query, caller: Caller, left_out: set[str]) -> Routed:
        """What the router chooses.

        Raises:
            RequestError: If no candidate may take the request, or none is up.
        """
        up = self.engines.up() - left_out
        ready = frozenset(name for name in up if not self.engines.full(name))
        allowed_C = may_serve(self.pool, asked, caller.candidates, ready)
        if not allowed_C.any():
            anywhere_C = may_serve(self.pool, asked, caller.candidates, self.pool.deployments.keys())
            if not anywhere_C.any():
                raise _unable(asked, caller)
            busy = may_serve(self.pool, asked, caller.candidates, up).any()
            raise (
                overloaded("Every model that may answer is busy.")
                if busy
                else unavailable("No model that may answer is up just now.")
            )
        text = text_of(query, self.reads)
        standings = self.load.standings(self.engines.replicas(), self.engines.peers())
        question = Question(query, text, asked.wish, allowed_C, ", ".join(asked.needs), standings)
        if self.shadow is not None:
            self.keep(asyncio.create_task(self._shadowed(self.shadow, question)))
        began = time.perf_counter()
        routed = await self.routing.route(question)
        self.notes.chosen(time.perf_counter() - began)
        return routed

    async def _shadowed(self, shadow: Routing, question: Question) -> None:
        with contextlib.suppress(Exception):  # whatever happens to a shadow, nobody is served by it
            self.notes.shadow(await shadow.route(question))

    async def _begun(
        self, asked: Asked, query: Query, caller: Caller, routed: Routed | None, attempt: int
    ) -> tuple[Generation, Named]:
        """The first of the candidates that can be paid, with its worst case put aside."""
        orders = self._orders(asked, query, caller, routed)
        hold = await self._reserved(caller, [one.offer for one in orders])
        if isinstance(hold, Refusal):
            raise RequestError.of(hold)
        (chosen,) = [one for one in orders if one.candidate == hold.offer.candidate]
        begun = self.load.begin(chosen.deployment, self.engines.replicas(), self.engines.peers())
        generation = Generation(
            self.engines,
            self.gate,
            self.pool,
            chosen,
            hold,
            call=f"{query.query_id}.{attempt}",
            stream=asked.stream and not chosen.buffered,
            keep=self.keep,
            told=lambda one: self._told(one, caller, begun),
        )
        return generation, Named(query.query_id, int(time.time()), asked, chosen.candidate, routed)

    def _told(self, generation: Generation, caller: Caller, begun: Begun) -> None:
        """A generation is over, and its money closed."""
        tokens = 0 if generation.counted is None else generation.counted.output_tokens
        took_s = generation.took_s if generation.ended else None
        self.load.end(begun, tokens / generation.order.body.get("n", 1), took_s)
        self.notes.closed(generation, caller.name)

    async def _reserved(self, caller: Caller, offers: Sequence[Offer]) -> Hold | Refusal:
        """A hold; one that comes too late, since the client is gone, is released."""
        asked = asyncio.create_task(self.gate.reserve(caller, offers), context=contextvars.Context())
        self.keep(asked)
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            self.keep(asyncio.create_task(self._given_back(asked), context=contextvars.Context()))
            raise
        except Exception as error:
            raise _no_gate(error) from error

    async def _given_back(self, asked: asyncio.Task[Hold | Refusal]) -> None:
        hold = await asked
        if isinstance(hold, Hold):
            await self.gate.release(hold)

    def _orders(self, asked: Asked, query: Query, caller: Caller, routed: Routed | None) -> list[Order]:
        limits = [usd for usd in (asked.wish.max_cost_usd, caller.max_request_usd) if usd is not None]
        most_usd = min(limits, default=None)
        if routed is None:
            self._check_named(asked, caller)
        found, refused = [], None
        for candidate in self._preferred(asked, routed):
            try:
                found.append(order(self.pool, asked, query, candidate, most_usd))
            except RequestError as problem:
                refused = refused or problem
        if not found:
            assert refused is not None
            raise refused
        return found

    @staticmethod
    def _preferred(asked: Asked, routed: Routed | None) -> Sequence[Candidate]:
        if routed is not None:
            return routed.preferred
        if asked.model is not None:
            return [as_it_is(asked.model)]
        assert asked.candidate is not None
        return [asked.candidate]

    def _check_named(self, asked: Asked, caller: Caller) -> None:
        """Whether a model or candidate that was asked for by name can take the request."""
        (candidate,) = self._preferred(asked, None)
        if caller.candidates is not None and str(candidate) not in caller.candidates:
            raise RequestError(
                f"This key may not use {asked.model or candidate}.", status=403, kind="permission_denied"
            )
        if asked.candidate is not None and asked.needs:
            column = self.pool.candidates.index(candidate)
            if not may_serve(self.pool, asked, None, self.pool.deployments.keys())[column]:
                raise _unable(asked, caller)
        deployment = self.pool.deployment(candidate).id
        if deployment not in self.engines.up():
            raise unavailable(f"{candidate.model} is not up just now.")
        if self.engines.full(deployment):
            raise overloaded(f"{candidate.model} is busy.")

    async def _answered(self, generation: Generation, named: Named, note: Note) -> Reply:
        """The reply that a generation becomes."""
        pieces = generation.pieces()
        try:
            async with asyncio.timeout(self.patience_s):
                first = await anext(pieces)
        except TimeoutError:
            raise unavailable(
                f"{named.candidate.model} did not begin within {self.patience_s:g} s."
            ) from None
        _check(first)
        if generation.stream:
            return self._streamed(generation, named, note, first, pieces)
        last = first
        if not first.ended:
            async for piece in pieces:
                _check(piece)
                last = piece
        assert last.choices is not None
        assert generation.counted is not None
        choices: list[dict[str, Any]] = list(last.choices)
        more: dict[str, Any] = {}
        if generation.order.buffered:
            choices, more = await whole_answer(self.answerer, named, choices)
        await generation.close()
        note.ended(choices, generation)
        self.notes.add(note)
        if named.asked.stream:
            return self._at_once(generation, named, choices, more)
        return named.response(choices, generation.counted, generation.cost_usd, more)

    def _streamed(
        self,
        generation: Generation,
        named: Named,
        note: Note,
        first: Piece,
        pieces: AsyncGenerator[Piece, None],
    ) -> Reply:
        async def close() -> None:
            self.here -= 1
            await generation.close()
            if generation.ended:
                self.notes.add(note)

        async def events() -> AsyncGenerator[bytes, None]:
            piece = first
            while True:
                for chunk in piece.chunks:
                    if chunk.get("choices"):
                        note.seen(chunk)
                        yield event(named.chunk(chunk["choices"]))
                if piece.failure is not None:
                    yield event(failed(piece.failure).body)
                    return
                if piece.ended:
                    break
                piece = await anext(pieces)
            note.counted(generation)
            if named.asked.include_usage:
                yield event(_usage_chunk(named, generation))
            yield DONE

        return Reply(200, named.headers, events=events(), close=_once(close))

    def _at_once(
        self, generation: Generation, named: Named, choices: Sequence[dict[str, Any]], more: dict[str, Any]
    ) -> Reply:
        """A finished answer as a stream."""

        async def close() -> None:
            self.here -= 1

        async def events() -> AsyncGenerator[bytes, None]:
            for choice in choices:
                delta = {"role": "assistant", "content": choice["message"].get("content")}
                yield event(named.chunk([{"index": choice["index"], "delta": delta, "finish_reason": None}]))
                ended = {"index": choice["index"], "delta": {}, "finish_reason": choice.get("finish_reason")}
                yield event(named.chunk([ended], rtr=more))
            if named.asked.include_usage:
                yield event(_usage_chunk(named, generation))
            yield DONE

        return Reply(200, named.headers, events=events(), close=_once(close))

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Hold on to a task until it is done: the loop itself would not."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _usage_chunk(named: Named, generation: Generation) -> dict[str, Any]:
    return named.chunk([], usage=usage_of(generation.counted or Counted(), generation.cost_usd))


def _once(close: Any) -> Any:
    done = False

    async def closed() -> None:
        nonlocal done
        if not done:
            done = True
            await close()

    return closed


def _no_gate(error: Exception) -> RequestError:
    _LOG.error("the gate failed: %s", type(error).__name__)
    return unavailable("Keys and budgets cannot be looked at just now.")


def _check(piece: Piece) -> None:
    if piece.failure is None:
        return
    if piece.failure.transient:
        raise _AgainError
    raise failed(piece.failure)


def _unable(asked: Asked, caller: Caller) -> RequestError:
    if asked.needs:
        return RequestError(
            f"With {', '.join(asked.needs)} only candidates without an instruction of their own can answer, "
            "and none of those that may be used here is one.",
            param=asked.needs[0],
            code="no_candidate",
        )
    return RequestError(
        f"The key of '{caller.name}' may use none of the candidates that were asked for.",
        status=403,
        kind="permission_denied",
    )
