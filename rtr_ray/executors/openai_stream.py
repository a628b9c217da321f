"""One answer of an OpenAI-compatible service, as a stream of chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import openai

from rtr_ray.executors.base import StreamError
from rtr_ray.executors.openai import check_key, client_of, never_sent, said_of
from rtr_ray.executors.pacing import Pace, retry_after_s
from rtr_ray.pool import Endpoint


@dataclass(slots=True, eq=False)
class OpenAIStream:
    """Calls `/chat/completions` with `stream: true`, within the service's limits.

    Raises:
        ConfigError: If the environment variable with the key is not set, or holds no key.
    """

    endpoint: Endpoint
    clock: Callable[[], float] = field(default=lambda: asyncio.get_running_loop().time())
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _client: openai.AsyncOpenAI | None = None
    _pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        check_key(self.endpoint)
        self._pace = Pace(
            self.endpoint.requests_per_minute, self.endpoint.tokens_per_minute, self.clock, self.sleep
        )

    async def chunks(self, body: Mapping[str, Any], worst_tokens: int) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of an answer; the last one has the usage, if the service counts.

        Args:
            body: Of a chat completion, without `model`.
            worst_tokens: What it may come to.

        Raises:
            StreamError: If it does not come, or not to its end.
        """
        if await self._pace.turn(worst_tokens):
            raise StreamError("the service's limits leave no room yet")
        begun = False
        try:
            stream = await self._connected().chat.completions.create(
                model=self.endpoint.model,
                messages=body["messages"],
                stream=True,
                stream_options={"include_usage": True},
                extra_body={name: value for name, value in body.items() if name != "messages"},
                extra_headers=None if self.endpoint.api_key_env else {"Authorization": openai.Omit()},
            )
            begun = True
            async with stream:
                async for chunk in stream:
                    yield chunk.model_dump(exclude_unset=True)
        except openai.RateLimitError as error:
            spent = getattr(error, "code", None) == "insufficient_quota"
            if not spent:
                self._pace.hold(retry_after_s(error.response.headers))
            raise StreamError(said_of(error), 503, transient=True) from None
        except openai.APIConnectionError as error:
            raise StreamError(said_of(error), maybe_paid=begun or not never_sent(error)) from None
        except openai.APIStatusError as error:
            later = error.status_code in (401, 403, 404, 408, 409, 425) or error.status_code >= 500
            status = 503 if later else error.status_code  # our key is no affair of who asks
            paid = error.status_code >= 500
            raise StreamError(said_of(error), status, transient=later, maybe_paid=paid) from None
        except (openai.APIError, ValueError) as error:  # what comes is no JSON, or an error in the stream
            raise StreamError(said_of(error), maybe_paid=True) from None

    def _connected(self) -> openai.AsyncOpenAI:
        if self._client is None:
            self._client = client_of(self.endpoint)
        return self._client
