"""What is known of a request when it is over: how it ended, its line of the log, its place in the counts."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest

from rtr_ray.gate import Refusal
from rtr_ray.online.engines import Failure
from rtr_ray.online.live import STEP_S, News, Traffic, parse_minutes
from rtr_ray.online.notes import Notes
from rtr_ray.online.problems import RequestError
from rtr_ray.online.request_log import RequestLog
from rtr_ray.online.trail import Trail
from tests.online.bench import Bench, read

PROMPT = "What is the secret of the violet elephant?"
KEY = "rtr-0123456789abcdef"


@dataclass
class Kept(Notes):
    """Keeps what is over."""

    trails: list[Trail] = field(default_factory=list)

    def over(self, trail: Trail) -> None:
        self.trails.append(trail)


def bench(**options: object) -> tuple[Bench, list[Trail]]:
    kept = Kept()
    return Bench.of(notes=kept, **options), kept.trails


async def test_an_answered_request_says_what_was_predicted_and_what_it_came_to():
    one, trails = bench()
    body = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}]}
    reply = await one.endpoint.chat(json.dumps(body).encode(), KEY, "mine")
    (trail,) = trails
    line = trail.line()
    assert line["id"] == reply.body["id"]
    assert line["request_id"] == "mine"
    assert (line["key"], line["end"], line["reason"], line["attempts"]) == ("tester", "answered", None, 1)
    assert (line["model"], line["strategy"], line["samples"]) == ("strong", "cot", 1)
    assert (line["input_tokens"], line["output_tokens"]) == (12, 5)
    assert line["cost_usd"] == reply.body["usage"]["cost_usd"]
    assert line["predicted_accuracy"] == float(reply.headers["x-rtr-predicted-accuracy"])
    assert line["predicted_output_tokens"] > 0
    assert 0 <= line["routing_ms"] <= line["ms"]


async def test_a_stream_is_over_when_it_is_closed_and_its_money_too():
    one, trails = bench()
    reply = await one.ask(stream=True)
    assert trails == []
    await read(reply)
    (trail,) = trails
    assert trail.line()["end"] == "answered"
    assert trail.line()["output_tokens"] == 5


async def test_a_client_that_leaves_a_stream_has_cancelled_and_paid_what_was_generated():
    one, trails = bench()
    one.engines.hold = asyncio.Event()
    reply = await one.ask(stream=True)
    await anext(reply.events)
    await reply.close()
    (trail,) = trails
    line = trail.line()
    assert (line["end"], line["reason"]) == ("cancelled", None)
    assert Decimal(line["cost_usd"]) > 0


async def test_a_request_without_a_stream_whose_client_leaves_is_over_when_its_money_is_closed():
    one, trails = bench()
    one.engines.hold = asyncio.Event()
    asked = asyncio.create_task(one.ask())
    while not one.engines.made:
        await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    while not trails:
        await asyncio.sleep(0)
    assert trails[0].line()["end"] == "cancelled"
    assert trails[0].line()["cost_usd"] is not None


async def test_what_is_refused_says_why_by_a_word_that_nobody_outside_chooses():
    one, trails = bench()
    await one.ask(model="nobody")
    await one.ask(rtr={"max_cost_usd": 1e-12})
    one.gate.refuse = Refusal("budget_exceeded", "Spent.")
    await one.ask()
    one.endpoint.most = 0
    await one.ask()
    assert [trail.line()["end"] for trail in trails] == ["refused"] * 4
    reasons = [trail.line()["reason"] for trail in trails]
    assert reasons == ["model_not_found", "no_candidate", "budget_exceeded", "overloaded"]


async def test_a_model_that_fails_is_an_attempt_and_the_next_one_answers():
    one, trails = bench()
    one.engines.failing = {"strong": Failure("it died", 503)}
    await one.ask()
    one.engines.failing["weak"] = Failure("it died, too", 503)
    one.engines.suspected.clear()
    await one.ask()
    first, second = (trail.line() for trail in trails)
    assert (first["end"], first["attempts"], first["model"]) == ("answered", 2, "weak")
    assert second["end"] == "failed"
    assert second["reason"]


async def test_neither_a_key_nor_a_prompt_gets_into_the_log_unless_prompts_are_wanted(tmp_path: Path):
    one, trails = bench()
    body = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}], "user": KEY}
    for raw in (json.dumps(body), json.dumps(body | {"model": PROMPT}), f'{{"{PROMPT}": 1}}'):
        await one.endpoint.chat(raw.encode(), KEY)
    silent, talking = RequestLog(tmp_path / "silent"), RequestLog(tmp_path / "talking", prompts=True)
    for log in (silent, talking):
        for trail in trails:
            log.add(trail)
        log.write(log.taken())
    (file,) = (tmp_path / "silent").iterdir()
    text = file.read_text()
    assert len([json.loads(line) for line in text.splitlines()]) == 3
    assert "violet" not in text
    assert KEY not in text
    assert "I think it is" not in text
    (file,) = (tmp_path / "talking").iterdir()
    assert json.loads(file.read_text().splitlines()[0])["prompt"] == PROMPT
    assert KEY not in file.read_text()


async def test_a_log_begins_new_files_and_forgets_the_oldest_and_a_full_disk_breaks_nothing(tmp_path: Path):
    log = RequestLog(tmp_path / "log", most_bytes=10, most_files=3)
    for number in range(6):
        log.write([{"number": number}])
    assert len(list((tmp_path / "log").iterdir())) == 3
    (tmp_path / "file").write_text("no folder")
    broken = RequestLog(tmp_path / "file")
    broken.write([{"number": 1}])
    assert broken.lost == 1


async def test_traffic_is_shown_by_candidate_and_of_a_key_its_own_alone():
    one, trails = bench()
    await one.ask()
    await one.ask(model="weak:vanilla")
    await one.ask(model="nobody")
    traffic, news = Traffic(), News()
    assert not news
    for trail in trails:
        news.add(trail)
    traffic.add(1000.0, news)
    traffic.add(1000.0 + STEP_S, news)
    shown = traffic.shown(1000.0 + STEP_S, 15)
    by_name = {row["candidate"]: row for row in shown["candidates"]}
    assert set(by_name) == {"strong:cot", "weak:vanilla"}
    assert by_name["strong:cot"]["requests"][-3:] == [0, 1, 1]
    assert by_name["strong:cot"]["output_tokens"][-3:] == [0, 5, 5]
    assert Decimal(by_name["strong:cot"]["cost_usd"][-1]) == trails[0].attempts[0].generation.spent_usd
    assert len(by_name["strong:cot"]["requests"]) * shown["step_s"] == 15 * 60
    assert shown["refused"] == {"model_not_found": 2}
    assert traffic.shown(1000.0 + STEP_S, 15, "k1")["candidates"] == shown["candidates"]
    assert traffic.shown(1000.0 + STEP_S, 15, "k2")["candidates"] == []
    assert traffic.shown(1000.0 + STEP_S, 15, "k2")["refused"] == {}
    assert traffic.shown(1000.0 + 2 * 3600, 60)["candidates"] == []
    hour = traffic.shown(1000.0 + STEP_S, 60)
    assert sum(hour["candidates"][0]["requests"]) == 2
    assert len(hour["candidates"][0]["requests"]) * hour["step_s"] == 3600


async def test_the_share_of_the_most_chosen_candidate_is_known_after_some_choices():
    one, trails = bench()
    for number in range(20):
        await one.ask(rtr={"lam": 0.0} if number % 4 == 0 else {})
    traffic = Traffic()
    for number, trail in enumerate(trails):
        assert traffic.most_chosen() is None, number
        news = News()
        news.add(trail)
        traffic.add(0.0, news)
    assert traffic.most_chosen() == ("strong:cot", 0.75, 20)
    assert traffic.shown(0.0, 15, "k1")["most_chosen"] is None


@pytest.mark.parametrize("given", ["0", "61", "-1", "1.5", "", "²", "1e9", "9" * 50])
def test_minutes_that_are_no_whole_number_of_the_last_hour_are_refused(given: str):
    with pytest.raises(RequestError, match="minutes"):
        parse_minutes({"minutes": given})
    assert parse_minutes({}) == 15
