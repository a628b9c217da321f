"""The page of an evaluation: does routing pay here, by how much, for whom, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rtr_ray.reports.advice import next_steps
from rtr_ray.reports.chart import AnyChart, Area, Axis, BarChart, Bars, Chart, Dots, Line, Mark, Style, shown
from rtr_ray.reports.page import Page, Section, Table

_MOST_ROUTERS = 5  # curves in one chart
_MOST_SHARES = 7  # candidates with a colour of their own
_Report = Mapping[str, Any]


def evaluation_page(report: _Report, command: str = "") -> Page:
    """The page of what `Evaluation.run` found.

    Args:
        report: The content of its JSON file.
        command: What it was made by, for the foot of the page.
    """
    best = leading(report, "test")
    anchors, verdict = report["anchors"], report["verdict"]
    unit: Style = "number" if in_tokens(report) else "usd"
    facts = [
        ("questions scored", _counted(report["n_test"])),
        ("questions learned from", _counted(report["n_train"])),
        ("candidates", str(len(report["candidates"]))),
        ("best single candidate", str(anchors["best_single"]["candidate"])),
        ("its accuracy", shown(anchors["best_single"]["accuracy"], "percent")),
        ("its cost a question", _cost(anchors["best_single"]["cost_usd"], unit)),
    ]
    if best is not None:
        facts.append(("gap to the oracle closed", shown(best["gap_closed"], "percent")))
    sections = [
        Section(
            "What routing buys",
            ("Each line says which accuracy can be had for which mean cost of a question.",),
            [trade_off(report, "test", unit)],
            [_routers(report, "test"), _candidates(report, unit)],
        ),
        Section("What to do next", steps=next_steps(report, best)),
    ]
    if best is not None:
        sections += _of_router(report, best, unit)
    if report.get("anchors_ood") is not None:
        sections.append(
            Section(
                "Questions of another kind",
                (
                    f"{report['n_ood']:,} questions are marked as out of distribution: nothing was learned "
                    "from them, or from others like them.",
                ),
                [trade_off(report, "ood", unit)],
                [_routers(report, "ood")],
            )
        )
    return Page(
        f"Does routing pay? {name_of_table(report['table'])}",
        verdict["reason"],
        bool(verdict["route"]),
        facts,
        [_splits(report), *report["notes"]],
        sections,
        f"Made by `{command or 'rtr-ray evaluate'}`. Intervals are 95%, by a bootstrap over questions with "
        "the same draws for all that is compared. No model was called.",
    )


def name_of_table(uri: str) -> str:
    """The file's name, without its folder."""
    return uri.rstrip("/").rpartition("/")[2] or uri


def in_tokens(report: _Report) -> bool:
    """Whether costs are output tokens, for want of dollars."""
    return report.get("cost_unit") == "output_tokens"


def leading(report: _Report, part: str) -> Mapping[str, Any] | None:
    """The router that the verdict is about."""
    name = report["verdict"]["estimator"]
    return next((one for one in report["routers"] if (one["name"], one["part"]) == (name, part)), None)


def _counted(value: float) -> str:
    return f"{value:,.0f}"


def _cost(value: float | None, unit: Style) -> str:
    return f"{shown(value, unit)} tokens" if unit == "number" and value is not None else shown(value, unit)


def _splits(report: _Report) -> str:
    if report["repeats"] is None:
        return (
            "Learned from the questions that the table marks as `train`, scored on those it marks as `test`."
        )
    seeds = report["seeds"]
    return (
        f"Means over {report['repeats']} random splits (seeds {seeds[0]} to {seeds[-1]}); questions of one "
        "group are never on both sides."
    )


def candidate_name(row: Mapping[str, Any]) -> str:
    """As the command line has it: model:strategy, and @samples where there are several."""
    return f"{row['model']}:{row['strategy']}" + (f"@{row['samples']}" if row["samples"] != 1 else "")


def _cost_label(unit: Style) -> str:
    return "mean output tokens of a question" if unit == "number" else "mean dollars of a question"


