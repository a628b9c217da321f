"""Reading YAML: what is wrong with a file is said in one sentence, with the file, the key and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from rtr_ray.errors import ConfigError
from rtr_ray.yaml_door import Door, converted, read_yaml, validated


class Engine(Door):
    dtype: str = Field("auto", description="a type of number")
    tokens: int = Field(1, ge=1, le=100, description="a count")


class Place(Door):
    engine: Engine = Engine()
    env: dict[str, str] = Field(default_factory=dict, description="variables by name")
    key: str | None = Field(None, description="the name of a variable")


class Sheet(Door):
    places: dict[str, Place] = Field(description="name -> place")
    either: int | list[int] = Field(1, description="a number, or several")
    names: list[str] = Field(default_factory=list, description="a list of names")
    share: float = Field(0.5, gt=0, lt=1, description="a share")


def refused(content: object) -> str:
    with pytest.raises(ConfigError) as caught:
        validated(Sheet, content, "sheet.yaml")
    message = str(caught.value)
    assert message.startswith("sheet.yaml: ")
    assert "\n" not in message
    return message.removeprefix("sheet.yaml: ")


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "sheet.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def unreadable(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert "Errno" not in message
    return message


def test_a_file_that_is_fine_is_read_as_it_is(tmp_path):
    path = written(tmp_path, "a: 1\nb: [x, 2.5, null, true]\nc: {d: ''}\n")
    assert read_yaml(path) == {"a": 1, "b": ["x", 2.5, None, True], "c": {"d": ""}}


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert unreadable(tmp_path / "nope.yaml") == f"There is no file {tmp_path / 'nope.yaml'}."


def test_a_folder_is_no_file(tmp_path):
    assert unreadable(tmp_path) == f"Cannot read {tmp_path}: Is a directory."


def test_a_file_that_is_not_utf8_is_told_with_the_line(tmp_path):
    path = written(tmp_path, b"a: 1\nb: caf\xe9\n")
    assert unreadable(path) == f"{path}, line 2: not UTF-8. Save the file as UTF-8 text."


def test_a_file_that_is_not_yaml_is_told_with_the_line(tmp_path):
    path = written(tmp_path, "a: 1\nb: [1, 2\nc: 3\n")
    assert unreadable(path).startswith(f"{path}, line 3: not YAML: ")


def test_a_tab_is_told_with_the_line(tmp_path):
    path = written(tmp_path, "a:\n\tb: 1\n")
    assert unreadable(path).startswith(f"{path}, line 2: not YAML: ")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a"),
        ("a: {b: 1, c: 2, b: 3}\n", 1, "b"),
        ("x:\n  - y: 1\n    z: 2\n    y: 3\n", 4, "y"),
    ],
)
def test_a_key_given_twice_is_told_with_its_line(tmp_path, text, line, key):
    path = written(tmp_path, text)
    assert unreadable(path) == f"{path}, line {line}: the key '{key}' is given twice."


@pytest.mark.parametrize("text", ["template: {{query}}\n", "{[1, 2]: 3}\n"])
def test_braces_without_quotes_are_told_with_their_line(tmp_path, text):
    path = written(tmp_path, text)
    assert unreadable(path) == (
        f"{path}, line 1: not YAML: a key is a plain word; put a text that begins with a brace or bracket "
        "in quotes."
    )


def test_merge_keys_and_anchors_are_read(tmp_path):
    path = written(tmp_path, "base: &base {x: 1, y: 2}\nmine: {<<: *base, y: 3}\n")
    assert read_yaml(path)["mine"] == {"x": 1, "y": 3}


def test_yaml_cannot_run_code(tmp_path):
    path = written(tmp_path, "a: !!python/object/apply:os.system ['true']\n")
    assert "not YAML" in unreadable(path)


def test_content_that_fits_becomes_the_model():
    sheet = validated(Sheet, {"places": {"here": {"engine": {"tokens": 7}}}, "either": [1, 2]}, "sheet.yaml")
    assert sheet.places["here"].engine.tokens == 7
    assert sheet.either == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "keys with values are expected, found [1, 2]."),
        ("text", "keys with values are expected, found 'text'."),
        (None, "places is missing. Expected: name -> place."),
        ({}, "places is missing. Expected: name -> place."),
        ({"places": 5}, "places is 5: keys with values are needed. Expected: name -> place."),
        ({"places": None}, "places is empty: a value is needed. Expected: name -> place."),
        (
            {"places": {"Paris": 5}},
            "places.Paris is 5: keys with values are needed. Expected: name -> place.",
        ),
        (
            {"places": {"Paris": {"engin": {}}}},
            "places.Paris.engin: unknown key. Known keys here: engine, env, key. Did you mean 'engine'?",
        ),
        (
            {"places": {"Paris": {"zzz": 1}}},
            "places.Paris.zzz: unknown key. Known keys here: engine, env, key.",
        ),
        (
            {"places": {"str": {"engine": {"tokens": 0}}}},
            "places.str.engine.tokens is 0: 1 is the least. Expected: a count.",
        ),
        (
            {"places": {"engine": {"engine": {"tokens": 101}}}},
            "places.engine.engine.tokens is 101: 100 is the most. Expected: a count.",
        ),
        (
            {"places": {"Paris": {"engine": {"tokens": 1.5}}}},
            "places.Paris.engine.tokens is 1.5: a whole number is needed. Expected: a count.",
        ),
        (
            {"places": {"Paris": {"env": {"A": 1}}}},
            "places.Paris.env.A is 1: text is needed; put it in quotes. Expected: variables by name.",
        ),
        ({"places": {1: {}}}, "places has the key 1: put it in quotes."),
        (
            {"places": {}, "either": "many"},
            "either is 'many': a whole number is needed. Expected: a number, or several.",
        ),
        (
            {"places": {}, "either": [1, "many"]},
            "either[1] is 'many': a whole number is needed. Expected: a number, or several.",
        ),
        ({"places": {}, "names": "x"}, "names is 'x': a list is needed. Expected: a list of names."),
        ({"places": {}, "share": 1}, "share is 1: it must be below 1. Expected: a share."),
    ],
)
def test_what_does_not_fit_is_told_with_its_key_and_what_was_expected(content, message):
    assert refused(content) == message


def test_an_unknown_key_comes_first_and_the_others_are_counted():
    message = refused({"places": {}, "share": 7, "shares": 1, "either": "x"})
    assert message.startswith("shares: unknown key. Known keys here: either, names, places, share. ")
    assert message.endswith("Did you mean 'share'? (2 more problems behind it.)")


def test_a_value_that_fits_none_of_two_types_is_one_problem():
    assert "more problem" not in refused({"places": {}, "either": {"a": 1}})


def test_messages_speak_no_python():
    for content in (
        {"places": 5},
        {"places": {"a": 5}},
        {"places": {}, "names": 3},
        {"places": {}, "either": {}},
    ):
        message = refused(content).lower()
        for word in ("pydantic", "validation", "dict", "instance", "nonetype", "input should", "class"):
            assert word not in message


def test_a_long_value_is_cut():
    assert len(refused({"places": {}, "share": "x" * 1000})) < 200


def test_variables_are_filled_from_the_environment(monkeypatch):
    monkeypatch.setenv("PLACE_TOKENS", "12")
    monkeypatch.delenv("PLACE_TYPE", raising=False)
    place = {"engine": {"tokens": "${PLACE_TOKENS}", "dtype": "b${PLACE_TYPE:-float16}"}}
    sheet = validated(Sheet, {"places": {"here": place}}, "sheet.yaml")
    assert sheet.places["here"].engine == Engine(tokens=12, dtype="bfloat16")


def test_a_variable_that_is_not_set_is_told_with_its_key(monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    assert refused({"places": {}, "names": ["a", "${NOT_SET}"]}) == (
        "names[1] needs the environment variable NOT_SET, which is not set."
    )


def test_a_message_shows_a_variable_as_it_is_written_and_not_the_secret_in_it(monkeypatch):
    monkeypatch.setenv("THE_SECRET", "sk-123456")
    message = refused({"places": {"here": {"engine": {"tokens": "${THE_SECRET}"}}}})
    assert message.startswith("places.here.engine.tokens is '${THE_SECRET}': a whole number is needed.")
    assert "sk-123456" not in message


def test_an_empty_variable_is_set(monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    assert validated(Sheet, {"places": {}, "names": ["${EMPTY}"]}, "sheet.yaml").names == [""]


@pytest.mark.parametrize(
    ("value", "kind", "found"), [("0.5", float, 0.5), (1, float, 1.0), ([1, 2], tuple[int, ...], (1, 2))]
)
def test_a_value_becomes_the_type_that_a_field_has(value, kind, found):
    assert converted(value, kind, "policy.lam") == found


def test_a_value_of_another_type_is_refused_with_its_key():
    with pytest.raises(ConfigError, match=r"^policy.lam is 'high': a number is needed\.$"):
        converted("high", float, "policy.lam")


def test_a_value_of_a_type_that_no_file_holds_stays_as_it_is():
    class Theirs:
        pass

    value = Theirs()
    assert converted(value, Theirs, "policy.theirs") is value
