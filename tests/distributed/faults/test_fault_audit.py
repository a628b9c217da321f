"""The audit of a fault campaign notices each kind of loss; the proxy before S3 does what it says."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.fault_tools import victims
from benchmarks.fault_tools.audit import Findings, audit, in_flight
from benchmarks.fault_tools.case import Bench, Case
from benchmarks.fault_tools.meter import Meter, Reading, lines, query_id, tag
from benchmarks.fault_tools.planning import ORDER, plan
from benchmarks.fault_tools.s3 import BUCKET, FAULTS, S3
from rtr_ray.schemas import RESULTS

ROWS = 6
USAGE = {"input_tokens": 10, "cached_input_tokens": 1, "output_tokens": 20}
COST = Decimal("0.00000828")  # (9 x 0.03 + 1 x 0.01 + 20 x 0.4) / 1,000,000


class Scene:
    """A finished run of six rows, in whose files a test may change something."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(
            Case("scene", "none", 1, (), rows=ROWS),
            folder,
            "fake",
            "nowhere",
            str(folder / "run"),
            str(folder / "corpus.parquet"),
        )
        self.bench.write()
        self.meter = Meter(folder / "meters", "weak")
        self.reading = Reading(folder / "meters" / "scene")
        self.rows = [self.row(number) for number in range(ROWS)]
        self.unknown_usd = Decimal(0)
        self.spent_usd: Decimal | None = None
        for number in range(ROWS):
            self.answer(number)

    def row(self, number: int, **changes: Any) -> dict[str, Any]:
        given = {
            "query_id": query_id("scene", number),
            "status": "answered",
            "model": "weak",
            "strategy": "vanilla",
            "samples": 1,
            **USAGE,
            "cost_usd": COST,
        }
        return {name: None for name in RESULTS.names} | given | changes

    def answer(self, number: int, **usage: int) -> None:
        asked = self.meter.begin({"messages": [{"role": "user", "content": f"{tag('scene', number)} ?"}]})
        assert asked is not None
        self.meter.pay(asked, USAGE | usage)

    def audited(self, exposed: list[set[str]] | None = None) -> Findings:
        results = Path(self.bench.output) / "results"
        results.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(self.rows, schema=RESULTS), results / "part-0.parquet")
        spent = sum((row["cost_usd"] for row in self.rows if row["cost_usd"] is not None), Decimal(0))
        summary = {
            "cost_usd": {"spent": str(spent if self.spent_usd is None else self.spent_usd)},
            "calls": {"lost_worst_case_usd": str(self.unknown_usd)},
        }
        (results.parent / "summary.json").write_text(json.dumps(summary))
        found = Findings("scene", "none", "fake", completed=True)
        return audit(found, self.bench, self.reading, exposed or [])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_run_whose_results_summary_and_meter_agree_has_no_loss(scene: Scene) -> None:
    found = scene.audited()
    assert found.losses == {}
    assert found.usd_metered == found.usd_spent == 6 * COST
    assert (found.rows, found.calls_paid_twice, found.usd_wasted) == (6, 0, Decimal(0))


def test_a_row_that_is_not_there_is_lost_and_what_it_cost_is_unaccounted(scene: Scene) -> None:
    del scene.rows[2]
    assert scene.audited().losses == {"rows_lost": 1, "usd_unaccounted": COST}


def test_what_the_ledger_says_it_may_have_lost_covers_what_was_paid_for_nothing(scene: Scene) -> None:
    scene.answer(3)
    scene.unknown_usd = COST
    found = scene.audited([{query_id("scene", 3)}])
    assert found.losses == {}
    assert (found.calls_paid_twice, found.usd_wasted, found.calls_in_flight) == (1, COST, 1)
    assert found.calls_unexplained == 0
    scene.unknown_usd = COST / 2
    assert scene.audited().losses == {"usd_unaccounted": COST / 2}


def test_a_call_that_was_paid_twice_without_having_been_in_flight_at_a_fault_is_unexplained(
    scene: Scene,
) -> None:
    scene.answer(3)
    scene.answer(4)
    scene.unknown_usd = 2 * COST
    found = scene.audited([{query_id("scene", 4)}])
    assert (found.calls_paid_twice, found.calls_unexplained) == (2, 1)


def test_a_row_that_is_there_twice_is_doubled_and_its_dollars_were_never_paid(scene: Scene) -> None:
    scene.rows.append(scene.row(5))
    assert scene.audited().losses == {"rows_doubled": 1, "usd_unaccounted": COST}


def test_a_row_of_another_corpus_counts_as_doubled(scene: Scene) -> None:
    scene.rows.append(scene.row(99, status="failed", cost_usd=None))
    assert scene.audited().losses == {"rows_doubled": 1}


def test_a_row_whose_cost_is_not_what_the_meter_says_is_unaccounted(scene: Scene) -> None:
    scene.rows[1] = scene.row(1, cost_usd=COST - Decimal("0.000001"))
    assert scene.audited().losses == {"usd_unaccounted": Decimal("0.000001")}