def trade_off(report: _Report, part: str, unit: Style = "usd") -> Chart:
    """Accuracy over cost: routers with their intervals, the static hull, the oracle, every candidate."""
    anchors = report["anchors"] if part == "test" else report["anchors_ood"]
    tried = sorted(
        (one for one in report["routers"] if one["part"] == part and one["name"] not in ("prior", "oracle")),
        key=lambda one: -one["aiq"],
    )[:_MOST_ROUTERS]
    best = report["verdict"]["estimator"]
    marks: list[Mark] = [
        Line("oracle: knows every answer beforehand", _points(anchors["oracle"]["curve"]), -1),
        Line("static hull: mixes that look at no question", _points(anchors["static_hull"]["curve"]), -1,
             dashed=True),
    ]  # fmt: skip
    for slot, one in enumerate(tried):
        band = [(x, low, high) for x, _, low, high in one["curve"] if low is not None]
        # one band: those of several would hide each other
        marks.append(
            Line(str(one["name"]), _points(one["curve"]), slot, band=band if one["name"] == best else ())
        )
    rows = anchors["candidates"]
    names = [candidate_name(row) for row in report["candidates"]]
    known = [n for n, row in enumerate(rows) if row["accuracy"] is not None and row["cost_usd"] is not None]
    marks.append(
        Dots(
            "one candidate for all questions",
            [(rows[n]["cost_usd"], rows[n]["accuracy"]) for n in known],
            7,
            [names[n] for n in known],
            [n + 1 for n in known],
        )
    )
    places = [place for mark in marks if not isinstance(mark, Area) for place in mark.points]
    bands = [place for mark in marks if isinstance(mark, Line) for place in mark.band]
    heights = [y for _, y in places] + [y for _, *ends in bands for y in ends]
    note = (
        "The band is the 95% interval of the router in the verdict. "
        if best in [m.name for m in marks]
        else ""
    )
    return Chart(
        f"curve-{part}",
        "Accuracy over cost" + (" on questions of another kind" if part == "ood" else ""),
        Axis.over(_cost_label(unit), [x for x, _ in places], unit, log=True),
        Axis.over("right answers", heights, "percent", bounds=(0, 1)),
        marks,
        note + "Each dot is a candidate of the table below.",
    )


def _points(curve: Sequence[Sequence[float | None]]) -> list[tuple[float, float]]:
    return [(row[0], row[1]) for row in curve if row[0] is not None and row[1] is not None]


def _span(pair: Sequence[float | None], scale: float = 100) -> str:
    low, high = pair
    return "" if low is None or high is None else f" ({scale * low:+.1f} to {scale * high:+.1f})"


def _routers(report: _Report, part: str) -> Table:
    anchors = report["anchors"] if part == "test" else report["anchors_ood"]
    rows = [["static hull", f"{anchors['static_hull']['aiq']:.3f}", "0", "0%", "-", "-", "-"]]
    strong = None
    for one in report["routers"]:
        if one["part"] != part:
            continue
        if one["name"] == report["verdict"]["estimator"]:
            strong = len(rows)
        rows.append(
            [
                str(one["name"]),
                f"{one['aiq']:.3f}",
                f"{100 * one['aiq_over_hull']:+.1f}{_span(one['aiq_over_hull_interval'])}",
                shown(one["gap_closed"], "percent"),
                shown(one["best_accuracy"], "percent"),
                shown(one["cost_saved_at_best_single"], "percent"),
                shown(one["cost_saved_within_1pt"], "percent"),
            ]
        )
    oracle = anchors["oracle"]
    rows.append(
        ["oracle", f"{oracle['aiq']:.3f}", "-", "100%", shown(oracle["accuracy"], "percent"), "-", "-"]
    )
    head = (
        "router", "mean height (AIQ)", "points over the hull", "gap closed", "best accuracy",
        "cost saved, best single's accuracy", "cost saved, 1 point below",
    )  # fmt: skip
    return Table(head, rows, strong)


def _candidates(report: _Report, unit: Style) -> Table:
    best = report["anchors"]["best_single"]["candidate"]
    names = [candidate_name(row) for row in report["candidates"]]
    rows = [
        [
            f"{number + 1}. {names[number]}",
            shown(row["accuracy"], "percent"),
            shown(row["cost_usd"], unit),
            shown(row["output_tokens"], "number"),
        ]
        for number, row in enumerate(report["candidates"])
    ]
    head = ("candidate", "accuracy", "cost a question", "output tokens")
    return Table(head, rows, names.index(best) if best in names else None)


def _of_router(report: _Report, best: Mapping[str, Any], unit: Style) -> Iterator[Section]:
    """What the router of the verdict does."""
    name, single = best["name"], report["anchors"]["best_single"]
    at = best["at_best_single_cost"]
    where = (
        f"Here `{name}` is looked at where it costs no more than the best single candidate: at lambda "
        f"{at['lam']:.3f}, {shown(at['accuracy'], 'percent')} for {_cost(at['cost_usd'], unit)} a question, "
        f"beside {shown(single['accuracy'], 'percent')} for {_cost(single['cost_usd'], unit)}."
    )
    if best["by_dataset"]:
        rows = {key: row for key, row in best["by_dataset"].items() if row["queries"]}
        yield Section(
            "By dataset", (where,), [_beside("by-dataset", "Accuracy by dataset", rows, name)],
            [_beside_table("dataset", rows, name, unit)],
        )  # fmt: skip
    levels = {
        f"{number + 1}. predicted {shown(row['predicted_accuracy'], 'percent')}": row
        for number, row in enumerate(best.get("by_difficulty", ()))
        if row["queries"]
    }
    if levels:
        text = (
            "Questions sorted by the accuracy that is predicted for all candidates together, easiest first."
        )
        yield Section(
            "By predicted difficulty",
            (text,) if best["by_dataset"] else (where, text),
            [_beside("by-difficulty", "Accuracy by predicted difficulty", levels, name)],
            [_beside_table("difficulty", levels, name, unit)],
        )
    yield Section(
        "Who is asked",
        ("Lambda is the weight of accuracy against cost: near 1 accuracy alone counts, near 0 cost alone.",),
        [_shares(best)],
    )
    if "calibration" in best:
        calibration = best["calibration"]
        auroc = calibration["auroc"]
        yield Section(
            "Can the predictions be believed?",
            (
                f"Predicted and observed accuracy differ by {100 * (calibration['ece'] or 0):.1f} points on "
                "average (ECE)"
                + (f"; right cells are told from wrong ones with an AUROC of {auroc:.3f}." if auroc else "."),
            ),
            [_calibration(calibration), _tokens(best)],
            [_token_table(best)],
        )


