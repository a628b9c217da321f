"""The page at `/` in a real browser, over an ingress whose models are fakes; no cluster is needed."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rtr_ray.config import ServeFile
from rtr_ray.keys import KeyGate, KeyStore, Limits, LocalBank
from rtr_ray.online.page import page
from tests.browser import BROWSER, Browser, browsing
from tests.distributed.test_online import FakeHandle, FakeResponse, config
from tests.distributed.workbench import POOL, Workbench

pytestmark = pytest.mark.ray
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here to look at pages with")

EVIL = "<img src=x onerror=document.title='taken'>"
WORDS = ["The ", "sum ", "is ", "4. ", EVIL]


class TalkingHandle(FakeHandle):
    """A model that answers with what would be markup, if anybody let it."""

    def remote(self, call: str, body: dict[str, Any], stream: bool) -> FakeResponse:
        return TalkingResponse(self, stream)


class TalkingResponse(FakeResponse):
    """A few words, one by one."""

    async def _made(self, handle: FakeHandle, stream: bool) -> AsyncIterator[dict[str, Any]]:
        for number, word in enumerate(WORDS):
            last = "stop" if number + 1 == len(WORDS) else None
            chunk = {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": last}]}
            yield {"counted": (9, 0, number + 1), "chunks": [chunk] if stream else []}
        message = {"role": "assistant", "content": "".join(WORDS)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        yield {"counted": (9, 0, 5), "choices": None if stream else choices, "ended": True}


class Called:
    """What is a handle's from outside, and calls in this process."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return Remote(getattr(self._actor, name))


@dataclass
class Remote:
    """A method of a handle."""

    remote: Any


