"""What is wrong with a request, in the form that OpenAI's clients read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rtr_ray.errors import RtrError
from rtr_ray.gate import Refusal

_STATUS = {
    "invalid_api_key": 401,
    "permission_denied": 403,
    "budget_exceeded": 429,
    "rate_limit_exceeded": 429,
    "unavailable": 503,
}


class RequestError(RtrError):
    """A request that gets no answer, and the HTTP status that says so.

    Args:
        message: What was asked, what was found, what to do. It quotes no prompt and no key.
        status: The HTTP status.
        kind: OpenAI's `type`.
        param: The field of the body that is meant.
        code: OpenAI's `code`.
        retry_after_s: When to come again; None: no use.
        more: What stands in the error beside that.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.retry_after_s, self.more = retry_after_s, dict(more or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        said = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": said | self.more}

    @property
    def headers(self) -> dict[str, str]:
        """The headers that tell a client when to come again; it never hears of less than a second."""
        headers = {} if self.status != 401 else {"www-authenticate": "Bearer"}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        return headers

    @classmethod
    def of(cls, refusal: Refusal) -> RequestError:
        """What the gate says, as a response."""
        more = {} if refusal.reset_at is None else {"reset_at": refusal.reset_at}
        return cls(
            refusal.message,
            status=_STATUS.get(refusal.kind, 403),
            kind=refusal.kind,
            code=refusal.kind,
            retry_after_s=refusal.retry_after_s,
            more=more,
        )


def overloaded(message: str, retry_after_s: float = 1.0) -> RequestError:
    """There is no room just now: 503 with Retry-After."""
    return _later(message, "overloaded", retry_after_s)


def unavailable(message: str, retry_after_s: float = 5.0) -> RequestError:
    """Nobody who could answer is up: 503 with Retry-After."""
    return _later(message, "unavailable", retry_after_s)


def _later(message: str, code: str, retry_after_s: float) -> RequestError:
    return RequestError(message, status=503, kind="unavailable", code=code, retry_after_s=retry_after_s)
