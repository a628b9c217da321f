"""The endpoint before real vLLM, by OpenAI's own client and plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest

from rtr_ray.config import load_pool
from rtr_ray.outcomes import pivot, read_long
from tests.distributed.conftest import ROOT
from tests.distributed.e2e.readme_clients import blocks
from tests.distributed.e2e.serving import ASK, QUICK, Online
from tests.distributed.workbench import Workbench

pytestmark = [pytest.mark.ray, pytest.mark.vllm]


def test_openais_client_calls_the_router_a_candidate_and_a_model(online: Online) -> None:
    client = online.client()
    names = [model.id for model in client.models.list()]
    assert names == ["auto", "nano", "nano:vanilla", "nano:cot", "nano:pal"]
    assert client.models.retrieve("nano:cot").id == "nano:cot"
    for name in ("auto", "auto:0.5", "nano", "nano:cot"):
        raw = client.chat.completions.with_raw_response.create(model=name, messages=ASK)  # type: ignore[arg-type]
        answer = raw.parse()
        assert answer.choices[0].message.content
        assert answer.choices[0].finish_reason in ("stop", "length")
        assert answer.usage.completion_tokens > 0  # type: ignore[union-attr]
        cost = Decimal(answer.usage.cost_usd)  # type: ignore[union-attr]
        price = load_pool(str(online.folder / "pool.yaml")).deployments["nano"].price
        assert cost == Decimal(raw.headers["x-rtr-cost-usd"]) > 0
        assert cost <= price.worst_case_usd(answer.usage.prompt_tokens, answer.usage.completion_tokens)  # type: ignore[union-attr]
        assert raw.headers["x-rtr-model"] == "nano"
        assert raw.headers["x-request-id"]
        assert ("x-rtr-predicted-accuracy" in raw.headers) == name.startswith("auto")


def test_a_program_is_run_in_the_sandbox(online: Online) -> None:
    answer = online.client().chat.completions.create(model="nano:pal", messages=ASK)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "195"
    assert "print" in answer.rtr["code"]  # type: ignore[attr-defined]


def test_a_stream_is_what_the_whole_answer_is(online: Online) -> None:
    client = online.client()
    whole = client.chat.completions.create(model="nano:cot", messages=ASK)  # type: ignore[arg-type]
    for _ in range(20):
        stream = client.chat.completions.create(
            model="nano:cot", messages=ASK, stream=True, stream_options={"include_usage": True}
        )  # type: ignore[call-overload]
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens  # type: ignore[union-attr]
        assert Decimal(chunks[-1].usage.cost_usd) > 0
        if len(chunks) > 5:  # what nobody fetches for a while, the engine joins to one
            return
    pytest.fail("no answer of twenty came piece by piece")


def test_the_asynchronous_client_asks_many_times_at_once(online: Online) -> None:
    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{online.url}/v1", api_key=online.key, **QUICK) as client:
            asked = [
                client.chat.completions.create(
                    model="auto", messages=[{"role": "user", "content": f"What is {i} + 31?"}]
                )
                for i in range(24)
            ]
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask_all())
    assert len({answer.id for answer in answers}) == 24
    assert {answer.object for answer in answers} == {"chat.completion"}


def test_several_choices_logprobs_and_a_tool_that_is_named(online: Online) -> None:
    client = online.client()
    several = client.chat.completions.create(
        model="auto", messages=ASK, n=2, logprobs=True, temperature=0.8, max_tokens=6
    )  # type: ignore[call-overload]
    assert several.model == "nano:vanilla"
    assert [choice.index for choice in several.choices] == [0, 1]
    assert all(choice.logprobs.content for choice in several.choices)
    tool = {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
                "required": ["a"],
                "additionalProperties": False,
            },
        },
    }
    called = client.chat.completions.create(
        model="nano",
        messages=ASK,
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "add"}},
        max_tokens=40,
    )  # type: ignore[call-overload]
    (call,) = called.choices[0].message.tool_calls
    assert call.function.name == "add"
    assert set(json.loads(call.function.arguments)) == {"a"}


def test_the_readmes_python_lines_work_as_printed(online: Online) -> None:
    (lines,) = blocks("python", online.url, online.key)
    ran = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    first, *streamed, eight, called = ran.stdout.splitlines()
    assert first.startswith("nano:")
    assert Decimal(first.split()[-1]) > 0
    assert Decimal(streamed[-1]) > 0
    assert eight.count("nano:") == 8
    assert re.search(r"""arguments='\{"way": ?"(adding|counting)"\}', name='solve'""", called), called


def test_the_readmes_curl_lines_work_as_printed(online: Online) -> None:
    (lines,) = blocks("sh", online.url, online.key)
    commands = lines.replace("\\\n", " ").splitlines()
    found = [
        subprocess.run(["bash", "-c", f"{one} -sSf"], capture_output=True, text=True) for one in commands
    ]
    assert [one.returncode for one in found] == [0] * 3, [one.stderr for one in found]
    answer, route, models = [json.loads(one.stdout) for one in found]
    assert answer["choices"][0]["message"]["content"]
    assert Decimal(answer["usage"]["cost_usd"]) > 0
    assert {row["candidate"] for row in route["table"]} == {"nano:vanilla", "nano:cot", "nano:pal"}
    assert models["data"][0]["id"] == "auto"


def test_a_client_that_leaves_stops_the_engine(online: Online) -> None:
    for _ in range(20):
        stream = online.client().chat.completions.create(
            model="nano", messages=ASK, stream=True, max_tokens=900, extra_body={"ignore_eos": True}
        )  # type: ignore[call-overload]
        next(iter(stream))
        under_way = online.call("/healthz")[1]["requests"]
        stream.close()
        if under_way:  # else this process stood still until the answer was whole
            break
    assert under_way >= 1
    deadline = time.monotonic() + 60
    while online.call("/healthz")[1]["requests"]:
        assert time.monotonic() < deadline, "the request is still there"
        time.sleep(0.1)


def test_a_table_is_shown_and_feedback_becomes_outcomes(online: Online) -> None:
    status, shown = online.call("/v1/route", {"model": "auto", "messages": ASK})
    assert status == 200
    assert {row["candidate"] for row in shown["table"]} == {"nano:vanilla", "nano:cot", "nano:pal"}
    answer = online.client().chat.completions.create(model="auto", messages=ASK)  # type: ignore[arg-type]
    status, given = online.call("/v1/feedback", {"request_id": answer.id, "score": 1})
    assert (status, given["id"]) == (200, answer.id)
    assert online.call("/v1/feedback", {"request_id": answer.id, "score": 0})[0] == 409
    outcomes = pivot(read_long(str(online.folder / "kept" / "feedback")))
    assert outcomes.query_ids == (answer.id,)
    assert outcomes.queries == (ASK[0]["content"],)
    assert outcomes.accuracy.tolist() == [[1.0]]


def test_another_router_is_used_and_rolled_back_while_requests_come_and_none_is_dropped(
    online: Online,
) -> None:
    other = online.folder / "other"
    other.mkdir()
    shutil.copy(online.folder / "pool.yaml", other)
    Workbench(other, "none").router({"nano": 0.9})
    shutil.copytree(online.folder / "router", online.folder / "aside")
    seen: list[str] = []
    ended = threading.Event()

    def ask() -> None:
        client = online.client()
        while not ended.is_set():
            raw = client.chat.completions.with_raw_response.create(model="auto", messages=ASK, max_tokens=4)  # type: ignore[arg-type]
            seen.append(raw.headers["x-rtr-router"])

    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(ask) for _ in range(3)]
        try:
            _until(lambda: seen)
            _router(online, "use", str(other / "router"))
            _until(lambda: seen[-1] != seen[0])
            shutil.rmtree(online.folder / "router")  # of what was served before: there is a copy
            _router(online, "rollback")
            _until(lambda: seen[-1] == seen[0])
        finally:
            ended.set()
            shutil.move(online.folder / "aside", online.folder / "router")
        for one in asking:
            one.result(60)
    assert len(set(seen)) == 2
    health = online.call("/healthz")[1]
    assert (health["serving"]["number"], health["refused_change"]) == (0, None)


def _until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _router(online: Online, *arguments: str) -> None:
    command = [str(Path(sys.executable).parent / "rtr-ray"), "router", *arguments]
    command += ["--config", str(online.folder / "serve.yaml")]
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Served:" in done.stdout


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"{", 400),
        (b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}', 404),
        (b'{"model": "auto", "messages": []}', 400),
        (b'{"model": "auto:7", "messages": [{"role": "user", "content": "x"}]}', 400),
        (b'{"model": "nano", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": 3}]}', 400),
        (b'{"model": "nano", "messages": [{"role": "user", "content": "' + b"7 " * 500_000 + b'"}]}', 400),
        (b" " * 5_000_000, 413),
    ],
)
def test_what_is_wrong_is_said_in_openais_form(online: Online, raw: bytes, status: int) -> None:
    for _ in range(20):
        with contextlib.suppress(OSError):  # who refuses what is too large need not read it to its end
            found, body = online.call("/v1/chat/completions", raw=raw)
            break
    assert found == status, body
    assert body["error"]["message"]


def test_what_is_not_there_is_said_in_openais_form(online: Online) -> None:
    assert online.call("/v1/nowhere")[1]["error"]["message"] == "Not Found"


def test_a_thousand_connections_that_never_end_their_request_keep_nobody_out(online: Online) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    host, _, port = online.url.removeprefix("http://").partition(":")
    with contextlib.ExitStack() as stack:
        for number in range(1000):
            one = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            lines = "POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Length: 500\r\n"
            one.sendall(
                (lines if number % 2 else f"{lines}\r\n{{").encode()
            )  # no end of the headers, or no body
        assert online.call("/v1/models")[0] == 200
        answer = online.client().chat.completions.create(model="auto", messages=ASK)  # type: ignore[arg-type]
        assert answer.choices[0].message.content
    assert online.call("/healthz")[0] == 200
