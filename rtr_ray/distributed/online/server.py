"""What runs in a model's replica: a server whose every answer is generated as a stream, and counted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from ray.serve.llm import LLMConfig
from ray.serve.llm.openai_api_models import CompletionRequest

from rtr_ray.distributed.server import COUNTING, ChunkServer, events_of
from rtr_ray.online.folding import Folded

_PROGRESS_S = 0.25  # between two counts of an answer that nobody sees grow
_KNOWN_CALLS = 4096
_HALT_S = 1.0  # for the next token of a call that is stopped
_NICER = 10  # than the ingress, on a machine whose cores they share


class OnlineServer(ChunkServer):
    """A ChunkServer that also answers single requests, tells what it has counted, and can be stopped."""

    _known: OrderedDict[str, _Call] | None = None

    async def __init__(self, llm_config: LLMConfig, **more: Any) -> None:  # type: ignore[misc]  # as Serve has it
        if llm_config.accelerator_config is not None and llm_config.accelerator_config.kind == "cpu":
            # vLLM's processes inherit it. They wait for each other by spinning, for a second after each
            # step (vllm-project/vllm#19036, #52814), which must not keep those from the cores who route
            os.nice(_NICER)
        await super().__init__(llm_config, **more)

    async def generate(self, call: str, body: dict[str, Any], stream: bool) -> AsyncIterator[dict[str, Any]]:
        """Answer a request.

        Args:
            call: Its name, for `stop`.
            body: Of an OpenAI chat completion, without `model`; with `prompt`, of a raw completion.
            stream: Whether the chunks are wanted as they come, or the choices at the end.

        Yields:
            `counted` (input, cached and output tokens so far) with `chunks`, or at the end `choices`;
            the last one has `ended` or `failure`.
        """
        calls = self._calls()
        if call in calls:
            return  # it was stopped before it came
        one = calls[call] = _Call()
        started = time.monotonic()
        try:
            async with contextlib.aclosing(self._pieces(one, body, stream)) as pieces:
                async for piece in pieces:
                    yield piece
        except asyncio.CancelledError:
            raise
        except ValidationError as error:
            yield {"failure": _invalid(error)}
        except Exception as error:
            failed = self._failure(error, started)
            yield {"failure": {"message": failed["error"], "maybe_paid": failed["maybe_paid"]}}
        finally:
            one.over.set()

    async def _pieces(
        self, one: _Call, body: dict[str, Any], stream: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        folded = one.folded
        started = told = time.monotonic()
        source = await self._source(body | COUNTING)
        async with contextlib.aclosing(source):  # closed early, the engine stops
            async for lines in source:
                chunks = []
                for event in events_of(lines):
                    if "error" in event:
                        yield {"failure": _refused(event["error"], bool(folded.counted.output_tokens))}
                        return
                    folded.add(event)
                    event.pop("usage", None)
                    chunks.append(event)
                if one.stopped:
                    return
                if stream:
                    yield {"counted": _numbers(folded), "chunks": chunks}
                elif time.monotonic() - told > _PROGRESS_S:
                    told = time.monotonic()
                    yield {"counted": _numbers(folded)}
        if not folded.ended:
            yield {"failure": {"message": "the engine's stream ended before its end", "maybe_paid": True}}
            return
        took_s = time.monotonic() - started
        choices = None if stream else folded.response_choices()
        yield {"counted": _numbers(folded), "choices": choices, "ended": True, "took_s": took_s}

    async def _source(self, body: dict[str, Any]) -> Any:
        if "prompt" in body:
            return await self.completions(CompletionRequest(model=self._llm_config.model_id, **body))
        return await self.chat(self._request(body))

    async def stop(self, call: str) -> tuple[int, int, int] | None:
        """Stop a call, and say what it has generated; None where it never came here, and it never will begin.

        The engine is told at its next token, so that what is said here is all that it will have counted.
        """
        calls = self._calls()
        one = calls.get(call)
        if one is None:
            calls[call] = _Call()
            return None
        one.stopped = True
        with contextlib.suppress(TimeoutError):  # it generates nothing just now; its caller cancels it
            async with asyncio.timeout(_HALT_S):
                await one.over.wait()
        return _numbers(one.folded)

    def _calls(self) -> OrderedDict[str, _Call]:
        """The last calls by name."""
        if self._known is None:
            self._known = OrderedDict()
        while len(self._known) > _KNOWN_CALLS:
            self._known.popitem(last=False)
        return self._known


@dataclass(slots=True, eq=False)
class _Call:
    """A call that came here."""

    folded: Folded = field(default_factory=Folded)
    stopped: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)


def _numbers(folded: Folded) -> tuple[int, int, int]:
    counted = folded.counted
    return counted.input_tokens, counted.cached_input_tokens, counted.output_tokens


def _refused(error: dict[str, Any], generated: bool) -> dict[str, Any]:
    status = int(error.get("code") or 500)
    return {
        "message": str(error.get("message"))[:500],
        "status": status,
        "kind": str(error.get("type")),
        "transient": status >= 500,
        "maybe_paid": generated,
    }


def _invalid(error: ValidationError) -> dict[str, Any]:
    reasons = list(_reasons(error))
    return {
        "message": f"The request is not valid: {'; '.join(reasons[:3])}."[:500],
        "status": 400,
        "kind": "invalid_request_error",
        "transient": False,
        "maybe_paid": False,
    }


def _reasons(error: ValidationError) -> Iterator[str]:
    for one in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(map(str, one["loc"]))
        yield f"{where}: {one['msg']}" if where else one["msg"]