@dataclass(frozen=True)
class Site:
    """A served page, and the folder of what belongs to it."""

    url: str
    folder: Path
    token: str = ""

    def get(self, path: str, token: str = "") -> tuple[int, Any, Any]:
        """Status, body and headers of a GET."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + path, headers=headers), timeout=120
            ) as reply:
                return reply.status, reply.read(), reply.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers


@contextmanager
def served(folder: Path, keys: bool) -> Iterator[Site]:
    """An ingress behind a real HTTP server on this machine."""
    import uvicorn

    from rtr_ray.distributed.online.budgets import Budgets
    from rtr_ray.distributed.online.ingress import ENDPOINTS, RoutingIngress, Setting, fastapi_app
    from rtr_ray.distributed.online.keys_actor import SharedKeys
    from rtr_ray.distributed.online.memory import Memory

    handles = {name: TalkingHandle(f"OnlineServer:{name}") for name in ("weak", "strong")}

    class Alone(RoutingIngress):
        async def _watch(self) -> None:
            self._replicas._replicas.update(weak=1, strong=2)

    class Here(Budgets):
        async def _asked(self, method: str, *arguments: Any) -> Any:
            return getattr(SharedKeys(str(folder / "keys.sqlite")), method)(*arguments)

    bench = Workbench(folder, "none")
    ways = POOL["strategies"]  # one of three samples is dearer than one: what is chosen hangs on no tie
    bench.pool(
        strategies={"vanilla": ways["vanilla"], "cot": ways["cot"] | {"samples": [3]}},
        exclude=[{"model": "weak", "strategy": ["cot"]}],
    )
    bench.router({"weak": 0.3, "strong": 0.9})
    store, token = KeyStore(folder / "keys.sqlite"), ""
    if keys:
        token, _ = store.create("ann", Limits(day_usd=Decimal(1)))
        store.create("bob", Limits(day_usd=Decimal(7)))

    async def serving() -> None:
        memory = Memory(str(folder / "feedback"))
        options: dict[str, Any] = {}
        if keys:
            memory._budgets = Here("")
            options["gate"] = lambda: KeyGate(LocalBank(store))
        file = ServeFile(pool=str(folder / "pool.yaml"), folder=str(folder / "kept"))
        setting = Setting(file, {"weak": 8, "strong": 8}, frozenset(), **options)
        alone = Alone(handles, dict.fromkeys(handles), setting=setting, memory=Called(memory))
        await alone.reconfigure(config(folder / "router", lam=0.9))
        app = fastapi_app()
        for name, bind in ENDPOINTS.items():
            bind(app)(getattr(alone, name))
        found.append(uvicorn.Server(uvicorn.Config(app, log_level="warning")))
        await found[0].serve(sockets=[listening])

    found: list[uvicorn.Server] = []
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(serving()), daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 120
        while not (found and found[0].started):
            assert thread.is_alive(), "the server has ended"
            assert time.monotonic() < deadline, "the server is not up"
            time.sleep(0.05)
        yield Site(f"http://127.0.0.1:{listening.getsockname()[1]}", folder, token)
    finally:
        if found:
            found[0].should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def anybody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site without keys."""
    with served(tmp_path_factory.mktemp("open"), keys=False) as site:
        yield site


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with the keys of ann and bob; its token is ann's."""
    with served(tmp_path_factory.mktemp("keyed"), keys=True) as site:
        yield site


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all."""
    if BROWSER is None:
        pytest.skip("no chromium here to look at pages with")
    with browsing(tmp_path_factory.mktemp("browser") / "profile") as found:
        yield found


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_prompt_gets_its_chart_its_choice_with_a_reason_and_its_answer(
    anybody: Site, browser: Browser, width: int, dark: bool
) -> None:
    browser.complaints.clear()
    browser.look(width, 844, dark)
    browser.open(anybody.url)
    prompt = f"2 + 2? {EVIL}<script>document.title='taken'</script>"
    browser.type("#prompt", prompt)
    browser.click("#ask")
    browser.until("document.querySelector('#facts').textContent.includes('In all')")
    shown = json.loads(browser.run(_posted("v1/route", prompt)))
    assert browser.run("document.querySelectorAll('#rows tr').length") == len(shown["table"])
    assert browser.run("document.querySelectorAll('#chart .dot').length") == len(shown["table"])
    assert browser.run("document.querySelectorAll('#chart .dot.chosen').length") == 1
    assert browser.text("#rows tr.chosen th") == f"{shown['choice']['candidate']}chosen"
    assert browser.text("#chart text.name") == shown["choice"]["candidate"]
    assert browser.text("#why") == shown["why"]
    assert browser.text("#answer") == "".join(WORDS)
    assert "Answered by" + shown["choice"]["candidate"] in browser.text("#facts")
    assert "Instead of" not in browser.text("#facts")
    # what models and people wrote is text, and never becomes a part of the page
    assert browser.run("document.querySelectorAll('#answer *, main img').length") == 0
    assert browser.run("document.title") == "rtr-ray"
    browser.until(f"document.querySelector('#many').textContent.includes({shown['choice']['candidate']!r})")
    assert "up" in browser.text("#replicas")
    assert "No keys are configured" in browser.text("#budgets")
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.complaints == []


def _posted(path: str, prompt: str) -> str:
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": prompt}]})
    return f"fetch({path!r}, {{method: 'POST', body: {body!r}}}).then(reply => reply.text())"


def test_a_lambda_of_ones_own_moves_the_choice(anybody: Site, browser: Browser) -> None:
    browser.look(1280, 844)
    browser.open(anybody.url)
    browser.click("#own")
    browser.run("document.querySelector('#lam').value = 0")
    browser.run("document.querySelector('#lam').dispatchEvent(new Event('input'))")
    assert browser.text("#shown") == "0.00"
    browser.click("#only")
    browser.until("document.querySelector('#rows tr.chosen')")
    assert browser.text("#rows tr.chosen th").startswith("weak:")
    assert browser.run("document.querySelector('#answered').classList.contains('hide')")


def test_with_keys_the_page_shows_nothing_without_one_and_of_a_key_its_own_alone(
    keyed: Site, browser: Browser
) -> None:
    browser.look(1280, 844)
    browser.open(keyed.url)
    browser.until("document.querySelector('#said').textContent.includes('API key is needed')")
    browser.click("#ask")
    browser.until("document.querySelector('#why').textContent.includes('API key is needed')")
    assert browser.run("document.querySelector('#access').open")
    assert browser.run("document.querySelectorAll('#model option').length") == 1
    browser.type("#key", keyed.token)
    browser.until("document.querySelector('#budgets').textContent.includes('Today')")
    assert "of $1.00 left" in browser.text("#budgets")
    assert "7" not in browser.text("#budgets")
    browser.until("document.querySelectorAll('#model option').length > 1")
    browser.click("#ask")
    browser.until("document.querySelector('#said').textContent.includes('answer for')")
    assert "with the key of ann" in browser.text("#said")
    assert browser.run("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    assert keyed.token not in browser.run("document.documentElement.outerHTML")


def test_who_answers_in_place_of_the_choice_is_said(keyed: Site, browser: Browser) -> None:
    token, _ = KeyStore(keyed.folder / "keys.sqlite").create("poor", Limits(total_usd=Decimal("0.00004")))
    browser.look(1280, 844)
    browser.open(keyed.url)
    browser.run("sessionStorage.clear()")  # of the test before, in the same tab
    browser.open(keyed.url)
    browser.until("document.querySelector('#access').open")
    browser.type("#key", token)
    browser.until("document.querySelectorAll('#model option').length > 1")
    browser.click("#ask")
    browser.until("document.querySelector('#facts').textContent.includes('In all')")
    assert browser.text("#rows tr.chosen th").startswith("strong:")
    assert "Answered byweak:vanillaInstead ofstrong:vanilla" in browser.text("#facts")


@needs_browser
def test_whatever_gets_into_the_page_does_not_run(anybody: Site, browser: Browser) -> None:
    browser.open(anybody.url)
    browser.run(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
    )
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 2\">')")
    assert browser.run("fetch('http://localhost:9/').then(() => 1, () => 0)") == 0
    assert browser.run("window.ran") is None
    deadline = time.monotonic() + 60
    while not any("Content Security Policy" in one for one in browser.complaints):
        assert time.monotonic() < deadline, browser.complaints
        browser.run("0")  # what it complains of is heard with the answers to calls
    browser.complaints.clear()


def test_every_field_has_a_label_and_every_picture_a_name(anybody: Site, browser: Browser) -> None:
    browser.open(anybody.url)
    bare = "[...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels.length).length"
    assert browser.run(bare) == 0
    unnamed = (
        "[...document.querySelectorAll('[role=img], [role=region], section')]"
        ".filter(e => !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby')).length"
    )
    assert browser.run(unnamed) == 0
    assert browser.run("document.documentElement.lang") == "en"


def test_the_page_itself_asks_for_no_key_and_its_data_do(keyed: Site) -> None:
    status, body, headers = keyed.get("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert body.decode() == page()[0]
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for path in ("/v1/live", "/v1/models"):
        assert keyed.get(path)[0] == 401
        assert keyed.get(path, "rtr-nobody")[0] == 401
        assert keyed.get(path, keyed.token)[0] == 200
    status, body, _ = keyed.get("/v1/live?minutes=0", keyed.token)
    assert (status, json.loads(body)["error"]["param"]) == (400, "minutes")


def test_the_file_needs_nothing_from_elsewhere_and_parses_no_html() -> None:
    text, headers = page()
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    assert "url(" not in text
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|style=", text) == []
    )
    assert headers["content-security-policy"].count("'sha256-") == 2
    assert len(text) < 40_000


@pytest.mark.parametrize("scheme", [0, 1])
def test_light_and_dark_can_both_be_read(scheme: int) -> None:
    block = re.findall(r":root\{(.*?)\}", page()[0], re.DOTALL)[scheme]
    colours = dict(re.findall(r"--(\w+):(#\w+)", block))
    for ink, paper in [
        ("ink", "paper"), ("ink", "card"), ("ink", "field"), ("soft", "paper"), ("soft", "card"),
        ("accent", "card"), ("on", "accent"), ("bad", "card"), ("bad", "paper"), ("ink", "wash"),
    ]:  # fmt: skip
        assert _contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    assert _contrast(colours["edge"], colours["field"]) >= 2.9


def _contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2: 21 between black and white."""
    bright, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
