"""An endpoint with a real router over fake engines and a gate that writes everything down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np

from rtr_ray.answers import Answerer
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.estimators.prior import Prior
from rtr_ray.gate import Caller, Hold, Offer, Refusal
from rtr_ray.online.endpoint import Endpoint
from rtr_ray.online.engines import Failure, Piece
from rtr_ray.online.folding import Counted
from rtr_ray.online.reply import Reply
from rtr_ray.online.routing import Chooser, Routing
from rtr_ray.policies.score import FittedScore
from rtr_ray.pool import Deployment, ModelSpec, Pool, Price
from rtr_ray.router import Router, train
from rtr_ray.strategies import Strategy
from rtr_ray.types import Candidate, Outcomes

UNIT_USD = 1e-4


def pool(**deployment: Any) -> Pool:
    """Two models; the strong one has strategies of its own."""
    prices = {"weak": "0.1", "strong": "1.3"}
    return Pool(
        {
            name: Deployment(
                name,
                Price(Decimal("0.03"), Decimal(usd)),
                source="nowhere",
                **({"accelerator": "cpu", "context_tokens": 4000} | deployment),
            )
            for name, usd in prices.items()
        },
        {name: ModelSpec(name, name, f"the model {name}") for name in prices},
        {
            "vanilla": Strategy("vanilla", "plain", 60),
            "cot": Strategy(
                "cot", "steps", 60, system="Step by step.", samples=(1, 3), select="majority", answer="boxed"
            ),
            "pal": Strategy("pal", "program", 60, system="Write a program.", answer="program"),
        },
        frozenset({("weak", "cot"), ("weak", "pal")}),
    )


def router(
    of: Pool, accuracy: Mapping[str, float] | None = None, encoder: HashEncoder | None = None
) -> Router:
    """Believes each candidate as good as told, whatever is asked."""
    encoder = encoder or HashEncoder(32)
    return train(outcomes(of, accuracy), of, encoder, Prior()).bind(of, encoder)


def outcomes(of: Pool, accuracy: Mapping[str, float] | None = None) -> Outcomes:
    """Each candidate was right as often as told."""
    believed = {"weak:vanilla": 0.4, "strong:vanilla": 0.5, "strong:cot": 0.8, "strong:pal": 0.7}
    believed |= dict(accuracy or {})
    shape = (40, len(of.candidates))
    wanted = np.array([believed.get(str(c), 0.6) for c in of.candidates])
    return Outcomes(
        query_ids=tuple(f"m{i}" for i in range(40)),
        queries=tuple(f"question {i}" for i in range(40)),
        candidates=of.candidates,
        accuracy=(np.arange(40)[:, None] < 40 * wanted).astype(float),
        input_tokens=np.full(shape, 20.0),
        output_tokens=np.full(shape, 25.0),
        cost_usd=np.full(shape, 1e-5),
        cut=np.zeros(shape),
        max_tokens=np.full(shape, 60.0),
        runs=np.ones(shape, dtype=int),
    )


@dataclass
class RecordingGate:
    """Lets everybody in who has no key that begins with `bad`, and writes down what is done with holds."""

    caller: Caller = field(default_factory=lambda: Caller("k1", "tester"))
    refuse: Refusal | None = None
    can_pay: Decimal | None = None
    broken: str = ""  # the method that raises
    offered: list[list[Offer]] = field(default_factory=list)
    open: dict[str, Hold] = field(default_factory=dict)
    closed: list[tuple[str, Decimal, int, bool]] = field(default_factory=list)
    _number: int = 0

    async def admit(self, bearer: str | None) -> Caller | Refusal:
        await self._reached("admit")
        if bearer and bearer.startswith("bad"):
            return Refusal("invalid_api_key", "This key is not known.")
        return self.caller

    async def reserve(self, caller: Caller, offers: Sequence[Offer]) -> Hold | Refusal:
        await self._reached("reserve")
        self.offered.append(list(offers))
        if self.refuse is not None:
            return self.refuse
        for offer in offers:
            if self.can_pay is None or offer.worst_usd <= self.can_pay:
                self._number += 1
                hold = Hold(f"h{self._number}", caller.key_id, offer)
                self.open[hold.id] = hold
                return hold
        return Refusal("budget_exceeded", "The budget is spent.", 3600.0, "2026-12-01T00:00:00Z")

    async def settle(self, hold: Hold, spent_usd: Decimal, tokens: int, *, unknown: bool = False) -> None:
        await self._reached("settle")
        if self.open.pop(hold.id, None) is not None:
            assert spent_usd <= hold.offer.worst_usd
            assert tokens <= hold.offer.worst_tokens
            self.closed.append((str(hold.offer.candidate), spent_usd, tokens, unknown))

    async def _reached(self, method: str) -> None:
        await asyncio.sleep(0)
        if method == self.broken:
            raise ConnectionError

    async def release(self, hold: Hold) -> None:
        await asyncio.sleep(0)
        if self.open.pop(hold.id, None) is not None:
            self.closed.append((str(hold.offer.candidate), Decimal(0), 0, False))


@dataclass
class FakeEngines:
    """Answers with a few words, a token each; does odd things to deployments that are told so."""

    words: Sequence[str] = ("I", "think", "it", "is", "\\boxed{42}")
    input_tokens: int = 12
    failing: dict[str, Failure] = field(default_factory=dict)
    failing_after: int = 0  # tokens
    failing_times: int = 1_000
    replicated: bool = False  # one replica that fails leaves others
    down: set[str] = field(default_factory=set)
    busy: set[str] = field(default_factory=set)
    sleeping: set[str] = field(default_factory=set)  # no replica; one starts when it is asked
    took_s: dict[str, float] = field(default_factory=dict)  # what an answer takes
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    suspected: list[str] = field(default_factory=list)
    made: dict[str, Counted] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    hold: asyncio.Event | None = None  # tokens come after the first one only when it is set
    lost: bool = False  # nobody can say what a stopped call has made

    def up(self) -> frozenset[str]:
        out = set() if self.replicated else set(self.suspected)
        return frozenset({"weak", "strong"} - self.down - out)

    def replicas(self) -> dict[str, int]:
        return {name: int(name not in self.sleeping) for name in ("weak", "strong")}

    def peers(self) -> int:
        return 1

    def full(self, deployment: str) -> bool:
        return deployment in self.busy

    def suspect(self, deployment: str) -> None:
        self.suspected.append(deployment)

    async def stop(self, deployment: str, call: str) -> Counted | None:
        self.stopped.append(call)
        return None if self.lost else self.made.get(call, Counted())

    async def generate(
        self, deployment: str, call: str, body: Mapping[str, Any], stream: bool
    ) -> AsyncGenerator[Piece, None]:
        self.bodies.append((deployment, dict(body)))
        failure, count = self.failing.get(deployment), body.get("n", 1)
        if failure is not None and not self.failing_after and self.failing_times:
            self.failing_times -= 1
            yield Piece(failure=failure)
            return
        texts = [list(self.words) for _ in range(count)]
        for place in range(len(self.words)):
            await asyncio.sleep(0)
            if place and self.hold is not None:
                await self.hold.wait()
            self.made[call] = Counted(self.input_tokens, 2, (place + 1) * count)
            last = place + 1 == len(self.words)
            chunks = [
                {
                    "choices": [
                        {
                            "index": i,
                            "delta": {"role": "assistant", "content": f"{texts[i][place]} "},
                            "finish_reason": "stop" if last else None,
                        }
                    ]
                }
                for i in range(count)
            ]
            yield Piece(self.made[call], chunks if stream else ())
            if failure is not None and self.failing_after and place + 1 >= self.failing_after:
                yield Piece(failure=failure)
                return
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": " ".join(texts[i])},
                "finish_reason": "stop",
            }
            for i in range(count)
        ]
        took_s = self.took_s.get(deployment)
        yield Piece(self.made[call], choices=None if stream else choices, ended=True, took_s=took_s)


@dataclass
class Bench:
    """One endpoint and everything around it."""

    engines: FakeEngines
    gate: RecordingGate
    endpoint: Endpoint

    @classmethod
    def of(cls, lam: float = 0.9, accuracy: Mapping[str, float] | None = None, **options: Any) -> Bench:
        engines, gate = FakeEngines(), RecordingGate()
        own = options.pop("pool", None) or pool()
        weights = {name: options.pop(name, 0.0) for name in ("latency_weight", "warm_within")}
        chooser = Chooser(router(own, accuracy), FittedScore(lam, UNIT_USD), UNIT_USD, None, **weights)
        answerer = Answerer(own.strategies, _printed, own.thinking)
        return cls(engines, gate, Endpoint(own, engines, gate, Routing(chooser), answerer, **options))

    async def ask(self, content: Any = "What is 6 times 7?", model: str = "auto", **more: Any) -> Reply:
        """One chat completion."""
        body = {"model": model, "messages": [{"role": "user", "content": content}]} | more
        return await self.endpoint.chat(json.dumps(body).encode())

    def settled(self) -> list[tuple[str, Decimal, int, bool]]:
        """What became of every hold; none is open."""
        assert self.gate.open == {}
        return self.gate.closed


async def _printed(code: str) -> str | None:
    return "42\n" if "print" in code else None


async def read(reply: Reply) -> list[Any]:
    """The events of a stream, and its money closed."""
    assert reply.events is not None
    assert reply.close is not None
    found: list[Any] = []
    async for event in reply.events:
        text = event.decode().removeprefix("data: ").strip()
        found.append(text if text == "[DONE]" else json.loads(text))
    await reply.close()
    return found


def said(reply: Reply) -> str:
    """The text of a whole answer."""
    assert reply.body is not None
    text: str = reply.body["choices"][0]["message"]["content"]
    return text


STRONG_COT = Candidate("strong", "cot")
