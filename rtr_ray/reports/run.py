"""The page of a batch run: what was spent on what and when, what had been predicted, what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from rtr_ray.reports.chart import Area, Axis, BarChart, Bars, Chart, Dots, Line, Mark, shown
from rtr_ray.reports.digest import Digest
from rtr_ray.reports.page import Page, Section, Table
from rtr_ray.summary import plain
from rtr_ray.types import Candidate

_MOST_COLOURS = 7
_MOST_STEPS = 150  # of the curve of spending
_MOST_ERRORS = 12
_OFF = 0.15  # of predicted lengths
_ENDINGS = {
    "completed": "The run is complete",
    "budget_exhausted": "The budget is used up",
    "interrupted": "The run was interrupted",
    "failed": "The run failed",
    "running": "The run is not finished",
    "planned": "The run is planned, and has not been started",
}


def run_page(digest: Digest) -> Page:
    """The page of a run folder, finished or not."""
    rows = digest.tally.rows
    spent, accuracy = digest.tally.cost_usd, digest.tally.accuracy
    facts = [
        ("rows", "not counted yet" if digest.total_rows is None else f"{digest.total_rows:,}"),
        ("answered", f"{rows['answered']:,}"),
        ("failed", f"{rows['failed']:,}"),
        ("not reached by the budget", f"{rows['skipped_budget']:,}"),
        ("spent", f"${plain(spent)}"),
        ("budget", "none" if digest.budget_usd is None else f"${plain(digest.budget_usd)}"),
        ("remained", _remained(digest)),
        ("forecast of the plan", shown(None if digest.plan is None else digest.plan["cost_usd"], "usd")),
        ("accuracy", "not graded" if accuracy is None else shown(accuracy, "percent")),
    ]  # fmt: skip
    if digest.labels_usd:
        facts.insert(5, ("spent on labels", f"${plain(digest.labels_usd)}"))
    return Page(
        f"Run {'/'.join(digest.uri.rstrip('/').split('/')[-2:])}",
        _verdict(digest),
        digest.status == "completed" and not rows["failed"] and not digest.damaged,
        facts,
        list(_notes(digest)),
        [section for section in _sections(digest) if section is not None],
        f"Made by `rtr-ray report` of {digest.parts:,} parts of results. Dollars spent are exact, "
        "predictions are those by which each row was planned.",
    )


def _remained(digest: Digest) -> str:
    if digest.budget_usd is None:
        return "-"
    return f"${plain(digest.budget_usd - digest.tally.cost_usd - digest.unknown_usd)}"


def _verdict(digest: Digest) -> str:
    """One sentence, with its number."""
    ending = _ENDINGS.get(digest.status, f"The run's status is {digest.status}")
    if digest.status == "failed" and digest.head.get("error"):
        ending += f" ({str(digest.head['error']).rstrip('.')})"
    total = "" if digest.total_rows is None else f" of {digest.total_rows:,}"
    told = (
        f"{ending}: {digest.tally.rows['answered']:,}{total} rows answered for {_usd(digest.tally.cost_usd)}"
    )
    if digest.budget_usd:
        share = float(digest.tally.cost_usd / digest.budget_usd)
        told += f", {share:.1%} of the budget"
    return f"{told}."


def _usd(amount: Decimal) -> str:
    return shown(float(amount), "usd")


def _notes(digest: Digest) -> Iterator[str]:
    if digest.is_partial:
        done = f"{digest.done_rows:,} rows have a result so far"
        yield f"This page is partial: {done}, and the figures are theirs."
    if digest.damaged:
        named = ", ".join(f"`{key}`" for key in digest.damaged[:5])
        more = f" and {len(digest.damaged) - 5} more" if len(digest.damaged) > 5 else ""
        yield f"Damaged, so not counted here: {named}{more}. Restore them; see `docs/batch.md`."
    if digest.unknown_usd:
        yield (
            f"Replies were lost with what they cost: at worst ${plain(digest.unknown_usd)} beyond what is "
            "shown as spent. The budget holds with them."
        )
    if digest.tally.unpriced:
        yield f"Of {digest.tally.unpriced:,} answered rows nobody knows the cost."


def _order(digest: Digest) -> list[Candidate]:
    """Candidates, dearest first."""
    spent = {c: a.cost_usd for c, a in digest.tally.accounts.items()}
    names = {*digest.tally.settled, *spent}
    return sorted(names, key=lambda c: (-spent.get(c, Decimal(0)), str(c)))


def _sections(digest: Digest) -> Iterator[Section | None]:
    yield Section("What to do next", steps=list(_steps(digest)))
    if digest.tally.accounts:
        yield _over_time(digest)
        yield _by_candidate(digest)
        yield _predictions(digest)
    yield _errors(digest)
    yield _otherwise(digest)


def _steps(digest: Digest) -> Iterator[str]:
    rows = digest.tally.rows
    answered = rows["answered"]
    if digest.status in ("interrupted", "failed", "running", "planned"):
        yield "The same `rtr-ray run` command goes on where this one stopped; nothing is paid for twice."
    if rows["skipped_budget"]:
        each = float(digest.tally.cost_usd) / answered if answered else 0.0
        more = (
            f": about {shown(each * rows['skipped_budget'], 'usd')} at the mean cost of a row" if each else ""
        )
        yield (
            f"{rows['skipped_budget']:,} rows were not reached. `--budget-usd` with a larger amount and the "
            f"same output goes on with them{more}."
        )
    if rows["failed"]:
        yield f"{rows['failed']:,} rows failed; `--retry-failed` asks those again that were not paid for."
    if digest.tally.cut:
        yield f"{digest.tally.cut:,} answers were cut where the budget ended: their text is not whole."
    tokens = sum(one.tokens for one in digest.predicted.values())
    actual = sum(one.actual_tokens for one in digest.predicted.values())
    if tokens and abs(actual / tokens - 1) > _OFF:
        yield (
            f"Answers were {actual / tokens:.2f} times as long as predicted: `rtr-ray collect` on a sample "
            "of this corpus, and a router trained on it, would forecast better."
        )
    if digest.tally.accuracy is None and answered:
        yield "Nothing was graded: with a reference column and a `grader` a run says how often it was right."
    if answered:
        yield "`rtr-ray explain` with this folder and a `--query-id` says why a row went where it did."


def _over_time(digest: Digest) -> Section:
    if not digest.moments or len(digest.moments) < 2 or digest.undated:
        told = "Too few parts of the results say when they were written for a curve over time."
        return Section("Spending over time", (told,))
    began, ended = digest.moments[0].written, digest.moments[-1].written
    span_s = max((ended - began).total_seconds(), 1.0)
    order = _order(digest)
    own, steps = order[:_MOST_COLOURS], min(_MOST_STEPS, len(digest.moments))
    names = [str(c) for c in own] + (["others"] if len(order) > len(own) else [])
    added = [[0.0] * (steps + 1) for _ in names]
    for moment in digest.moments:
        step = int(steps * (moment.written - began).total_seconds() / span_s)
        for candidate, usd in moment.usd.items():
            added[own.index(candidate) if candidate in own else -1][step] += float(usd)
    floor, marks = [0.0] * (steps + 1), []
    for slot, (name, row) in enumerate(zip(names, added, strict=True)):
        total, top = 0.0, []
        for place, value in enumerate(row):
            total += value
            top.append(floor[place] + total)
        points = [(span_s * n / steps, floor[n], top[n]) for n in range(steps + 1)]
        marks.append(Area(name, points, slot if name != "others" else -1))
        floor = top
    lines: list[Line] = []
    forecast = None if digest.plan is None else digest.plan["cost_usd"]
    for name, limit, slot in (("forecast of the plan", forecast, 7), ("budget", digest.budget_usd, -1)):
        if limit is not None and float(limit) < 3 * floor[-1]:
            at = float(limit)
            lines.append(Line(name, [(0.0, at), (span_s, at)], slot, dashed=name != "budget"))
    heights = [floor[-1], *(line.points[0][1] for line in lines)]
    chart = Chart(
        "spending",
        "Spending over time, by candidate",
        Axis("seconds since the first answers", 0.0, span_s, "seconds"),
        Axis("dollars spent", 0.0, 1.08 * max(heights) or 1.0, "usd"),
        [*marks, *lines],
        f"From {began:%Y-%m-%d %H:%M:%S} to {ended:%Y-%m-%d %H:%M:%S} {began.tzname() or ''}.",
    )
    return Section("Spending over time", (), [chart])


def _by_candidate(digest: Digest) -> Section:
    order = _order(digest)
    spent = [float(digest.tally.accounts[c].cost_usd) if c in digest.tally.accounts else 0.0 for c in order]
    told = [digest.predicted[c].cost_usd if c in digest.predicted else 0.0 for c in order]
    shown_ = order[:20]
    chart = BarChart(
        "by-candidate",
        "Dollars by candidate",
        [str(c) for c in shown_],
        [Bars("spent", spent[: len(shown_)], 0), Bars("predicted for the same rows", told[: len(shown_)], 7)],
        Axis("dollars", 0.0, 1.02 * max([*spent, *told]) or 1.0, "usd"),
    )
    rows = []
    for candidate in order:
        account, grades = digest.tally.accounts.get(candidate), digest.tally.grades.get(candidate)
        one = digest.predicted.get(candidate)
        rows.append(
            [
                str(candidate),
                f"{digest.tally.answered[candidate]:,}",
                "-" if account is None else f"{account.input_tokens:,}",
                "-" if account is None else f"{account.output_tokens:,}",
                "-" if account is None else f"${plain(account.cost_usd)}",
                shown(None if one is None else one.cost_usd, "usd"),
                shown(None if grades is None else grades.accuracy, "percent"),
                shown(None if one is None or not one.rows else one.accuracy / one.rows, "percent"),
            ]
        )
    head = (
        "candidate", "rows answered", "input tokens", "output tokens", "spent", "predicted dollars",
        "accuracy", "predicted accuracy",
    )  # fmt: skip
    return Section("By candidate", (), [chart], [Table(head, rows)])


def _predictions(digest: Digest) -> Section | None:
    found = {
        c: digest.predicted[c] for c in _order(digest) if c in digest.predicted and digest.predicted[c].pairs
    }
    if not found:
        return None
    values = [value for one in found.values() for pair in one.pairs for value in pair]
    x = Axis.over("predicted output tokens", values, log=True)
    few = len(found) <= 8
    ends = (min(values), max(values))
    marks: list[Mark] = [Line("as it should be", [(ends[0], ends[0]), (ends[1], ends[1])], -1, dashed=True)]
    marks += [
        Dots(str(c) if few else "one candidate each", one.pairs, slot if few else 0)
        for slot, (c, one) in enumerate(found.items())
    ]
    chart = Chart(
        "tokens",
        "Predicted against actual tokens",
        x,
        Axis("actual output tokens", x.low, x.high, "number", x.log),
        marks,
        "Each dot is a candidate's rows of about the same predicted length.",
    )
    rows = [
        [
            str(c),
            f"{one.tokens:,.0f}",
            f"{one.actual_tokens:,.0f}",
            f"{one.actual_tokens / one.tokens:.3f}" if one.tokens else "-",
            shown(one.graded_accuracy / one.graded if one.graded else None, "percent"),
            shown(one.correct / one.graded if one.graded else None, "percent"),
        ]
        for c, one in found.items()
    ]
    head = (
        "candidate", "predicted tokens", "actual tokens", "actual over predicted",
        "predicted accuracy, graded rows", "their accuracy",
    )  # fmt: skip
    return Section("Predicted and actual", (), [chart], [Table(head, rows)])


def _errors(digest: Digest) -> Section | None:
    again = f"{digest.again:,} rows were answered at a second or later attempt." if digest.again else ""
    if not digest.errors:
        return Section("Errors", ("No row failed.", again) if again else ("No row failed.",))
    rows = [[text, f"{count:,}"] for text, count in digest.errors.most_common(_MOST_ERRORS)]
    rest = sum(digest.errors.values()) - sum(count for _, count in digest.errors.most_common(_MOST_ERRORS))
    if rest:
        rows.append(["others", f"{rest:,}"])
    return Section("Errors", (again,) if again else (), (), [Table(("what went wrong", "rows"), rows)])


def _otherwise(digest: Digest) -> Section | None:
    """What no routing would have come to, by the plan's estimates."""
    every: list[dict[str, Any]] = [] if digest.plan is None else digest.plan.get("if_all_went_to", [])
    rows = [
        [
            str(row["candidate"]),
            f"{row['rows']:,}",
            shown(row["cost_usd"], "usd"),
            shown(row["accuracy"] / row["rows"], "percent"),
        ]
        for row in sorted(every, key=lambda row: float(row["cost_usd"]))
        if row["rows"]
    ]
    if not rows or digest.plan is None:
        return None
    planned = f"{digest.plan['rows'] - digest.plan['unrouted']:,}"
    whole = (shown(digest.plan["cost_usd"], "usd"), shown(digest.plan["accuracy"], "percent"))
    rows.insert(0, ["the plan", planned, *whole])
    head = ("if all rows went to", "rows it can take", "dollars", "accuracy")
    text = "By the estimates that the first plan was made of, not by what happened."
    return Section("Without routing", (text,), (), [Table(head, rows, 0)])