def _beside(name: str, title: str, rows: Mapping[str, Mapping[str, Any]], router: str) -> AnyChart:
    groups = [
        Bars(who, [row[f"{key}accuracy"] for row in rows.values()], slot)
        for who, key, slot in (
            (router, "", 0),
            ("best single", "best_single_", 1),
            ("cheapest", "cheapest_", 7),
        )
    ]
    return BarChart(name, title, list(rows), groups, Axis("right answers", 0.0, 1.0, "percent"))


def _beside_table(what: str, rows: Mapping[str, Mapping[str, Any]], router: str, unit: Style) -> Table:
    head = (
        what, "questions", router, "best single", "cheapest", f"cost, {router}", "cost, best single",
        f"tokens, {router}", "tokens, best single",
    )  # fmt: skip
    return Table(
        head,
        [
            [
                key,
                _counted(row["queries"]),
                *(shown(row[f"{who}accuracy"], "percent") for who in ("", "best_single_", "cheapest_")),
                *(shown(row[f"{who}cost_usd"], unit) for who in ("", "best_single_")),
                *(shown(row[f"{who}output_tokens"], "number") for who in ("", "best_single_")),
            ]
            for key, row in rows.items()
        ],
    )


def _shares(best: Mapping[str, Any]) -> Chart:
    odds = [lam / (1 - lam) if lam < 1 else math.inf for _, _, lam in best["points"]]
    order = sorted((n for n, value in enumerate(odds) if 0 < value < math.inf), key=lambda n: odds[n])
    most = sorted(best["shares"], key=lambda name: -max(best["shares"][name]))
    own = [name for name in best["shares"] if name in most[:_MOST_SHARES]]
    layers = {name: best["shares"][name] for name in own}
    rest = [values for name, values in best["shares"].items() if name not in own]
    if rest:
        layers["others"] = [sum(column) for column in zip(*rest, strict=True)]
    marks, floor = [], [0.0] * len(odds)
    for slot, (name, values) in enumerate(layers.items()):
        top = [below + value for below, value in zip(floor, values, strict=True)]
        marks.append(
            Area(name, [(odds[n], floor[n], top[n]) for n in order], slot if name != "others" else -1)
        )
        floor = top
    return Chart(
        "shares",
        "Who is asked, by lambda",
        Axis("lambda", odds[order[0]], odds[order[-1]], "odds", True),
        Axis("share of questions", 0.0, 1.0, "percent"),
        marks,
    )


def _calibration(calibration: Mapping[str, Any]) -> Chart:
    bins = [(told, seen) for told, seen, cells in calibration["bins"] if told is not None and cells >= 5]
    marks: list[Mark] = [
        Line("as it should be", [(0.0, 0.0), (1.0, 1.0)], -1, dashed=True),
        Line("", bins, 0),
        Dots("observed, by tenths of what was predicted", bins, 0),
    ]
    return Chart(
        "calibration",
        "Predicted against observed accuracy",
        Axis("predicted accuracy", 0.0, 1.0, "percent"),
        Axis("observed accuracy", 0.0, 1.0, "percent"),
        marks,
        "Of cells of a question and a candidate; tenths with fewer than 5 are left out.",
    )


def _tokens(best: Mapping[str, Any]) -> Chart:
    lines = {name: [b for b in row["bins"] if None not in b] for name, row in best["tokens"].items()}
    values = [value for bins in lines.values() for pair in bins for value in pair]
    x = Axis.over("predicted output tokens", values, "number", log=True)
    ends = (min(values, default=0.0), max(values, default=1.0))
    few = len(lines) <= 8
    marks: list[Mark] = [Line("as it should be", [(ends[0], ends[0]), (ends[1], ends[1])], -1, dashed=True)]
    marks += [
        Dots(name if few else "one candidate each", [(told, real) for told, real in bins], slot if few else 0)
        for slot, (name, bins) in enumerate(lines.items())
    ]
    y = Axis("actual output tokens", x.low, x.high, "number", x.log)
    return Chart(
        "tokens",
        "Predicted against actual tokens",
        x,
        y,
        marks,
        "Each dot is an eighth of a candidate's questions, by predicted tokens.",
    )


def _token_table(best: Mapping[str, Any]) -> Table:
    head = ("candidate", "tokens, predicted over actual", "within 200 tokens", "within 600 tokens")
    return Table(
        head,
        [
            [
                name,
                f"{row['tokens_predicted_over_actual']:.3f}" if row["tokens_predicted_over_actual"] else "-",
                shown(row["within_200"], "percent"),
                shown(row["within_600"], "percent"),
            ]
            for name, row in best["tokens"].items()
        ],
    )
