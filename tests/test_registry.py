"""Plugins by name, or by the path of a class of one's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import pytest

from rtr_ray import registry
from rtr_ray.errors import ConfigError

if TYPE_CHECKING:
    from fractions import Fraction


@dataclass(frozen=True)
class Rule:
    share: float
    names: tuple[str, ...] = ()
    steps: int | None = None
    seen: list[int] = field(default_factory=list, init=False, compare=False)
    kind: ClassVar[str] = "rule"

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ConfigError(f"rule.share is {self.share}; 1 is the most.")


@dataclass(frozen=True)
class Foreign:
    part: Fraction | None = None


WAYS = "Known kinds: gone, rule. For your own class write 'package.module:Class'."
KNOWN = {"rule": f"{__name__}:Rule", "gone": "no_such_package.at_all:Rule"}


def build(spec: object) -> object:
    return registry.build(spec, KNOWN, "rule")  # type: ignore[arg-type]


def test_a_plugin_is_built_from_its_kind_and_fields():
    assert build({"kind": "rule", "share": 0.5, "names": ["a", "b"]}) == Rule(0.5, ("a", "b"))


def test_values_become_the_types_of_the_fields_as_from_an_environment_variable():
    made = build({"kind": "rule", "share": "0.5", "steps": "3"})
    assert made == Rule(0.5, (), 3)


def test_a_plugin_of_ones_own_is_named_by_its_path():
    assert build({"kind": f"{__name__}:Rule", "share": 1}) == Rule(1.0)


def test_a_plugin_whose_types_are_for_a_checker_only_is_built_as_it_is_given():
    assert build({"kind": f"{__name__}:Foreign", "part": 3}) == Foreign(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "rulle",
            f"Unknown rule kind 'rulle'. {WAYS}",
        ),
        (
            {"kind": 5},
            f"Unknown rule kind '5'. {WAYS}",
        ),
        (
            {"kind": ":Rule"},
            f"Unknown rule kind ':Rule'. {WAYS}",
        ),
        ({"share": 1}, "The rule has no kind. Known kinds: gone, rule."),
        ("rule", "rule 'rule' lacks the field 'share'. Its fields: share, names, steps."),
        ({"kind": "rule", "shar": 1}, "rule 'rule' has no field 'shar'. Its fields: share, names, steps."),
        (
            {"kind": "rule", "share": 1, "seen": []},
            "rule 'rule' has no field 'seen'. Its fields: share, names, steps.",
        ),
        ({"kind": "rule", "share": "much"}, "rule.share is 'much': a number is needed."),
        ({"kind": "rule", "share": 1, "steps": 1.5}, "rule.steps is 1.5: a whole number is needed."),
        ({"kind": "rule", "share": 2}, "rule.share is 2.0; 1 is the most."),
        (
            "gone",
            "The rule 'gone' needs a package that cannot be imported: No module named 'no_such_package'.",
        ),
        ("json:Rule", "The module json has no class Rule (asked for by rule 'json:Rule')."),
        ("os:path", "The module os has no class path (asked for by rule 'os:path')."),
    ],
)
def test_a_plugin_that_cannot_be_is_told_in_one_sentence(spec, message):
    with pytest.raises(ConfigError) as caught:
        build(spec)
    assert str(caught.value) == message


def test_the_configuration_of_a_plugin_builds_it_again():
    for rule in (Rule(0.25), Rule(1.0, ("a",), 7)):
        assert build(registry.spec_of(rule, KNOWN)) == rule


def test_a_plugin_is_known_by_its_short_name_where_it_has_one():
    assert registry.spec_of(Rule(1.0), KNOWN)["kind"] == "rule"
    assert registry.spec_of(Foreign(), KNOWN)["kind"] == f"{__name__}:Foreign"
