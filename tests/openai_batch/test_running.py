"""A batch from its upload to its output files, with a runner that answers from a list."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rtr_ray.errors import BudgetError, ExecutionError, StorageError
from rtr_ray.keys import GLOBAL, Close, KeyStore, Limits
from rtr_ray.openai_batch import BatchStore
from rtr_ray.openai_batch.running import BatchRun

USER = {"role": "user", "content": "2 + 2?"}


class KilledError(BaseException):
    """The process dies."""


@dataclass
class Answering:
    """Answers every row for a cent while there is money; remembers what it was asked."""

    asked: list[tuple[str, list[str], Decimal | None]] = field(default_factory=list)
    fails: BaseException | None = None
    cancels: Any = None
    forgets: str = ""
    committed: Decimal = Decimal(0)

    def committed_usd(self, output: Path) -> Decimal:
        return self.committed

    def run(
        self, model: str, corpus: Path, output: Path, budget_usd: Decimal | None
    ) -> Iterator[Mapping[str, Any]]:
        ids = [json.loads(line)["custom_id"] for line in corpus.read_text().splitlines()]
        self.asked.append((model, ids, budget_usd))
        for place, id in enumerate(reversed(ids)):
            if self.fails and place == 1:
                raise self.fails
            if self.cancels:
                self.cancels()
            if id == self.forgets:
                continue
            paid = budget_usd is None or Decimal("0.01") * (place + 1) <= budget_usd
            yield {
                "query_id": id, "status": "answered" if paid else "skipped_budget", "model": "small",
                "strategy": "cot", "response": "4", "input_tokens": 5, "output_tokens": 1,
                "cost_usd": Decimal("0.01") if paid else None, "error": None if paid else "No money is left.",
            }  # fmt: skip


def line(id: str, model: str = "auto") -> bytes:
    body = {"model": model, "messages": [USER]}
    value = {"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(value).encode() + b"\n"


LINES = [line("a"), line("b", "small:cot"), line("c"), line("d")]


def uploaded(
    folder: Path, lines: list[bytes] = LINES, key: str = "ann", **metadata: str
) -> tuple[BatchStore, str]:
    store = BatchStore(folder / "keys.sqlite", folder / "files")
    file = store.add_file(key, "in.jsonl", lines)
    return store, str(store.create(key, file["id"], metadata=metadata)["id"])


def written(store: BatchStore, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    lines = map(json.loads, store.content("ann", file_id).read_text().splitlines())
    return {one["custom_id"]: one["error"] or one["response"]["body"]["model"] for one in lines}


def test_a_mixed_file_is_one_batch(tmp_path):
    store, batch = uploaded(tmp_path)
    runner = Answering()
    done = BatchRun(store, runner, tmp_path / "work", keyed=False).carry_out("ann", batch)
    assert done["status"] == "completed"
    assert done["request_counts"] == {"total": 4, "completed": 4, "failed": 0}
    assert runner.asked == [("auto", ["a", "c", "d"], None), ("small:cot", ["b"], None)]
    assert written(store, done["output_file_id"]) == dict.fromkeys("abcd", "small:cot")
    assert done["error_file_id"] is None


def test_all_models_of_a_file_share_its_budget(tmp_path):
    store, batch = uploaded(tmp_path, budget_usd="0.02")
    runner = Answering(committed=Decimal("0.02"))
    done = BatchRun(store, runner, tmp_path / "work", keyed=False).carry_out("ann", batch)
    assert [budget for _, _, budget in runner.asked] == [Decimal("0.02"), Decimal(0)]
    assert done["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    errors = written(store, done["error_file_id"])
    assert {id: one["code"] for id, one in errors.items()} == {"a": "budget_exceeded", "b": "budget_exceeded"}


def test_nothing_is_asked_of_a_file_with_one_bad_line(tmp_path):
    store, batch = uploaded(tmp_path, [*LINES, b"{"])
    runner = Answering()
    done = BatchRun(store, runner, tmp_path / "work", keyed=False).carry_out("ann", batch)
    assert (done["status"], runner.asked) == ("failed", [])
    assert done["errors"]["data"][0]["message"] == "Line 5 is not JSON."


def test_a_batch_goes_on_after_its_process_was_killed(tmp_path):
    store, batch = uploaded(tmp_path)
    with pytest.raises(KilledError):
        BatchRun(store, Answering(fails=KilledError()), tmp_path / "work", keyed=False).carry_out(
            "ann", batch
        )
    again = BatchStore(tmp_path / "keys.sqlite", tmp_path / "files")
    ((key, unfinished),) = again.unfinished()
    done = BatchRun(again, Answering(), tmp_path / "work", keyed=False).carry_out(key, unfinished["id"])
    assert done["status"] == "completed"
    assert sorted(written(again, done["output_file_id"])) == list("abcd")
    assert done["request_counts"] == {"total": 4, "completed": 4, "failed": 0}


def test_a_job_that_fails_fails_its_batch_and_says_why(tmp_path):
    store, batch = uploaded(tmp_path)
    runner = Answering(fails=ExecutionError("The cluster has no room."))
    done = BatchRun(store, runner, tmp_path / "work", keyed=False).carry_out("ann", batch)
    assert (done["status"], done["errors"]["data"][0]["message"]) == ("failed", "The cluster has no room.")


def test_a_batch_that_is_cancelled_keeps_what_was_answered(tmp_path):
    store, batch = uploaded(tmp_path)
    runner = Answering(cancels=lambda: store.cancel("ann", batch))
    done = BatchRun(store, runner, tmp_path / "work", keyed=False).carry_out("ann", batch)
    assert done["status"] == "cancelled"
    assert sorted(written(store, done["output_file_id"])) == ["a", "c", "d"]
    assert len(runner.asked) == 1
    assert BatchRun(store, runner, tmp_path / "work", keyed=False).carry_out("ann", batch) == done


def test_what_may_have_been_spent_is_not_given_to_the_next_model(tmp_path):
    store, batch = uploaded(tmp_path, budget_usd="1")
    runner = Answering(committed=Decimal("0.95"))  # three cents for answers, the rest of it lost
    BatchRun(store, runner, tmp_path / "work", keyed=False).carry_out("ann", batch)
    assert [budget for _, _, budget in runner.asked] == [Decimal(1), Decimal("0.05")]


def test_a_request_that_the_job_gave_no_row_for_is_in_the_error_file(tmp_path):
    store, batch = uploaded(tmp_path)
    done = BatchRun(store, Answering(forgets="c"), tmp_path / "work", keyed=False).carry_out("ann", batch)
    assert done["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    assert list(written(store, done["error_file_id"])) == ["c"]


# --- its key pays -----------------------------------------------------------------------------------------


def keyed(folder: Path, limits: Limits) -> tuple[KeyStore, str]:
    keys = KeyStore(folder / "keys.sqlite")
    return keys, keys.create("ann", limits)[1].id


def test_a_batch_spends_from_the_budget_of_its_key(tmp_path):
    """Elsewhere batches looked at no budget."""
    keys, key = keyed(tmp_path, Limits(day_usd=Decimal(1), max_request_usd=Decimal("0.01")))
    store, batch = uploaded(tmp_path, key=key, budget_usd="0.90")
    seen = []

    class Looking(Answering):
        def committed_usd(self, output: Path) -> Decimal:
            seen.append(keys.usage(key)[0].reserved_usd)
            return Decimal("0.03") if output.stem == "0000" else Decimal("0.01")

    done = BatchRun(store, Looking(), tmp_path / "work").carry_out(key, batch)
    assert (done["status"], done["rtr"]) == ("completed", {"budget_usd": "0.90"})
    assert set(seen) == {Decimal("0.9")}
    for account in (key, GLOBAL):
        today = keys.usage(account)[0]
        assert (today.spent_usd, today.reserved_usd, today.calls) == (Decimal("0.04"), 0, 1)


def test_a_batch_that_its_key_cannot_pay_fails_before_anything_is_asked(tmp_path):
    keys, key = keyed(tmp_path, Limits(day_usd=Decimal(1)))
    store, batch = uploaded(tmp_path, key=key, budget_usd="1.01")
    runner = Answering()
    done = BatchRun(store, runner, tmp_path / "work").carry_out(key, batch)
    assert (done["status"], runner.asked) == ("failed", [])
    assert "The API key 'ann' has $1.00 left of $1.00 a day" in done["errors"]["data"][0]["message"]
    assert keys.usage(key)[0].reserved_usd == 0


def test_a_batch_without_a_budget_has_what_its_key_has_left(tmp_path):
    _, key = keyed(tmp_path, Limits(day_usd=Decimal(1), total_usd=Decimal("0.5")))
    store, batch = uploaded(tmp_path, key=key)
    runner = Answering()
    BatchRun(store, runner, tmp_path / "work").carry_out(key, batch)
    assert runner.asked[0][2] == Decimal("0.5")
    store, batch = uploaded(tmp_path, key=KeyStore(tmp_path / "keys.sqlite").create("bob")[1].id)
    (other,) = [k.id for k in KeyStore(tmp_path / "keys.sqlite").all_keys() if k.name == "bob"]
    unbounded = Answering()
    done = BatchRun(store, unbounded, tmp_path / "work").carry_out(other, batch)
    assert unbounded.asked[0][2] is None
    assert done["rtr"] == {"budget_usd": None}


def test_what_a_batch_holds_outlives_its_process_and_is_taken_once(tmp_path):
    keys, key = keyed(tmp_path, Limits(day_usd=Decimal(1)))
    store, batch = uploaded(tmp_path, key=key, budget_usd="0.60")
    with pytest.raises(KilledError):
        BatchRun(store, Answering(fails=KilledError()), tmp_path / "work").carry_out(key, batch)
    later = KeyStore(keys.path, monotonic=lambda: 1e12)
    later.apply("another", [])
    assert keys.usage(key)[0].reserved_usd == Decimal("0.6")
    runner = Answering(committed=Decimal("0.1"))
    BatchRun(store, runner, tmp_path / "work").carry_out(key, batch)
    assert runner.asked[0][2] == Decimal("0.6")
    today = keys.usage(key)[0]
    assert (today.spent_usd, today.reserved_usd) == (Decimal("0.2"), 0)
    keys.apply("r", [Close(batch, Decimal(1))])
    assert keys.usage(key)[0].spent_usd == Decimal("0.2")


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
def test_a_batch_that_does_not_complete_pays_for_what_it_has_spent(tmp_path, how):
    keys, key = keyed(tmp_path, Limits(day_usd=Decimal(1)))
    store, batch = uploaded(tmp_path, key=key, budget_usd="0.60")
    runner = Answering(committed=Decimal("0.02"))
    if how == "fails":
        runner.fails = ExecutionError("The cluster has no room.")
    else:
        runner.cancels = lambda: store.cancel(key, batch)
    BatchRun(store, runner, tmp_path / "work").carry_out(key, batch)
    today = keys.usage(key)[0]
    assert (today.spent_usd, today.reserved_usd) == (Decimal("0.04"), 0)  # two cents for each of two models


def test_without_a_budget_a_batch_takes_no_more_of_its_key_than_it_can_come_to(tmp_path):
    keys = KeyStore(tmp_path / "keys.sqlite")
    _, key = keys.create("ann", Limits(total_usd=Decimal(10)))
    store, batch = uploaded(tmp_path, key=key.id)
    held = []
    runner = Answering(cancels=lambda: held.append(keys.usage(key.id)[-1].reserved_usd))
    run = BatchRun(store, runner, tmp_path / "work", most_usd=lambda request: Decimal("0.5"))
    assert run.carry_out(key.id, batch)["rtr"] == {"budget_usd": "2.0"}
    assert set(held) == {Decimal(2)}


def test_where_the_money_ends_between_two_models_the_rest_fails_and_what_was_answered_is_kept(tmp_path):
    store, batch = uploaded(tmp_path)

    class Short(Answering):
        def run(self, model, corpus, output, budget_usd):
            if model != "auto":
                raise BudgetError("The plan is too dear.")
            yield from super().run(model, corpus, output, budget_usd)

    done = BatchRun(store, Short(), tmp_path / "work", keyed=False).carry_out("ann", batch)
    assert done["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    error = {"code": "budget_exceeded", "message": "The plan is too dear."}
    assert written(store, done["error_file_id"]) == {"b": error}


def test_what_a_job_had_answered_before_it_failed_is_in_the_output(tmp_path):
    store, batch = uploaded(tmp_path)
    runner = Answering(fails=ExecutionError("The engine is gone."))
    done = BatchRun(store, runner, tmp_path / "work", keyed=False).carry_out("ann", batch)
    assert (done["status"], done["request_counts"]["completed"]) == ("failed", 1)
    assert list(written(store, done["output_file_id"])) == ["d"]


def test_a_batch_that_has_begun_does_not_need_its_input_file(tmp_path):
    store, batch = uploaded(tmp_path)
    file = store.retrieve("ann", batch)["input_file_id"]
    runner = Answering(cancels=lambda: store.delete_file("ann", file) if store.files("ann")["data"] else None)
    done = BatchRun(store, runner, tmp_path / "work", keyed=False).carry_out("ann", batch)
    assert done["request_counts"]["completed"] == 4
    other = store.create("ann", store.add_file("ann", "b.jsonl", LINES)["id"])
    store.delete_file("ann", other["input_file_id"])
    gone = BatchRun(store, Answering(), tmp_path / "work", keyed=False).carry_out("ann", other["id"])
    assert gone["errors"]["data"][0]["message"] == "There is no such file of this API key."


def test_a_database_that_is_gone_for_a_while_fails_no_batch(tmp_path):
    store, batch = uploaded(tmp_path)
    runner = Answering(fails=StorageError("The disk is full."))
    with pytest.raises(StorageError):
        BatchRun(store, runner, tmp_path / "work", keyed=False).carry_out("ann", batch)
    done = BatchRun(store, Answering(), tmp_path / "work", keyed=False).carry_out("ann", batch)
    assert done["status"] == "completed"


def test_files_are_listed_in_pages_and_an_order_is_kept_beside_a_batch(tmp_path):
    store = BatchStore(tmp_path / "keys.sqlite", tmp_path / "files")
    ids = [store.add_file("ann", f"{i}.jsonl", LINES)["id"] for i in range(3)]
    store.add_file("bob", "b.jsonl", LINES)
    first = store.files("ann", limit=2)
    assert ([one["id"] for one in first["data"]], first["has_more"]) == ([ids[2], ids[1]], True)
    assert [one["id"] for one in store.files("ann", after=ids[1])["data"]] == [ids[0]]
    assert [one["id"] for one in store.files("ann", order="asc")["data"]] == ids
    assert store.files("ann", purpose="batch_output")["data"] == []
    batch = store.create("ann", ids[0], order={"router": "here"})
    assert store.order(batch["id"]) == {"router": "here"}
    assert "here" not in json.dumps(store.retrieve("ann", batch["id"]))
    assert store.order("another") == {}
