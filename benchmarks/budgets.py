"""Three budgets on the models that ship inside, through real vLLM: what each buys, and that it is kept.

    python benchmarks/budgets.py

answers the demo's held-out questions under 10%, 30% and 60% of what the dearest candidate would cost for all
of them, each as a run of its own with the engines left up in between, and draws spent dollars against
accuracy beside the curve that the plan had promised. `--questions` asks fewer.
"""

from __future__ import annotations

import argparse
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.table import Table

from rtr_ray.config import JobFile, load_pool
from rtr_ray.distributed.batch import encoders_of, plan_job, run_job, terminable
from rtr_ray.distributed.cluster import connected, deployment_needs
from rtr_ray.distributed.demo import APPS, prepare
from rtr_ray.distributed.deployments import Deployments
from rtr_ray.distributed.guard import Guard
from rtr_ray.job import Job
from rtr_ray.screen import Screen, money, percent

OUT = Path(__file__).parent / "out"
SHARES = (0.1, 0.3, 0.6)


def job(inputs: dict[str, str], output: str, budget_usd: Decimal) -> JobFile:
    """A run of the embedded pool under a budget, attached to engines that are up."""
    return JobFile.model_validate(
        {
            "pool": "embedded",
            "router": inputs["router"],
            "corpus": {"path": inputs["questions"], "columns": {"query": "query", "reference": "reference"}},
            "output": output,
            "grader": "numeric",
            "budget_usd": str(budget_usd),
            "cluster": {"serve_app": APPS},
        }
    )


def runs(folder: Path, questions: int, screen: Screen) -> dict[str, Any]:
    """All of them; what was answered by an earlier call is not asked again."""
    inputs = prepare(str(folder / "demo"), questions, screen)
    pool = load_pool("embedded")
    deployments = Deployments(APPS)
    everything = list(pool.deployments.values())
    plenty = job(inputs, str(folder / "plan"), Decimal(1000))
    found: dict[str, Any] = {"runs": []}
    needs = sum((deployment_needs(d) for d in everything), encoders_of(plenty.encoder))
    with connected(None, needs), terminable():
        guard = Guard(f"guard-{APPS}", [deployments.app_name(d) for d in everything])
        gone = False
        try:
            guard.start()
            deployments.start(everything)
            plan = plan_job(Job.check(plenty), screen)
            deployments.wait(everything, screen)
            dearest = max(row["cost_usd"] for row in plan["if_all_went_to"])
            found |= {"questions": plan["rows"], "dearest_usd": dearest, "curve": plan["curve"]}
            for share in SHARES:
                budget = Decimal(f"{share * dearest:.8f}")
                summary = run_job(Job.check(job(inputs, str(folder / f"{share:g}"), budget)), screen)
                promised = json.loads((folder / f"{share:g}" / "plan.json").read_text())
                found["runs"].append(_row(share, budget, promised, summary))
        finally:
            with screen.stage("stop"):
                try:
                    gone = deployments.stop(everything)
                finally:
                    guard.stop(gone)
    return found


def _row(share: float, budget: Decimal, plan: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    spent = Decimal(summary["cost_usd"]["spent"])
    return {
        "share_of_dearest": share,
        "budget_usd": str(budget),
        "spent_usd": str(spent),
        "spent_share": float(spent / budget),
        "more_would_help": plan["cost_usd"] > 0.97 * float(budget),
        "expected_accuracy": plan["accuracy"],
        "accuracy": summary["accuracy"],
        "answered": summary["rows"]["answered"],
        "skipped": summary["rows"]["skipped_budget"],
        "status": summary["status"],
    }


def table(found: dict[str, Any]) -> Table:
    """The runs, one a row."""
    shown = Table(title=f"{found['questions']:,} held-out questions, real vLLM", title_justify="left")
    for name in (
        "of the dearest plan",
        "budget",
        "spent",
        "of the budget",
        "accuracy",
        "promised",
        "skipped",
    ):
        shown.add_column(name, justify="right")
    for row in found["runs"]:
        shown.add_row(
            percent(row["share_of_dearest"]),
            money(Decimal(row["budget_usd"])),
            money(Decimal(row["spent_usd"])),
            percent(row["spent_share"]) + ("" if row["more_would_help"] else " (more would not help)"),
            percent(row["accuracy"]),
            percent(row["expected_accuracy"]),
            f"{row['skipped']:,}",
        )
    return shown


def draw(found: dict[str, Any], path: Path) -> None:
    """Accuracy against dollars: promised and reached."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    curve = [point for point in found["curve"] if point["budget_usd"] < 100]
    axes.plot(
        [p["cost_usd"] for p in curve], [100 * p["accuracy"] for p in curve], label="promised by the plan"
    )
    axes.plot(
        [float(row["spent_usd"]) for row in found["runs"]],
        [100 * row["accuracy"] for row in found["runs"]],
        "o",
        label="spent and reached",
    )
    for row in found["runs"]:
        axes.axvline(float(row["budget_usd"]), color="grey", linewidth=0.7, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlabel("dollars (dashed: the budgets)")
    axes.set_ylabel("right answers, %")
    axes.set_title("What a budget buys")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run, draw, write down; a budget that was exceeded or left unused is an error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=1200)
    parser.add_argument("--folder", type=Path, default=Path("runs/budgets"))
    arguments = parser.parse_args()
    screen = Screen()
    with screen.running():
        found = runs(arguments.folder, arguments.questions, screen)
    screen.console.print(table(found))
    OUT.mkdir(exist_ok=True)
    (OUT / "budgets.json").write_text(json.dumps({"name": "budgets", **found}, indent=2) + "\n")
    draw(found, OUT / "budgets.png")
    screen.say(f"{OUT / 'budgets.json'}, {OUT / 'budgets.png'}")
    wrong = [
        row["budget_usd"]
        for row in found["runs"]
        if row["spent_share"] > 1 or (row["spent_share"] < 0.97 and row["more_would_help"])
    ]
    accuracies = [row["accuracy"] for row in found["runs"]]
    if wrong or accuracies != sorted(accuracies):
        raise SystemExit(f"Not within 97% to 100% of the budget: {wrong}; accuracies {accuracies}.")


if __name__ == "__main__":
    main()
