"""The executor that calls a Ray Serve deployment through its handle, a chunk per call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle

from rtr_ray.distributed.lending import limit_of
from rtr_ray.executors.base import Failure, Limit, Reply
from rtr_ray.types import Outcome, Request, Sample, Usage


@dataclass(frozen=True, slots=True)
class ServeExecutor:
    """Sends chunks to one deployment; never through its HTTP ingress."""

    handle: DeploymentHandle[Any]  # of a ChunkServer, or anything with its `answer_chunk`

    async def execute(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """The replies as they finish. A replica that dies raises: dispatch sends the rest again."""
        stream: Any = self.handle.options(stream=True).answer_chunk.remote(
            [body(request) for request in requests]
        )
        async for some in stream:
            for reply in some:
                yield _reply(requests[reply["index"]], reply)

    async def execute_limited(
        self, requests: Sequence[Request], limits: Sequence[Limit | None], lender: Any
    ) -> AsyncIterator[Reply]:
        """The replies as they finish; a limit travels in the body, and the replica asks for more itself."""
        bodies = [body(request) for request in requests]
        for fields, request, limit in zip(bodies, requests, limits, strict=True):
            if limit is not None:
                fields["limit"] = limit_of(request.key, limit)
        stream: Any = self.handle.options(stream=True).answer_chunk.remote(bodies, lender)
        async for some in stream:
            for reply in some:
                yield _reply(requests[reply["index"]], reply)

    async def aclose(self) -> None:
        """The handle belongs to Serve."""


def body(request: Request) -> dict[str, Any]:
    """A request as the body of an OpenAI chat completion."""
    fields: dict[str, Any] = {
        "messages": [dict(message) for message in request.messages],
        "max_tokens": request.max_tokens,
        **request.sampling.given(),
    }
    if request.candidate.samples > 1:
        # the token ids tell each sample's length, which the usage does not
        fields |= {"n": request.candidate.samples, "return_token_ids": True}
    if request.stop:
        fields["stop"] = list(request.stop)
    if request.chat_template_kwargs:
        fields["chat_template_kwargs"] = dict(request.chat_template_kwargs)
    return fields


def _reply(request: Request, reply: dict[str, Any]) -> Reply:
    if "error" in reply:
        return Failure(request.key, reply["error"], reply["transient"], reply["maybe_paid"])
    return Outcome(
        request.query_id,
        request.candidate,
        tuple(Sample(c["text"], c["finish_reason"], c["output_tokens"]) for c in reply["choices"]),
        usage=Usage(**reply["usage"]),
        latency_s=reply["latency_s"],
        sample=request.sample,
    )
