"""Any OpenAI-compatible service: somebody's API, or a vLLM server elsewhere."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import openai

from rtr_ray.errors import ConfigError
from rtr_ray.executors.base import Failure, Reply
from rtr_ray.executors.pacing import Pace, retry_after_s
from rtr_ray.pool import Endpoint
from rtr_ray.types import Outcome, Request, Sample, Usage

_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")  # of httpx, or its successor in openai
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_OPENAI_SAMPLING = ("temperature", "top_p", "presence_penalty", "seed")  # the rest is vLLM's, in extra_body


@dataclass(slots=True, eq=False)
class OpenAIExecutor:
    """Calls `/chat/completions`, all requests of a chunk at once, as fast as the limits allow.

    A 429 stops all calls until the server's Retry-After; the request itself cost nothing. A cut
    connection or a timeout may have cost something, and says so.

    Raises:
        ConfigError: If the environment variable with the key is not set, or holds no key.
    """

    endpoint: Endpoint
    clock: Callable[[], float] = field(default=lambda: asyncio.get_running_loop().time())
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    kind: ClassVar[str] = "openai"
    _client: openai.AsyncOpenAI | None = None
    _pace: Pace | None = None

    def __post_init__(self) -> None:
        endpoint = self.endpoint
        check_key(endpoint)
        self._pace = Pace(endpoint.requests_per_minute, endpoint.tokens_per_minute, self.clock, self.sleep)

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
        wait = await self._pace.turn(
            request.max_input_tokens + request.max_tokens * request.candidate.samples
        )
        if wait:
            message = "the service's limits leave no room yet"
            return Failure(request.key, message, True, maybe_paid=False, retry_after_s=wait, sent=False)
        started = self.clock()
        try:
            completion = await self._connected().chat.completions.create(**self._body(request))
        except openai.RateLimitError as error:
            # a spent quota is a 429 too, but waiting does not help
            pause = retry_after_s(error.response.headers)
            spent = getattr(error, "code", None) == "insufficient_quota"
            if not spent:
                self._pace.hold(pause)
            return _failure(request, error, transient=not spent, maybe_paid=False, wait=pause)
        except openai.APIConnectionError as error:  # a timeout is one too
            return _failure(request, error, transient=True, maybe_paid=not never_sent(error))
        except openai.APIStatusError as error:
            transient = error.status_code in (408, 409, 425) or error.status_code >= 500
            pause = retry_after_s(error.response.headers) if transient else None
            return _failure(request, error, transient, maybe_paid=error.status_code >= 500, wait=pause)
        except (openai.APIError, ValueError) as error:  # the reply is no JSON
            return _failure(request, error, transient=True, maybe_paid=True)
        try:
            return _outcome(request, completion, self.clock() - started)
        except (AttributeError, TypeError, ValueError) as error:  # it is JSON, but no chat completion
            return _failure(request, error, transient=True, maybe_paid=True)

    def _connected(self) -> openai.AsyncOpenAI:
        if self._client is None:
            self._client = client_of(self.endpoint)
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
        if not self.endpoint.api_key_env:
            body["extra_headers"] = {"Authorization": openai.Omit()}
        return body


def _failure(
    request: Request, error: Exception, transient: bool, maybe_paid: bool, wait: float | None = None
) -> Failure:
    return Failure(request.key, said_of(error), transient, maybe_paid, retry_after_s=wait)


def said_of(error: Exception) -> str:
    """What is kept of an error: its type, status and code; its body may quote the prompt."""
    status, code = getattr(error, "status_code", None), str(getattr(error, "code", None) or "")
    code = code if _CODE.fullmatch(code) else ""
    return " ".join(str(part) for part in (type(error).__name__, status, code) if part)


def never_sent(error: openai.APIConnectionError) -> bool:
    """Whether a request has not even reached the service."""
    return type(error.__cause__).__name__ in _NEVER_SENT


def check_key(endpoint: Endpoint) -> None:
    """Refuse a service whose key is not there.

    Raises:
        ConfigError: If the environment variable with the key is not set, or holds no key.
    """
    if not endpoint.api_key_env:
        return
    whose = f"The environment variable {endpoint.api_key_env} with the key of {endpoint.base_url}"
    key = os.environ.get(endpoint.api_key_env)
    if not key:
        raise ConfigError(f"{whose} is not set.")
    if not key.isascii() or not key.isprintable() or " " in key:  # no header can hold it
        raise ConfigError(
            f"{whose} holds a space, a line end or a character that is not ASCII. Set it to the key alone."
        )


def client_of(endpoint: Endpoint) -> openai.AsyncOpenAI:
    """A client that asks once; whoever calls it retries, with the ledger beside it."""
    name = endpoint.api_key_env
    return openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=os.environ[name] if name else "none",  # the client insists on one
        timeout=endpoint.timeout_s,
        max_retries=0,
    )


def _outcome(request: Request, completion: Any, latency_s: float) -> Reply:
    choices = getattr(completion, "choices", None)
    if not choices:
        return Failure(request.key, "the reply has no choices", transient=True, maybe_paid=True)
    counted = _usage(completion.usage)
    # the API counts all choices together; with one, that is its own count
    each = counted.output_tokens if counted and len(choices) == 1 else None
    samples = tuple(Sample(c.message.content or "", c.finish_reason or "stop", each) for c in choices)
    if not all(isinstance(sample.text, str) and isinstance(sample.finish_reason, str) for sample in samples):
        return Failure(request.key, "the reply has a choice that is no text", transient=True, maybe_paid=True)
    return Outcome(
        request.query_id,
        request.candidate,
        samples,
        usage=counted,
        latency_s=latency_s,
        sample=request.sample,
    )


def _usage(counted: Any) -> Usage | None:
    """What the service has counted; None where that is not all of it: the answer is kept all the same."""
    input_tokens, output_tokens = _count(counted, "prompt_tokens"), _count(counted, "completion_tokens")
    if input_tokens is None or output_tokens is None:
        return None
    cached = _count(getattr(counted, "prompt_tokens_details", None), "cached_tokens") or 0
    reasoning = _count(getattr(counted, "completion_tokens_details", None), "reasoning_tokens")
    return Usage(input_tokens, output_tokens, min(cached, input_tokens), reasoning)


def _count(counted: Any, name: str) -> int | None:
    value = getattr(counted, name, None)
    return value if type(value) is int and value >= 0 else None
