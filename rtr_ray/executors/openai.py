"""Any OpenAI-compatible service: somebody's API, or a vLLM server elsewhere."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import openai

from rtr_ray.errors import ConfigError
from rtr_ray.executors.base import Failure, Reply
from rtr_ray.executors.pacing import Pace, retry_after_s
from rtr_ray.pool import Endpoint
from rtr_ray.types import Outcome, Request, Sample, Usage

_OPENAI_SAMPLING = ("temperature", "top_p", "presence_penalty", "seed")  # the rest is vLLM's, in extra_body


@dataclass(slots=True, eq=False)
class OpenAIExecutor:
    """Calls `/chat/completions`, all requests of a chunk at once, as fast as the limits allow.

    A 429 stops all calls until the server's Retry-After; the request itself cost nothing. A cut
    connection or a timeout may have cost something, and says so.
    """

    endpoint: Endpoint
    clock: Callable[[], float] = field(default=lambda: asyncio.get_running_loop().time())
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    kind: ClassVar[str] = "openai"
    _client: openai.AsyncOpenAI | None = None
    _pace: Pace | None = None

    def __post_init__(self) -> None:
        self._pace = Pace(
            self.endpoint.requests_per_minute, self.endpoint.tokens_per_minute, self.clock, self.sleep
        )

    async def execute(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """Answer them, as they come."""
        tasks = [asyncio.create_task(self._answer(request)) for request in requests]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _answer(self, request: Request) -> Reply:
        assert self._pace is not None
        await self._pace.turn(request.max_input_tokens + request.max_tokens * request.candidate.samples)
        started = self.clock()
        try:
            completion = await self._connected().chat.completions.create(**self._body(request))
        except openai.RateLimitError as error:
            # a spent quota is a 429 too, but waiting does not help
            wait = retry_after_s(error.response.headers)
            spent = getattr(error, "code", None) == "insufficient_quota"
            if not spent:
                self._pace.hold(wait)
            return _failure(request, error, transient=not spent, maybe_paid=False, wait=wait)
        except (openai.APITimeoutError, openai.APIConnectionError) as error:
            refused = (
                isinstance(error.__cause__, OSError) or "connect" in type(error.__cause__).__name__.lower()
            )
            return _failure(request, error, transient=True, maybe_paid=not refused)
        except openai.APIStatusError as error:
            transient = error.status_code in (408, 409, 425) or error.status_code >= 500
            wait = retry_after_s(error.response.headers) if transient else None
            return _failure(request, error, transient, maybe_paid=error.status_code >= 500, wait=wait)
        except (openai.APIError, ValueError) as error:  # the reply arrived but is no chat completion
            return _failure(request, error, transient=True, maybe_paid=True)
        return _outcome(request, completion, self.clock() - started)

    def _connected(self) -> openai.AsyncOpenAI:
        if self._client is None:
            name = self.endpoint.api_key_env
            key = os.environ.get(name) if name else "none"
            if not key:
                raise ConfigError(
                    f"The environment variable {name} with the key of {self.endpoint.base_url} is not set."
                )
            self._client = openai.AsyncOpenAI(
                base_url=self.endpoint.base_url,
                api_key=key,
                timeout=self.endpoint.timeout_s,
                max_retries=0,  # dispatch retries, with the ledger beside it
            )
        return self._client

    def _body(self, request: Request) -> dict[str, Any]:
        given = request.sampling.given()
        extra: dict[str, Any] = {name: value for name, value in given.items() if name not in _OPENAI_SAMPLING}
        if request.chat_template_kwargs:
            extra["chat_template_kwargs"] = dict(request.chat_template_kwargs)
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": [dict(message) for message in request.messages],
            "max_tokens": request.max_tokens,
        }
        body |= {name: value for name, value in given.items() if name in _OPENAI_SAMPLING}
        if request.candidate.samples > 1:
            body["n"] = request.candidate.samples
        if request.stop:
            body["stop"] = list(request.stop)
        if extra:
            body["extra_body"] = extra
        return body


def _failure(
    request: Request, error: Exception, transient: bool, maybe_paid: bool, wait: float | None = None
) -> Failure:
    # the body of an error may quote the prompt: only its type, status and code are kept
    status, code = getattr(error, "status_code", None), getattr(error, "code", None)
    message = " ".join(str(part) for part in (type(error).__name__, status, code) if part)
    return Failure(request.key, message, transient, maybe_paid, retry_after_s=wait)


def _outcome(request: Request, completion: Any, latency_s: float) -> Reply:
    choices = getattr(completion, "choices", None)
    if not choices:
        return Failure(request.key, "the reply has no choices", transient=True, maybe_paid=True)
    usage = completion.usage
    counted = None
    if usage is not None:
        cached = (
            getattr(usage.prompt_tokens_details, "cached_tokens", None)
            if usage.prompt_tokens_details
            else None
        )
        details = usage.completion_tokens_details
        counted = Usage(
            usage.prompt_tokens,
            usage.completion_tokens,
            min(cached or 0, usage.prompt_tokens),
            getattr(details, "reasoning_tokens", None) if details else None,
        )
    # the API counts all choices together; with one, that is its own count
    each = counted.output_tokens if counted and len(choices) == 1 else None
    samples = tuple(Sample(c.message.content or "", c.finish_reason or "stop", each) for c in choices)
    return Outcome(
        request.query_id,
        request.candidate,
        samples,
        usage=counted,
        latency_s=latency_s,
        sample=request.sample,
    )
