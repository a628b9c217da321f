"""Batch input files: what is fine, and the sentence that names the line of what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray.corpus import Columns
from rtr_ray.openai_batch import BatchRequest, Problem, read_batch, write_corpora
from rtr_ray.reading import open_corpus, read_split

USER = {"role": "user", "content": "What is 2 + 2?"}


def line(custom_id: str = "a", **changes: Any) -> bytes:
    body = {"model": "auto", "messages": [USER]} | changes.pop("body", {})
    value = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(value | changes, ensure_ascii=False).encode() + b"\n"


def problem(raw: bytes) -> Problem:
    first, second = read_batch([line("first"), raw])
    assert isinstance(first, BatchRequest)
    assert isinstance(second, Problem)
    return second


def test_requests_are_read_in_order():
    kept = {"temperature": 0.5, "max_tokens": 20, "stop": ["x"]}
    body = {"model": "small:cot", "n": 1, "stream": False, "user": "u", "seed": None} | kept
    found = list(read_batch([b"\xef\xbb\xbf" + line("a"), b"\n", line("b", body=body)]))
    assert found == [
        BatchRequest(1, "a", "auto", (USER,)),
        BatchRequest(3, "b", "small:cot", (USER,), kept),
    ]


@pytest.mark.parametrize(
    ("raw", "code", "message"),
    [
        (b"{", "invalid_json_line", "is not JSON"),
        (b'{"a": NaN}', "invalid_json_line", "is not JSON"),
        (b"[" * 100_000, "invalid_json_line", "is not JSON"),
        (b'{"a": "\xff"}', "invalid_json_line", "is not UTF-8"),
        (b'{"a": "\\ud83d"}', "invalid_json_line", "is not UTF-8"),
        (b"[1]", "invalid_json_line", "is not a JSON object"),
        (line(""), "missing_custom_id", "has no custom_id. Give each request a text of its own"),
        (line(custom_id=7), "missing_custom_id", "has no custom_id. Give each request a text of its own"),
        (line("x" * 600), "invalid_custom_id", "has a custom_id of more than 512 characters"),
        (line("first"), "duplicate_custom_id",
         "has the custom_id of line 1 again. Give each request its own"),
        (line(method="GET"), "invalid_method", "must have the method POST"),
        (line(url="/v1/embeddings"), "mismatched_url",
         "must have the url /v1/chat/completions, as its batch has"),
        (line(body={}).replace(b'"body": {', b'"bodies": {'), "missing_body",
         "has no body that is an object"),
        (line(body={"model": None}), "missing_model", "names no model. Write auto, or a model"),
        (line(body={"messages": []}), "missing_messages", "has no messages"),
        (line(body={"messages": "hi"}), "missing_messages", "has no messages"),
        (line(body={"messages": [{"role": "god"}]}), "invalid_messages",
         "has no known role in body.messages[0]"),
        (line(body={"messages": [USER, {"role": "user", "content": 1}]}), "invalid_messages",
         "has neither text nor parts in body.messages[1].content"),
        (line(body={"messages": [{"role": "system", "content": "x"}]}), "invalid_messages",
         "has no user message with text"),
        (line(body={"stream": True}), "unsupported_field",
         "asks for stream, which a batch cannot do. Leave it out"),
        (line(body={"n": 2}), "unsupported_field", "asks for n, which a batch cannot do. Leave it out"),
        (line(body={"tools": []}), "unsupported_field",
         "asks for tools, which a batch cannot do. Leave it out"),
        (line(body={"sk secret": 1}), "unsupported_field",
         "asks for a field, which a batch cannot do. Leave it out"),
        (line(body={"temperature": 3}), "invalid_value", "has a temperature that cannot be"),
        (line(body={"max_tokens": True}), "invalid_value", "has a max_tokens that cannot be"),
        (line(body={"stop": [1]}), "invalid_value", "has a stop that cannot be"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(raw, code, message):
    found = problem(raw)
    assert (found.line, found.code, found.message) == (2, code, f"Line 2 {message}.")
    assert found.to_json() == {"code": code, "line": 2, "message": found.message, "param": found.param}


def test_an_empty_file_and_one_with_too_many_requests_are_told():
    assert [one.code for one in read_batch([b"\n", b"  "]) if isinstance(one, Problem)] == ["empty_file"]
    found = list(read_batch([line(str(n)) for n in range(5)], most_requests=3))
    assert [type(one) for one in found] == [BatchRequest] * 3 + [Problem]
    assert found[-1].line == 4


NAMES = st.sampled_from(["custom_id", "method", "url", "body", "messages", "role", "content", "model"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)


@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_no_line_is_too_strange(raw):
    for one in read_batch([raw]):
        assert isinstance(one, BatchRequest | Problem)


def test_each_model_gets_a_corpus_that_can_be_read(tmp_path: Path):
    requests = [
        one
        for one in read_batch(
            [
                line("a"),
                line("b", body={"model": "small:cot", "temperature": 0}),
                line("ç", body={"messages": [{"role": "system", "content": "Be brief."}, USER]}),
            ]
        )
        if isinstance(one, BatchRequest)
    ]
    counts = write_corpora(requests, lambda model: (tmp_path / f"{model.replace(':', '-')}.jsonl").open("wb"))
    assert counts == {"auto": 2, "small:cot": 1}
    corpus, splits = open_corpus(str(tmp_path / "auto.jsonl"), Columns())
    assert corpus.format == "openai_batch"
    rows = [row for split in splits for block in read_split(corpus, split, 10) for row in block.to_pylist()]
    assert [row["query_id"] for row in rows] == ["a", "ç"]
    assert [row["_text"] for row in rows] == ["What is 2 + 2?"] * 2
    assert [row["_row_error"] for row in rows] == [None, None]
    assert json.loads(rows[1]["_messages"])[0] == {"role": "system", "content": "Be brief."}
    (other,) = (tmp_path / "small-cot.jsonl").read_text().splitlines()
    assert json.loads(json.loads(other)["settings"]) == {"temperature": 0}
