"""Strategies: how a query becomes messages."""

from __future__ import annotations

from typing import Any

import pytest

from rtr_ray.errors import ConfigError
from rtr_ray.strategies import BUILTIN, Strategy
from rtr_ray.types import Query

PLAIN = Query("q", "What is {x} + 2?")


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def messages(strategy: Strategy, query: Query) -> list[dict[str, Any]]:
    return [dict(message) for message in strategy.messages(query)]


def conversation(*turns: dict[str, Any]) -> Query:
    return Query("q", "unused", turns)


def strategy(**fields: Any) -> Strategy:
    return Strategy("mine", "a profile", 10, **fields)


def test_a_plain_strategy_asks_the_query_as_it_is():
    assert messages(strategy(), PLAIN) == [user("What is {x} + 2?")]


def test_a_system_text_comes_first():
    assert messages(strategy(system="Be brief."), PLAIN) == [system("Be brief."), user("What is {x} + 2?")]


def test_a_template_is_filled_once_whatever_braces_the_query_holds():
    query = Query("q", "{query} {} %s")
    assert messages(strategy(template="Q: {query}\nA:"), query) == [user("Q: {query} {} %s\nA:")]


def test_a_conversation_keeps_its_messages():
    turns = [user("Hi"), {"role": "assistant", "content": "Hello"}, user("2+2?")]
    assert messages(strategy(), conversation(*turns)) == turns


def test_the_system_text_goes_behind_that_of_the_conversation():
    query = conversation(system("You are a pirate."), user("2+2?"))
    assert messages(strategy(system="Be brief."), query) == [
        system("You are a pirate.\n\nBe brief."),
        user("2+2?"),
    ]


def test_the_system_text_comes_first_where_the_conversation_has_none():
    assert messages(strategy(system="Be brief."), conversation(user("2+2?"))) == [
        system("Be brief."),
        user("2+2?"),
    ]


def test_the_template_is_put_around_the_last_user_message():
    query = conversation(user("2+2?"), {"role": "assistant", "content": "4"}, user("3+3?"))
    assert messages(strategy(template="[{query}]"), query) == [
        user("2+2?"),
        {"role": "assistant", "content": "4"},
        user("[3+3?]"),
    ]


def test_a_message_of_parts_is_left_as_it_is():
    parts = [{"type": "text", "text": "2+2?"}, {"type": "image_url", "image_url": {"url": "data:..."}}]
    assert messages(strategy(template="[{query}]"), conversation(user(parts))) == [user(parts)]


def test_the_conversation_of_the_query_is_not_changed():
    query = conversation(system("You are a pirate."), user("2+2?"))
    before = [dict(message) for message in query.messages or ()]
    strategy(system="Be brief.", template="[{query}]").messages(query)
    assert [dict(message) for message in query.messages or ()] == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"template": "none"}, r"holds \{query\} 0 times; exactly once is needed"),
        ({"template": "{query} {query}"}, r"holds \{query\} 2 times; exactly once is needed"),
        ({"samples": ()}, "different numbers from 1 on are needed"),
        ({"samples": (0,)}, "different numbers from 1 on are needed"),
        ({"samples": (2, 2), "select": "majority"}, "different numbers from 1 on are needed"),
        ({"samples": (1, 3)}, "draws 3 samples but keeps the first. Set select: majority"),
    ],
)
def test_a_strategy_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        strategy(**fields)


def test_a_strategy_without_a_profile_or_without_room_is_refused():
    with pytest.raises(ConfigError, match="has no profile"):
        Strategy("mine", " ", 10)
    with pytest.raises(ConfigError, match="max_tokens=0; 1 is the least"):
        Strategy("mine", "a profile", 0)
    with pytest.raises(ConfigError, match="is not a usable name"):
        Strategy("my own", "a profile", 10)


def test_the_four_strategies_of_the_paper_are_there_with_profiles_of_their_own():
    assert list(BUILTIN) == ["vanilla", "cot", "cod", "pal"]
    profiles = {Strategy(name, **keys).profile for name, keys in BUILTIN.items()}
    assert len(profiles) == 4


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("vanilla", "auto", None),
        ("cot", "boxed", "step by step"),
        ("cod", "boxed", "five words"),
        ("pal", "program", "Python"),
    ],
)
def test_a_builtin_strategy_says_what_it_wants_and_how_its_answer_is_read(name, answer, said):
    made = Strategy(name, **BUILTIN[name])
    assert made.answer == answer
    assert (made.system is None) if said is None else (said in (made.system or ""))
