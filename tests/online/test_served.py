"""What an endpoint serves and served: the way there, the way back, and folders that change or vanish."""

from __future__ import annotations

import json
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rtr_ray.cli import app
from rtr_ray.config import SwapKeys, load_pool
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.errors import ConfigError, RouterError
from rtr_ray.estimators.prior import Prior
from rtr_ray.online.following import Follower
from rtr_ray.online.served import HISTORY, Served
from rtr_ray.pool import Pool
from rtr_ray.router import RouterFolder, train
from rtr_ray.storage import open_store
from tests.online.bench import outcomes, pool

POOL = pool()
POLICY = {"kind": "score", "lam": 0.9, "normaliser_usd": 1e-4}


def router(folder: Path, share: float, of: Pool = POOL) -> str:
    """A router folder; another share, another router."""
    found = outcomes(of, {"weak:vanilla": share})
    train(found, of, HashEncoder(32), Prior()).save(str(folder))
    return str(folder)


def keys(path: str, **more: Any) -> SwapKeys:
    return SwapKeys.model_validate({"router": path, "policy": POLICY} | more)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(open_store(str(tmp_path / "kept")))


def test_one_goes_back_step_by_step_and_each_step_is_kept(served: Served, tmp_path: Path):
    one, two, three = (router(tmp_path / str(i), 0.1 * i) for i in range(1, 4))
    served.configure(keys(one))
    served.use(keys(two))
    served.use(keys(three))
    assert served.read().now.swap.router_path == three
    assert served.roll_back().swap.router_path == two
    assert served.roll_back().swap.router_path == one
    with pytest.raises(ConfigError, match="no way back"):
        served.roll_back()
    assert served.use(keys(three)).before == 0
    assert served.roll_back().swap.router_path == one
    assert [entry.cause for entry in served.read().entries] == ["configuration", "use", "use", "use"]


def test_a_configuration_counts_when_it_changes_and_not_when_a_replica_starts_again(
    served: Served, tmp_path: Path
):
    one, two = router(tmp_path / "1", 0.1), router(tmp_path / "2", 0.2)
    served.configure(keys(one))
    served.use(keys(two))
    assert served.configure(keys(one)).swap.router_path == two, "a replica that died is started again"
    assert served.configure(keys(one), anew=True).swap.router_path == two, "and so is the endpoint"
    changed = served.configure(keys(one, latency_weight=2.0))
    assert (changed.swap.router_path, changed.cause) == (one, "configuration")
    assert served.roll_back().swap.router_path == two
    assert len(served.read().entries) == 3


def test_a_router_that_was_trained_anew_in_its_place_is_served_when_somebody_asks(
    served: Served, tmp_path: Path
):
    path = router(tmp_path / "1", 0.1)
    entry = served.configure(keys(path))
    router(tmp_path / "1", 0.7)
    assert served.configure(keys(path)) == entry
    place, warning = served.place_of(entry)
    assert RouterFolder.load(place).fingerprint == entry.router != RouterFolder.load(path).fingerprint
    assert "holds another router" in (warning or "")
    again = served.configure(keys(path), anew=True)
    assert served.place_of(again) == (path, None)
    assert served.roll_back().router == entry.router


def test_a_folder_that_vanished_is_refused_and_its_copy_serves_who_has_it(served: Served, tmp_path: Path):
    one, two = router(tmp_path / "1", 0.1), router(tmp_path / "2", 0.2)
    entry = served.configure(keys(one))
    shutil.rmtree(one)
    place, warning = served.place_of(entry)
    assert RouterFolder.load(place).fingerprint == entry.router
    assert f"{one} is not a router folder" in (warning or "")
    assert served.configure(keys(one)) == entry
    with pytest.raises(RouterError, match="not a router folder"):
        served.use(keys(str(tmp_path / "nowhere")))
    served.use(keys(two))
    shutil.rmtree(tmp_path / "kept" / "routers")
    assert served.roll_back() == entry
    with pytest.raises(RouterError, match="not a router folder"):
        served.place_of(entry)


def test_a_damaged_history_says_what_to_do(served: Served):
    for text in (b"{", b"{}", b'{"entries": [], "current": 3, "configured": 0}'):
        served.store.write(HISTORY, text)
        with pytest.raises(ConfigError, match="Move it away"):
            served.read()


class Taken:
    """Takes over what it is told, unless it may not."""

    def __init__(self, served: Served) -> None:
        self.names: list[str] = []
        self.bad, self.breaks = "", False
        self.follower = Follower(served, self.take)

    async def take(self, keys: SwapKeys, router: str) -> None:
        if self.bad and self.bad in router:
            raise RouterError(f"{router} cannot be used.")
        if self.breaks:
            raise ZeroDivisionError
        self.names.append(Path(router).name)


async def test_a_replica_takes_over_what_is_said_and_keeps_what_it_has_where_that_fails(
    served: Served, tmp_path: Path
):
    one, two = router(tmp_path / "one", 0.1), router(tmp_path / "two", 0.2)
    taken = Taken(served)
    await taken.follower.configured(keys(one).model_dump())
    await taken.follower.look()
    served.use(keys(two))
    await taken.follower.look()
    await taken.follower.look()
    assert taken.names == ["one", "two"]
    taken.bad = "one"
    served.roll_back()
    for _ in range(3):
        await taken.follower.look()
    shown = taken.follower.shown()
    assert (shown["serving"]["number"], shown["refused_change"]) == (1, f"{one} cannot be used.")
    taken.bad, taken.breaks = "", True
    served.use(keys(two))
    await taken.follower.look()
    assert "ZeroDivisionError" in taken.follower.shown()["refused_change"]
    taken.breaks = False
    served.use(keys(one))
    await taken.follower.look()
    assert taken.follower.shown()["refused_change"] is None
    assert taken.names == ["one", "two", "one"]


