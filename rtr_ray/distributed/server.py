"""What runs in a replica: Ray Serve LLM's server, which also answers a whole chunk in one call."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.openai_api_models import ChatCompletionRequest

_LAST_WORDS_S = 2.0  # for replies to leave a replica whose engine has died


class ChunkServer(LLMServer):
    """An LLMServer with one more method.

    A call per request would cost more than a small model's answer; a call per chunk does not, and
    its replies stream back as they finish, so that one slow row never holds the others.
    """

    _engine_died: float | None = None

    async def answer_chunk(self, requests: Sequence[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        """Answer chat requests.

        Args:
            requests: Bodies of OpenAI chat completions, without `model`.

        Yields:
            One reply each as they finish: `index`, and either `choices` (text, finish_reason,
            output_tokens) with `usage` and `latency_s`, or `error` with `transient` and
            `maybe_paid`.
        """
        tasks = [asyncio.create_task(self._answer(i, body)) for i, body in enumerate(requests)]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(self, index: int, body: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        try:
            request = ChatCompletionRequest(model=self._llm_config.model_id, **body)
            (response,) = [reply async for reply in await self.chat(request)]
            # the public ErrorResponse is a subclass of the one that comes: it is known by what it holds
            if (refused := getattr(response, "error", None)) is None:
                return {"index": index, **_answered(response), "latency_s": time.monotonic() - started}
        except asyncio.CancelledError:
            raise
        except Exception as error:
            return {"index": index, **self._failure(error, started)}
        # the engine refused it before it generated anything
        again = refused.code >= 500
        reason = f"{refused.type}: {refused.message}"[:300]
        return {"index": index, "error": reason, "transient": again, "maybe_paid": again}

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
