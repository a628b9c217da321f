"""`rtr-ray keys`: what it prints, and the one sentence that a mistake gets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rtr_ray.cli import app
from rtr_ray.keys import Admit, KeyStore, Limits
from rtr_ray.keys.tokens import digest
from tests.keys.bench import Desk, offer, usd


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def said(*arguments: str) -> str:
    found = keys(*arguments)
    assert found.exit_code == 1, found.output
    return " ".join(found.output.split())


def test_a_key_is_made_shown_once_and_works(here):
    found = keys(
        "create", "ann", "--day-usd", "2.50", "--requests-per-minute", "60", "--candidate", "small:cot"
    )
    assert found.exit_code == 0, found.output
    token = found.stdout.strip()
    assert re.fullmatch(r"rtr-[\w-]{43}", token)
    assert "it is not shown again" in found.stderr
    store = KeyStore(here / "keys.sqlite")
    (caller,) = store.apply("r", [Admit(digest(token))])
    assert caller is not None
    assert store.find("ann").limits == Limits(
        day_usd=usd("2.50"), requests_per_minute=60, candidates=("small:cot",)
    )
    for command in (["list"], ["show", "ann"], ["change", "ann"], ["revoke", "ann"]):
        assert token[4:] not in keys(*command).output


def test_the_file_can_be_another_one(here):
    (here / "in").mkdir()
    assert keys("create", "ann", "--keys", "in/k.sqlite").exit_code == 0
    assert "ann" in keys("list", "--keys", "in/k.sqlite").output
    assert "there is no such file" in said("list")


def test_keys_are_listed_with_what_they_have_used(here):
    keys("create", "ann", "--day-usd", "2.5", "--tokens-per-minute", "10000")
    keys("create", "bob")
    store = KeyStore(here / "keys.sqlite")
    desk = Desk(store)
    desk.settle(desk.hold(store.find("ann").id, offer("0.5")), "0.125")
    desk.hold(store.find("ann").id, offer("1"))
    keys("revoke", "bob")
    listed = keys("list").output
    assert "$1.125 of $2.50" in listed
    assert "10,000 tokens" in listed
    assert "global" in listed
    assert "bob" not in listed
    assert "bob" in keys("list", "--revoked").output


def test_one_key_is_shown_by_period(here):
    keys("create", "ann", "--day-usd", "2.5", "--max-request-usd", "1")
    store = KeyStore(here / "keys.sqlite")
    desk = Desk(store)
    desk.lose(desk.hold(store.find("ann").id, offer("0.5")))
    shown = keys("show", "ann").output
    for part in ("$2.50 a day", "$1.00 for one request", "1 (1 lost)", "$2.00", "all"):
        assert part in shown
    assert "All keys together" in keys("show").output


def test_limits_are_changed_one_by_one_and_taken_away(here):
    keys("create", "ann", "--day-usd", "2.5", "--month-usd", "50", "--candidate", "a:b")
    assert "$3.00 a day" in keys("change", "ann", "--day-usd", "3").output
    changed = keys("change", "ann", "--month-usd", "none", "--candidate", "none").output
    assert "month" not in changed
    assert KeyStore(here / "keys.sqlite").find("ann").limits == Limits(day_usd=usd(3))


def test_the_budget_over_all_keys_may_be_set_before_there_is_any(here):
    assert "$100.00 a month" in keys("change", "global", "--month-usd", "100").output
    assert KeyStore(here / "keys.sqlite").limits() == Limits(month_usd=usd(100))
    assert not KeyStore(here / "keys.sqlite").has_keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "two words"], "key 'two words' is not a usable name"),
        (["create", "global"], "A key cannot be named 'global'"),
        (["create", "ann", "--day-usd", "much"], "--day-usd 'much' is no number. Give dollars, such as 2.50"),
        (
            ["create", "ann", "--day-usd", "-1"],
            "day_usd=-1 cannot be a limit. Give dollars from 0 to",
        ),
        (["create", "ann", "--requests-per-minute", "1.5"], "--requests-per-minute '1.5' is no whole number"),
        (["create", "ann", "--requests-per-minute", "0"], "Give a whole number from 1."),
        (["create", "ann", "--candidate", "small"], "'small' does not name a candidate"),
        (["create", "ann", "--keys", "no/k.sqlite"], "there is no such folder"),
        (["list"], "cannot be used: there is no such file. Restore it; rtr-ray keys create makes a new one."),
        (["revoke", "ann"], "there is no such file"),
        (["revoke", "global"], "cannot be revoked"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, message):
    assert message in said(*arguments)


def test_a_key_that_is_not_there_is_not_repeated(here):
    token = keys("create", "ann").stdout.strip()
    for command in ("show", "change", "revoke"):
        message = said(command, token)
        assert "There is no such key" in message
        assert token not in message
