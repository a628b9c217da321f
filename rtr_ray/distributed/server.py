"""What runs in a replica: Ray Serve LLM's server, which also answers a whole chunk in one call."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.openai_api_models import ChatCompletionRequest

from rtr_ray.distributed.bundles import bundles
from rtr_ray.distributed.lending import Extending, Lender

_LAST_WORDS_S = 2.0  # for replies to leave a replica whose engine has died


class ChunkServer(LLMServer):
    """An LLMServer with one more method.

    A call per request would cost more than a small model's answer; a call per chunk does not, and
    its replies stream back as they finish, so that one slow row never holds the others.
    """

    _engine_died: float | None = None

    async def answer_chunk(
        self, requests: Sequence[dict[str, Any]], lender: Lender | None = None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Answer chat requests.

        One with a `limit` (see `rtr_ray.distributed.lending`) is streamed: before it reaches the
        limit it asks the lender for more, and where it gets nothing it ends there, with
        `finish_reason` "budget" and the usage of what is given back. The few tokens that the engine
        makes before it hears of that are neither given back nor counted.

        Args:
            requests: Bodies of OpenAI chat completions, without `model`.
            lender: Whom to ask for more.

        Yields:
            Replies as they finish, those together that do so at about the same time. One each: `index`,
            and either `choices` (text, finish_reason, output_tokens) with `usage` and `latency_s`, or
            `error` with `transient` and `maybe_paid`.
        """
        work = (self._answer(i, dict(body), lender) for i, body in enumerate(requests))
        async with contextlib.aclosing(bundles(work)) as replies:
            async for some in replies:
                yield some

    async def _answer(self, index: int, body: dict[str, Any], lender: Lender | None) -> dict[str, Any]:
        started = time.monotonic()
        try:
            growing = Extending.read(body, lender)
            if growing is not None:
                reply = await self._streamed(self._request(body | COUNTING), growing)
            else:
                (response,) = [reply async for reply in await self.chat(self._request(body))]
                # the public ErrorResponse is a subclass of the one that comes: it is known by what it holds
                refused = getattr(response, "error", None)
                reply = _answered(response) if refused is None else _refused(vars(refused), False)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            reply = self._failure(error, started)
        took = {} if "error" in reply else {"latency_s": time.monotonic() - started}
        return {"index": index, **reply, **took}

    def _request(self, body: dict[str, Any]) -> ChatCompletionRequest:
        return ChatCompletionRequest(model=self._llm_config.model_id, **body)

    async def _streamed(self, request: ChatCompletionRequest, growing: Extending) -> dict[str, Any]:
        """One answer, token by token, within what is paid for."""
        text: list[str] = []
        usage: dict[str, Any] = {}
        finish_reason = None
        stream = await self.chat(request)
        async with contextlib.aclosing(stream):  # closed early, the engine stops
            async for lines in stream:
                for event in events_of(lines):
                    if "error" in event:
                        return _refused(event["error"], bool(usage.get("completion_tokens")))
                    counted = event.get("usage") or usage
                    tokens = counted.get("completion_tokens", 0)
                    limit = await growing.limit(tokens)
                    if tokens > limit:  # several at once: those that are not paid for are left out
                        return _given(text, "budget", usage)
                    usage = counted
                    for choice in event["choices"]:
                        text.append(choice["delta"].get("content") or "")
                        finish_reason = choice.get("finish_reason") or finish_reason
                    if finish_reason is None and growing.allowance.cuts and tokens == limit:
                        return _given(text, "budget", usage)
        if finish_reason is None:
            return {"error": "the stream ended without an end", "transient": True, "maybe_paid": True}
        return _given(text, finish_reason, usage)

    def _failure(self, error: Exception, started: float) -> dict[str, Any]:
        name = type(error).__name__
        if "EngineDead" not in name:
            return {"error": f"{name}: {error}"[:300], "transient": True, "maybe_paid": True}
        if self._engine_died is None:
            self._engine_died = time.monotonic()
            # Serve starts another replica at once when this one is gone, and only after several
            # failed health checks otherwise
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, os._exit, 1)
        # a request that came after the engine's death was never generated
        return {"error": "the engine died", "transient": True, "maybe_paid": started < self._engine_died}

    def processes(self) -> list[int]:
        """The ids of this replica's process and of all below it."""
        import psutil

        me = psutil.Process()
        return [me.pid, *(child.pid for child in me.children(recursive=True))]


COUNTING = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def events_of(lines: Any) -> Iterator[dict[str, Any]]:
    """The JSON of what a stream gives: lists of server-sent events, or of errors."""
    for line in lines if isinstance(lines, list) else [lines]:
        if not isinstance(line, str):
            yield {"error": vars(line.error)}
            continue
        for part in line.split("\n\n"):
            data = part.removeprefix("data:").strip()
            if data and data != "[DONE]":
                yield json.loads(data)


def _refused(error: Mapping[str, Any], generated: bool) -> dict[str, Any]:
    # unless something came before, the engine refused it before it generated anything
    again = int(error.get("code") or 500) >= 500
    reason = f"{error.get('type')}: {error.get('message')}"[:300]
    return {"error": reason, "transient": again, "maybe_paid": again or generated}


def _given(text: Sequence[str], finish_reason: str, usage: Mapping[str, Any]) -> dict[str, Any]:
    details = usage.get("prompt_tokens_details") or {}
    tokens = usage["completion_tokens"]
    return {
        "choices": [{"text": "".join(text), "finish_reason": finish_reason, "output_tokens": tokens}],
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "cached_input_tokens": details.get("cached_tokens") or 0,
            "output_tokens": tokens,
        },
    }


def _answered(response: Any) -> dict[str, Any]:
    usage = response.usage
    details = usage.prompt_tokens_details
    several = len(response.choices) > 1
    return {
        "choices": [
            {
                "text": choice.message.content or "",
                "finish_reason": choice.finish_reason,
                "output_tokens": len(choice.token_ids) if several else usage.completion_tokens,
            }
            for choice in response.choices
        ],
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "cached_input_tokens": (details.cached_tokens or 0) if details else 0,
            "output_tokens": usage.completion_tokens,
        },
    }