async def test_a_replica_that_starts_serves_what_was_used_or_else_what_was_served_before(
    served: Served, tmp_path: Path
):
    one, two = router(tmp_path / "one", 0.1), router(tmp_path / "two", 0.2)
    served.configure(keys(one))
    served.use(keys(two))
    second, third = Taken(served), Taken(served)
    await second.follower.configured(keys(one).model_dump())
    assert second.names == ["two"]
    third.bad = "two"
    await third.follower.configured(keys(one).model_dump())
    await third.follower.look()
    assert third.names == ["one"]
    assert third.follower.shown()["refused_change"] == f"{two} cannot be used."
    fourth = Taken(served)
    with pytest.raises(RouterError, match="not a router folder"):
        await fourth.follower.configured(keys(str(tmp_path / "typo")).model_dump())


async def test_a_replica_says_that_its_folder_is_gone(served: Served, tmp_path: Path):
    taken = Taken(served)
    await taken.follower.configured(keys(router(tmp_path / "one", 0.1)).model_dump())
    shutil.rmtree(tmp_path / "one")
    for _ in range(10):
        await taken.follower.look()
    assert "Its copy in" in taken.follower.shown()["warning"]
    shutil.rmtree(tmp_path / "kept" / "routers")
    for _ in range(10):
        await taken.follower.look()
    assert "serves from memory" in taken.follower.shown()["warning"]
    assert taken.names == ["one"]


@pytest.fixture
def endpoint(served: Served) -> Any:
    """Says at /healthz whatever the history says, as an endpoint would."""

    class Health(BaseHTTPRequestHandler):
        refuses = ""

        def do_GET(self) -> None:
            number = served.read().current
            refused = self.refuses or None
            body = {"serving": {"number": -7 if refused else number}, "refused_change": refused}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_command_line_uses_a_router_and_rolls_it_back(
    served: Served, endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "240")

    def rtr_ray(*arguments: str) -> Any:
        found = CliRunner().invoke(app, ["router", *arguments, "--config", str(tmp_path / "serve.yaml")])
        return found.exit_code, " ".join(found.output.split())

    written(tmp_path)
    members = load_pool(str(tmp_path / "pool.yaml"))
    one, two = router(tmp_path / "one", 0.1, members), router(tmp_path / "two", 0.2, members)
    content = {
        "pool": str(tmp_path / "pool.yaml"),
        "router": one,
        "policy": POLICY,
        "folder": served.store.uri,
        "port": endpoint.server_address[1],
    }
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(content))
    served.configure(keys(one))
    code, text = rtr_ray("use", two, "--latency-weight", "2.5")
    assert (code, f"Served: {two}" in text) == (0, True), text
    now = served.read().now.swap
    assert (now.router_path, now.latency_weight, now.policy) == (two, 2.5, POLICY)
    code, text = rtr_ray("rollback")
    assert (code, f"Served: {one}" in text) == (0, True), text
    code, text = rtr_ray("rollback")
    assert (code, "no way back" in text) == (1, True), text
    for arguments, complaint in [
        ((str(tmp_path / "nowhere"),), "not a router folder"),
        ((two, "--policy", '{"kind": "fixed", "candidate": "weak:magic"}'), "The pool has"),
        ((two, "--policy", "score"), "JSON is needed"),
        ((two, "--latency-weight", "-1"), "latency_weight"),
    ]:
        code, text = rtr_ray("use", *arguments)
        assert (code, complaint in text) == (1, True), text
        assert len(served.read().entries) == 2, "nothing was said to the endpoint"
    endpoint.RequestHandlerClass.refuses = "No room."
    code, text = rtr_ray("use", two)
    assert (code, "serves on what it did: No room." in text) == (1, True), text
    code, text = rtr_ray("history")
    assert (code, "configuration" in text, "use" in text) == (0, True, True)


def written(folder: Path) -> None:
    """The pool of the bench as a file."""
    prices = {"weak": 0.1, "strong": 1.3}
    content = {
        "deployments": {
            name: {
                "source": "nowhere",
                "accelerator": "cpu",
                "context_tokens": 4000,
                "prices": {"input_usd_per_mtok": 0.03, "output_usd_per_mtok": usd},
            }
            for name, usd in prices.items()
        },
        "models": {name: {"deployment": name, "profile": f"the model {name}"} for name in prices},
        "strategies": {
            "vanilla": {"profile": "plain", "max_tokens": 60},
            "cot": {
                "profile": "steps",
                "max_tokens": 60,
                "system": "Step by step.",
                "samples": [1, 3],
                "select": "majority",
                "answer": "boxed",
            },
            "pal": {
                "profile": "program",
                "max_tokens": 60,
                "system": "Write a program.",
                "answer": "program",
            },
        },
        "exclude": [{"model": "weak", "strategy": ["pal", "cot"]}],
    }
    (folder / "pool.yaml").write_text(yaml.safe_dump(content))
