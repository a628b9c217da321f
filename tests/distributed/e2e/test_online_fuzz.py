"""Requests that are made of the endpoint's own OpenAPI document, and of what it does not allow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

if TYPE_CHECKING:
    from tests.distributed.e2e.conftest import Online

pytestmark = [pytest.mark.ray, pytest.mark.vllm]

EXAMPLES = int(os.environ.get("RTR_RAY_FUZZ_EXAMPLES", "6"))  # of each path and mode


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_whatever_is_sent_there_is_no_server_error_but_a_503_that_is_documented(
    online: Online, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_url(f"{online.url}/openapi.json")
    headers = {"authorization": f"Bearer {online.key}"}
    seen: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == "/":
            continue  # a page
        statuses = seen.setdefault(f"{operation.method} {operation.path}", set())

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any, statuses: set[int] = statuses) -> None:
            response = case.call(headers=headers, timeout=120)
            statuses.add(response.status_code)
            said = f"{case.as_curl_command()[:600]}\n{response.status_code} {response.text[:600]}"
            assert response.status_code < 500 or response.status_code == 503, said
            if response.status_code >= 400 and response.headers["content-type"] == "application/json":
                assert response.json()["error"]["message"], said
            if response.status_code == 503:
                assert "503" in case.operation.definition.raw["responses"], said
                assert int(response.headers["retry-after"]) >= 1, said

        send()
    assert len(seen) >= 6
    assert 200 in seen["get /v1/models"], seen
    if mode == GenerationMode.NEGATIVE:
        assert 400 in seen["post /v1/chat/completions"], seen
    assert online.call("/healthz")[0] == 200
