"""What a person sees while a job runs."""

from __future__ import annotations

import doctest
import io
import re
import time
from decimal import Decimal

import pytest
from rich.console import Console

from rtr_ray import screen as screen_module
from rtr_ray.screen import (
    Screen,
    Stage,
    comparison_table,
    duration,
    money,
    percent,
    pool_table,
    summary_table,
)
from tests.fakes import pool_of


def screen_and_page(terminal: bool = False) -> tuple[Screen, io.StringIO]:
    page = io.StringIO()
    return Screen(Console(file=page, width=120, force_terminal=terminal, color_system=None)), page


def printed(table: object) -> list[str]:
    page = io.StringIO()
    Console(file=page, width=140, color_system=None).print(table)
    return [
        " ".join(line.replace("│", " ").replace("┃", " ").split()) for line in page.getvalue().splitlines()
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (83, "1 min 23 s"),
        (3599.7, "1 h 00 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_time_is_told_as_a_person_would(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, "unknown"),
        (Decimal("0.0000303"), "$0.000030"),
        (0.5, "$0.500000"),
        (1234.5, "$1,234.50"),
        (0, "$0.000000"),
    ],
)
def test_money_is_told_for_the_eye(amount, text):
    assert money(amount) == text


def test_a_share_is_told_in_percent():
    assert (percent(0.1234), percent(1.0), percent(None)) == ("12.3%", "100.0%", "-")


def ended(**fields: float | None) -> Stage:
    stage = Stage("route", started=100.0, ended=110.0)
    for name, value in fields.items():
        setattr(stage, name, value)
    return stage


@pytest.mark.parametrize(
    ("fields", "left_s"),
    [
        ({"total": 100, "done": 50}, 1000),
        ({"total": 100, "done": 20}, 4000),
        ({"total": 100, "done": 60, "resumed": 20}, 1000),  # 40 of 80 in 1000 s: 40 more
        ({"total": 100, "done": 10, "share": 0.5}, 1000),
        ({"total": 100, "done": 0}, None),
        ({"done": 50}, None),
        ({"total": 0, "done": 0}, None),
    ],
)
def test_the_time_that_is_left_follows_from_the_pace_so_far(fields, left_s):
    stage = ended(**fields)
    assert stage.left_s is None
    stage.started, stage.ended = time.monotonic() - 1000, None
    assert stage.left_s == (None if left_s is None else pytest.approx(left_s, rel=0.02))


def test_a_stage_is_told_in_one_line():
    stage = ended(total=2000, done=1500)
    stage.note = "$0.12 spent"
    assert stage.line() == "1,500/2,000 rows · $0.12 spent · 10 s"
    assert ended(done=7).line() == "7 rows · 10 s"
    assert ended().line() == "10 s"


def test_where_nothing_is_redrawn_a_stage_is_told_as_it_begins_and_ends():
    screen, page = screen_and_page()
    with screen.running(), screen.stage("route", 10) as stage:
        stage.done = 10
        screen.tick(stage)  # not again within ten seconds
    lines = [re.sub(r"\b\d s$", "some s", line) for line in page.getvalue().splitlines()]
    assert lines == [
        "route        ...   0/10 rows · some s",
        "route        done  10/10 rows · some s",
    ]
    assert list(screen.seconds) == ["route"]


def test_a_stage_that_fails_has_ended_too():
    screen, page = screen_and_page()
    with pytest.raises(ValueError, match="oops"), screen.stage("route"):
        raise ValueError("oops")
    assert "route        done" in page.getvalue()


def test_on_a_terminal_the_stages_are_redrawn_and_stay():
    screen, page = screen_and_page(terminal=True)
    with screen.running():
        with screen.stage("route", 10) as stage:
            stage.note = "[not a tag]"
        screen.say("a sentence")
    last = page.getvalue()
    assert "a sentence" in last
    assert "[not a tag]" in last


def test_brackets_are_text():
    screen, page = screen_and_page()
    screen.say("Set aside: data[a-z].jsonl [/] [red]", "yellow")
    assert page.getvalue() == "Set aside: data[a-z].jsonl [/] [red]\n"


def test_a_long_sentence_is_not_broken():
    screen, page = screen_and_page()
    screen.say("x " * 200)
    assert len(page.getvalue().splitlines()) == 1


def test_the_summary_is_a_row_per_candidate_and_one_for_all():
    one = {
        "model": "small",
        "strategy": "cot",
        "samples": 5,
        "rows": 1200,
        "input_tokens": 7,
        "output_tokens": 8,
    }
    found = {
        "by_candidate": [one | {"cost_usd": "0.000123", "accuracy": None}],
        "rows": {"answered": 1200},
        "usage": {"input_tokens": 7, "output_tokens": 8},
        "cost_usd": {"spent": "12.3"},
        "accuracy": 0.5,
    }
    lines = printed(summary_table(found))
    assert "small:cot@5 1,200 7 8 $0.000123 -" in lines
    assert "all 1,200 7 8 $12.30 50.0%" in lines


@pytest.mark.parametrize(("best", "share"), [("2", "25.0%"), ("0", "-")])
def test_a_comparison_tells_what_share_of_the_best_singles_cost_was_spent(best, share):
    comparison = {
        "routed": {"accuracy": 0.9, "cost_usd": "0.5"},
        "best_single": {"accuracy": 0.8, "cost_usd": best, "candidate": "large:cot"},
    }
    lines = printed(comparison_table(comparison, ["routed", "best_single"]))
    assert f"routed 90.0% $0.500000 {share}" in lines
    assert any(line.startswith("best single (large:cot) 80.0%") for line in lines)


def test_a_pool_is_a_row_per_candidate():
    lines = printed(pool_table(pool_of(("small:cot", "small:pal"), prices={"small": ("0.1", "0.4")})))
    assert "small:cot small 0.1 0.4 100 temperature 0" in lines
    assert "small:pal small 0.1 0.4 100 temperature 0" in lines


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(screen_module).failed == 0
