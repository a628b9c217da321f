"""What the endpoint shows of itself: its page in a browser, its metrics, its log."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.browser import BROWSER, browsing
from tests.distributed.e2e.serving import ASK, Online
from tests.online.test_dashboard import asked_for

pytestmark = [pytest.mark.ray, pytest.mark.vllm]


@pytest.mark.skipif(BROWSER is None, reason="no chromium here to look at pages with")
def test_the_page_asks_and_shows_the_chart_the_choice_and_the_answer(online: Online, tmp_path: Path) -> None:
    with browsing(tmp_path / "profile") as browser:
        browser.look(1280, 900)
        browser.open(online.url)
        browser.until("document.querySelector('#access').open")  # it is refused without a key
        browser.type("#key", online.key)
        browser.until("document.querySelectorAll('#model option').length === 5")
        browser.type("#prompt", ASK[0]["content"])
        browser.click("#ask")
        browser.until("document.querySelector('#facts').textContent.includes('In all')", 120)
        chosen = browser.text("#chart text.name")
        assert chosen in {"nano:vanilla", "nano:cot", "nano:pal"}
        assert browser.run("document.querySelectorAll('#chart .dot').length") == 3
        assert browser.text("#why").startswith(f"{chosen} is expected to be right")
        assert browser.text("#answer").strip()
        # this router believes all strategies alike, and a tie falls by the id of a request
        assert any(f"Answered bynano:{way}" in browser.text("#facts") for way in ("vanilla", "cot", "pal"))
        browser.until("document.querySelector('#said').textContent.includes('with the key of ann')")
        assert "of $1.00 left" in browser.text("#budgets")
        browser.until("document.querySelector('#replicas').textContent.includes('nano')")
        # before the key was typed, its data was refused: the browser writes that down itself
        assert [one for one in browser.complaints if "401" not in one] == []


def test_ray_exports_what_the_dashboard_asks_for(online: Online) -> None:
    wanted = asked_for() - {"ray_rtr_shadow_total"}  # there is no second router here
    for _ in range(20):  # a share is of so many choices at least
        assert (
            online.call("/v1/chat/completions", {"model": "auto", "messages": ASK, "max_tokens": 1})[0] == 200
        )
    assert online.call("/v1/chat/completions", {"model": "nobody", "messages": ASK})[0] == 404
    port = exporting(online.pid)
    deadline = time.monotonic() + 120
    while missing := wanted - exported(port):
        assert time.monotonic() < deadline, missing
        time.sleep(1)


def exporting(pid: int) -> str:
    """The port at which the cluster of a process exports, as Ray writes it down in the session's folder."""
    commands = []
    for one in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # some of Ray's live for a moment
            commands.append(one.cmdline())
    flags = [flag for command in commands for flag in command if flag.startswith("--session-dir=")]
    (session,) = {flag.partition("=")[2] for flag in flags}
    (file,) = Path(session).glob("metrics_export_port_*")
    return file.read_text().strip()


def exported(port: str) -> set[str]:
    """The names that a node's Ray tells Prometheus."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return {line.partition("{")[0].partition(" ")[0] for line in lines if not line.startswith("#")}


def test_the_log_has_a_line_for_each_request_and_no_prompt_and_no_key(online: Online) -> None:
    answer = online.client().chat.completions.create(model="auto", messages=ASK)  # type: ignore[arg-type]
    deadline = time.monotonic() + 60
    while answer.id not in (text := _log(online)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (line,) = [one for one in map(json.loads, text.splitlines()) if one["id"] == answer.id]
    assert (line["key"], line["end"]) == ("ann", "answered")
    assert line["cost_usd"] == answer.usage.cost_usd  # type: ignore[union-attr]
    assert ASK[0]["content"] not in text
    assert online.key not in text


def _log(online: Online) -> str:
    """All whole lines; the last of a file may just be written."""
    files = (online.folder / "kept" / "requests").glob("*.jsonl")
    return "".join("".join(file.read_text().rpartition("\n")[:2]) for file in files)