def test_an_answer_of_another_candidate_than_the_one_that_was_paid_is_unaccounted(scene: Scene) -> None:
    scene.rows[1] = scene.row(1, model="strong")
    assert scene.audited().losses == {"usd_unaccounted": 2 * COST}


def test_a_summary_that_says_another_sum_than_its_rows_is_unaccounted(scene: Scene) -> None:
    scene.spent_usd = 5 * COST
    assert scene.audited().losses == {"usd_unaccounted": COST}


def test_what_was_paid_over_the_budget_counts_whether_it_is_in_a_row_or_not(scene: Scene) -> None:
    scene.bench.budget_usd = 6 * COST
    scene.answer(0)
    scene.unknown_usd = COST
    assert scene.audited().losses == {"usd_overspent": COST}


def test_a_run_that_never_ended_is_a_loss_of_its_own(scene: Scene) -> None:
    found = scene.audited()
    found.completed = False
    assert found.losses == {"unfinished": 1}


def test_in_flight_is_what_reached_an_engine_and_is_not_durable(scene: Scene) -> None:
    del scene.rows[4:]
    scene.rows[0] = scene.row(0, status="skipped_budget", cost_usd=None)
    scene.audited()
    assert in_flight(scene.bench, scene.reading) == {query_id("scene", number) for number in (0, 4, 5)}


def test_a_replica_that_takes_the_place_of_a_dead_one_goes_on_counting_attempts(scene: Scene) -> None:
    Meter(scene.meter.folder, "weak").begin(
        {"messages": [{"role": "user", "content": f"{tag('scene', 2)} ?"}]}
    )
    begun = scene.reading.begun()
    assert (begun[-1]["query_id"], begun[-1]["attempt"]) == (query_id("scene", 2), 2)


def test_a_line_of_the_meter_that_was_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "paid.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    assert lines(path) == [{"a": 1}]


def test_a_campaign_is_a_function_of_its_seed_and_tries_every_kind() -> None:
    assert plan(20, 5, 3) == plan(20, 5, 3)
    assert plan(20, 5, 3) != plan(20, 5, 4)
    assert {case.kind for case in plan(20, 0, 3)} == set(ORDER)
    assert Counter(case.engines for case in plan(20, 5, 3)) == {"fake": 20, "vllm": 5}
    assert {case.kind for case in plan(9, 0, 3, ["disk"])} == {"disk"}
    assert all(case.place == "tmpfs" for case in plan(9, 0, 3, ["disk"]))


@pytest.mark.parametrize(
    ("title", "victim"),
    [
        ("ray::SharedLedger", "ledger"),
        ("ray::MapWorker(MapBatches(DispatchActor)).submit", "dispatch"),
        ("ray::ServeReplica:fake-weak:MeteredFake.handle_request", "replica"),
    ],
)
def test_a_victim_is_known_by_its_title_and_dies_at_once(title: str, victim: str) -> None:
    # a name of its own for a process that waits for its input
    process = subprocess.Popen(["bash", "-c", f"exec -a '{title}' cat"], stdin=subprocess.PIPE)
    seen = psutil.Process(process.pid)
    while seen.cmdline()[:1] != [title]:
        assert process.poll() is None
    assert {name for name in victims.TITLES if victims.find(name, [seen])} == {victim}
    assert victims.kill(process.pid)
    assert process.wait() == -signal.SIGKILL
    assert not victims.kill(process.pid)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with S3() as s3:
        _client(s3, through_proxy=False).create_bucket(Bucket=BUCKET)
        yield s3


def _client(s3: S3, through_proxy: bool = True) -> Any:
    import boto3
    from botocore.config import Config  # type: ignore[import-untyped]

    given = s3.variables(through_proxy)
    return boto3.client(
        "s3",
        endpoint_url=given["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}),
    )


def test_a_healthy_bucket_holds_what_was_put_there(s3: S3) -> None:
    client = _client(s3)
    client.put_object(Bucket=BUCKET, Key="one", Body=b"x" * 300_000)
    assert client.get_object(Bucket=BUCKET, Key="one")["Body"].read() == b"x" * 300_000
    with pytest.raises(client.exceptions.ClientError):
        client.put_object(Bucket=BUCKET, Key="one", Body=b"y", IfNoneMatch="*")


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_of_a_bucket_reaches_its_user_and_a_write_may_have_arrived_all_the_same(
    s3: S3, kind: str
) -> None:
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    client = _client(s3)
    before = s3.injected[kind]
    s3.strength, s3.kinds = 1.0, (kind,)
    with pytest.raises((ClientError, BotoCoreError)) as caught:
        client.put_object(Bucket=BUCKET, Key=kind, Body=b"data")
    s3.strength, s3.kinds = 0.0, FAULTS
    assert s3.injected[kind] == before + 1
    if kind == "503":
        assert "SlowDown" in str(caught.value)
    there = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", ())]
    assert (kind in there) == (kind in ("cut after", "cut within"))
