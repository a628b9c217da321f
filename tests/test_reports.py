"""Pages: of evaluations and of runs, whole, cut and unfinished; looked at by a browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from rtr_ray.cli import app
from rtr_ray.reports.chart import Axis, Chart, Dots, Line, shown
from rtr_ray.reports.digest import Digest
from rtr_ray.reports.frame import LETTER, Box, Frame
from rtr_ray.reports.page import Page, Section, Table, html
from rtr_ray.reports.png import png
from rtr_ray.reports.run import run_page
from rtr_ray.reports.svg import svg
from rtr_ray.schemas import RESULTS, WRITTEN, stamped
from rtr_ray.storage import open_store, write_table
from rtr_ray.types import Candidate
from tests.test_quality import written

WEAK, STRONG = Candidate("weak", "cot"), Candidate("strong", "cot")
BEGAN = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
BROWSER = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
FINITE = st.floats(-1e6, 1e6, allow_subnormal=False)


class _Tags(HTMLParser):
    """Whether all that is opened is closed, and what is loaded from elsewhere."""

    alone = ("meta", "rect", "circle", "line", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(text: str) -> str:
    """A page that is whole, and needs nothing from anywhere."""
    found = _Tags(text)
    assert found.open == []
    assert found.loaded == []
    assert "<script" not in text
    assert "url(" not in text
    assert 'name="viewport"' in text
    return text


def rtr_ray(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"}, catch_exceptions=False)


def results(
    store: Any, name: str, rows: list[tuple[Candidate, str, str]], after_s: float | None = 0.0
) -> None:
    """A part of results: (candidate, status, dollars) of each row."""
    values = [
        {
            "query_id": f"{name}-{number}", "status": status, "model": who.model, "strategy": who.strategy,
            "samples": 1, "input_tokens": 10, "cached_input_tokens": 0, "output_tokens": 30,
            "cost_usd": Decimal(usd) if status == "answered" else None, "predicted_accuracy": 0.5,
            "predicted_output_tokens": 20.0, "predicted_cost_usd": float(usd) / 2, "attempts": 1,
            "correct": 1.0 if status == "answered" else None,
            "error": "the engine <said> no\nand more" if status == "failed" else None,
        }
        for number, (who, status, usd) in enumerate(rows)
    ]  # fmt: skip
    table = pa.Table.from_pylist(values, RESULTS)
    stamps = {} if after_s is None else {WRITTEN: (BEGAN + timedelta(seconds=after_s)).isoformat()}
    write_table(store, f"results/part-{name}.parquet", stamped(table, **stamps))


def run_folder(uri: str, status: str = "completed", **head: Any) -> Any:
    """A run of six rows by hand: five answered for $0.75, one failed."""
    store = open_store(uri)
    head = {"schema_version": 1, "status": status, "stage": "done"} | head
    store.write("run.json", json.dumps(head).encode())
    plan = {
        "rows": 6, "unrouted": 0, "budget_usd": "1.00", "cost_usd": 0.4, "accuracy": 0.5, "by_candidate": [],
        "if_all_went_to": [
            {"candidate": "weak:cot", "rows": 6, "accuracy": 3.0, "output_tokens": 9.0, "cost_usd": 0.1}
        ],
    }  # fmt: skip
    store.write("plan.json", json.dumps(plan).encode())
    results(store, "a", [(WEAK, "answered", "0.05"), (STRONG, "answered", "0.30"), (WEAK, "failed", "0")])
    results(store, "b", [(WEAK, "answered", "0.05"), (STRONG, "answered", "0.30")], 60)
    results(store, "c", [(WEAK, "answered", "0.05")], 90)
    return store


@given(st.lists(FINITE, min_size=1, max_size=9), st.booleans(), st.booleans())
def test_every_value_lies_on_its_axis_and_ticks_rise(values: list[float], log: bool, up: bool) -> None:
    values = [abs(value) + 1e-6 for value in values] if up else values
    axis = Axis.over("x", values, log=log)
    assert all(-1e-9 <= axis.at(value) <= 1 + 1e-9 for value in values)
    ticks = axis.ticks()
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 9
    assert all(-1e-6 <= axis.at(tick) <= 1 + 1e-6 for tick in ticks)


def test_numbers_are_written_for_the_eye() -> None:
    assert [shown(v, "usd") for v in (12.5, 0.1, 0.000846, 0.0, -0.02)] == [
        "$12.50", "$0.10", "$0.000846", "$0", "-$0.02",
    ]  # fmt: skip
    assert [shown(v, "number") for v in (12345.6, 9.54, 3.0)] == ["12,346", "9.54", "3"]
    assert [shown(v, "percent") for v in (0.745, None, float("nan"))] == ["74.5%", "-", "-"]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=15), st.booleans())
def test_no_name_covers_another_or_leaves_its_frame(points: list[tuple[float, float]], short: bool) -> None:
    labels = [f"candidate-{number}:cot" for number in range(len(points))]
    dots = Dots("all", points, 0, labels, list(range(len(points))))
    axis = Axis("x", 0, 1)
    chart = Chart("c", "t", axis, axis, [dots])
    frame = Frame.of(chart, wide=not short)
    boxes = []
    for name in frame.names(chart, short):
        width = len(name.text) * LETTER
        start = {"start": name.x, "end": name.x - width, "middle": name.x - width / 2}[name.anchor]
        boxes.append(Box(start, name.y - 10, width, 12.5))
    assert not any(a.meets(b) for n, a in enumerate(boxes) for b in boxes[:n])
    assert all(box.x >= frame.left and box.x + box.width <= frame.width for box in boxes)


def test_what_a_page_is_told_is_text_and_never_markup() -> None:
    evil = '<img src="x" onerror="alert(1)">&'
    axis = Axis(evil, 0, 1)
    marks = [Line(evil, [(0, 0), (1, 1)]), Dots("d", [(0.5, 0.5)], 0, [evil])]
    tables = [Table((evil, "b"), [[evil] * 2])]
    section = Section(evil, [evil], [Chart("c", evil, axis, axis, marks)], tables, [evil])
    text = checked(html(Page(evil, evil, True, [(evil, evil)], [evil], [section], evil)))
    assert "<img" not in text
    assert "&lt;img" in text


def test_a_chart_without_anything_to_draw_is_an_empty_frame() -> None:
    axis = Axis.over("x", [])
    chart = Chart("c", "t", axis, axis, [Line("l", []), Dots("d", [])])
    assert svg(chart).startswith("<svg")
    assert png(chart).startswith(b"\x89PNG")


def test_an_evaluation_becomes_a_page_with_its_verdict_and_pictures(tmp_path: Path) -> None:
    uri = written(tmp_path / "table.parquet", telling=True)
    done = rtr_ray(
        "evaluate",
        "--outcomes",
        uri,
        "--estimator",
        "knn",
        "--encoder",
        "hash",
        "--report",
        str(tmp_path / "page"),
    )
    assert done.exit_code == 0, done.output
    assert f"Page: {tmp_path / 'page' / 'index.html'}" in done.output
    text = checked((tmp_path / "page/index.html").read_text())
    assert "Routing pays here: knn gains" in text
    for word in ("static hull", "oracle", "weak:cot", "strong:cot", "What to do next",
                 "By predicted difficulty",
                 "Who is asked", "Predicted against actual tokens", "Questions of another kind"):  # fmt: skip
        assert word in text, word
    pictures = {path.name for path in (tmp_path / "page").glob("*.png")}
    assert {"curve-test.png", "curve-ood.png", "shares.png", "calibration.png", "tokens.png"} <= pictures
    assert len(text) < 200_000


def test_a_run_becomes_a_page_with_exact_dollars(tmp_path: Path) -> None:
    run_folder(str(tmp_path / "run"))
    done = rtr_ray("report", str(tmp_path / "run"))
    assert done.exit_code == 0, done.output
    assert "The run is complete: 5 of 6 rows answered for $0.75, 75.0% of the budget." in done.output
    text = checked((tmp_path / "run/report/index.html").read_text())
    assert "<dt>remained</dt><dd>$0.25</dd>" in text
    assert "the engine &lt;said&gt; no" in text
    assert "and more" not in text
    assert "1 rows failed; <code>--retry-failed</code>" in text
    assert "Answers were 1.50 times as long as predicted" in text
    assert "From 2026-11-01 12:00:00 to 2026-11-01 12:01:30" in text
    assert "This page is partial" not in text


def test_a_run_is_read_in_sums(tmp_path: Path) -> None:
    run_folder(str(tmp_path / "run"))
    found = Digest.read(str(tmp_path / "run"))
    assert found.tally.cost_usd == Decimal("0.75")
    assert {c: (p.rows, p.tokens, p.actual_tokens) for c, p in found.predicted.items()} == {
        WEAK: (3, 60, 90), STRONG: (2, 40, 60),
    }  # fmt: skip
    assert found.predicted[WEAK].pairs == [(20.0, 30.0)]
    assert [float(sum(moment.usd.values())) for moment in found.moments] == pytest.approx([0.35, 0.35, 0.05])
    assert found.errors == {"the engine <said> no": 1}


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("running", "The run is not finished: 5 of 6 rows"),
        ("interrupted", "The run was interrupted: 5 of 6 rows"),
        ("failed", "The run failed (no room): 5 of 6 rows"),
    ],
)
def test_an_unfinished_run_has_a_page_that_says_it_is_partial(tmp_path: Path, status: str, told: str) -> None:
    run_folder(str(tmp_path / "run"), status, error="no room.")
    done = rtr_ray("report", str(tmp_path / "run"), "--output", str(tmp_path / "page"))
    assert done.exit_code == 0, done.output
    assert told in done.output
    assert "The page is partial" in done.output
    text = checked((tmp_path / "page/index.html").read_text())
    assert "This page is partial: 6 rows have a result so far" in text
    assert "goes on where this one stopped" in text


def test_a_run_that_was_cut_in_the_middle_of_a_part_says_which(tmp_path: Path) -> None:
    run_folder(str(tmp_path / "run"))
    part = tmp_path / "run/results/part-b.parquet"
    part.write_bytes(part.read_bytes()[:100])
    (tmp_path / "run/summary.json").write_text('{"schema_version": 1, "stat')
    page = run_page(Digest.read(str(tmp_path / "run")))
    assert page.verdict.startswith("The run is complete: 3 of 6 rows answered for $0.40")
    assert any("`summary.json`, `results/part-b.parquet`" in note for note in page.notes)
    assert not page.good


def test_what_was_lost_counts_against_what_remained(tmp_path: Path) -> None:
    store = run_folder(str(tmp_path / "run"), "interrupted")
    record = {"committed_usd": "0.85", "unknown_usd": "0.02", "lost": 1, "in_flight": 3, "sent_again": 0}
    store.write("ledger.json", json.dumps(record).encode())
    page = run_page(Digest.read(str(tmp_path / "run")))
    assert dict(page.facts)["remained"] == "$0.15"
    assert any("at worst $0.1 beyond" in note for note in page.notes)


def test_parts_of_an_older_version_have_no_curve_over_time(tmp_path: Path) -> None:
    store = run_folder(str(tmp_path / "run"))
    results(store, "d", [(WEAK, "answered", "0.05")], after_s=None)
    page = run_page(Digest.read(str(tmp_path / "run")))
    assert "spending" not in [chart.name for chart in page.charts]
    assert "say when they were written" in html(page)


def test_a_planned_run_has_a_page_already(tmp_path: Path) -> None:
    store = run_folder(str(tmp_path / "run"), "planned")
    for name in "abc":
        store.delete(f"results/part-{name}.parquet")
    text = checked(html(run_page(Digest.read(str(tmp_path / "run")))))
    assert "The run is planned, and has not been started: 0 of 6 rows" in text


def test_a_run_in_a_bucket_has_its_page_beside_it(s3_bucket: str) -> None:
    store = run_folder(f"{s3_bucket}/run")
    done = rtr_ray("report", f"{s3_bucket}/run")
    assert done.exit_code == 0, done.output
    assert f"Page: {s3_bucket}/run/report/index.html" in done.output
    page = store.read("report/index.html")
    assert page is not None
    assert "5 of 6 rows answered for $0.75" in checked(page.decode())
    assert store.read("report/spending.png") is not None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "holds no run: it has no run.json. Give the output folder of `rtr-ray run`."),
        ('{"schema_version": 99}', "holds a run of schema version 99; this rtr-ray reads version 1."),
        ('{"schema_ver', "run.json is damaged"),
    ],
)
def test_what_is_no_run_gets_one_sentence(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run/run.json").write_text(content)
    done = rtr_ray("report", str(tmp_path / "run"))
    assert done.exit_code == 1
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run/report").exists()


@pytest.mark.skipif(BROWSER is None, reason="no chromium here to look at pages with")
@pytest.mark.parametrize("width", [360, 1000])
def test_a_browser_lays_a_page_out_without_a_horizontal_scroll(tmp_path: Path, width: int) -> None:
    run_folder(str(tmp_path / "run"))
    page = html(run_page(Digest.read(str(tmp_path / "run"))))
    (tmp_path / "page.html").write_text(page)
    # a window has a least width: a frame in it has none
    script = "const d=f.contentDocument.documentElement;document.title=[d.scrollWidth,d.clientWidth].join()"
    (tmp_path / "frame.html").write_text(
        f'<iframe id="f" src="page.html" width="{width}" height="900" onload="{script}"></iframe>'
    )
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path / 'frame.html'}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r"<title>(\d+),(\d+)</title>", done.stdout)
    assert found is not None, done.stderr[-2000:]
    assert int(found[1]) <= int(found[2])
