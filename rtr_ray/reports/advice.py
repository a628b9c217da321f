"""What to do next, from what an evaluation found: each piece of advice with the figure that it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_FEW_QUERIES = 1000  # to learn from; with fewer the interval over the hull is about as wide as what is gained
_BADLY_CALIBRATED = 0.1
_OFF_TOKENS = 0.25
_COLLAPSED = 0.98
_NEVER = 0.01


def next_steps(report: Mapping[str, Any], best: Mapping[str, Any] | None) -> list[str]:
    """Sentences, the most important one first."""
    return list(_steps(report, best))


def _steps(report: Mapping[str, Any], best: Mapping[str, Any] | None) -> Iterator[str]:
    single = report["anchors"]["best_single"]
    if best is None:
        yield "Try an estimator that looks at questions: `--estimator knn --estimator auto`."
        return
    if report["verdict"]["route"]:
        yield (
            f"Train it: `rtr-ray train --estimator {best['name']} --outcomes ... --output router`, then let "
            "`rtr-ray plan` say what your budget buys."
        )
    else:
        _low, high = best["aiq_over_hull_interval"]
        yield (
            f"Without routing the best choice is `{single['candidate']}` where accuracy counts, or a mix "
            "along the static hull where money does: a job with the `prior` estimator plans that mix."
        )
        if high is not None and high > 0.01:
            yield (
                f"The question is open: the interval reaches {100 * high:+.1f} points. More labelled "
                "questions make it narrower; `rtr-ray collect` adds to what is there."
            )
    if report["n_train"] < _FEW_QUERIES:
        yield (
            f"{report['n_train']:,.0f} questions are few to learn from; see whether `rtr-ray collect` with a "
            "larger `--sample` changes the verdict."
        )
    yield from _of_predictions(best)
    yield from _of_choices(report, best)
    if not report["anchors"]["oracle"]["cross_fitted"]:
        yield (
            "Each cell was run once, so the oracle knows its luck and the gap looks larger than it is: "
            "`--repeats 2` of `rtr-ray collect` makes it honest."
        )
    if report["repeats"] is None:
        yield "One split is one draw of luck: `--repeats 20` averages over random ones."


def _of_predictions(best: Mapping[str, Any]) -> Iterator[str]:
    ece = best.get("calibration", {}).get("ece")
    if ece is not None and ece > _BADLY_CALIBRATED:
        yield (f"Predicted accuracy is off by {100 * ece:.0f} points on average: forecasts will be, too.")
    off = {
        name: row["tokens_predicted_over_actual"]
        for name, row in best.get("tokens", {}).items()
        if row["tokens_predicted_over_actual"] and abs(row["tokens_predicted_over_actual"] - 1) > _OFF_TOKENS
    }
    if off:
        told = ", ".join(f"`{name}` ({ratio:.2f} of the actual)" for name, ratio in off.items())
        yield f"Lengths are predicted badly for {told}: leave `autopilot` on, which corrects them on the way."


def _of_choices(report: Mapping[str, Any], best: Mapping[str, Any]) -> Iterator[str]:
    shares = best["shares"]
    idle = [name for name, along in shares.items() if max(along) < _NEVER]
    if report["verdict"]["route"] and idle and len(idle) < len(shares):
        yield (
            f"{', '.join(f'`{name}`' for name in idle)} got less than 1% of the questions at any price: "
            "labels for them can be saved."
        )
    if all(max(share[n] for share in shares.values()) > _COLLAPSED for n in range(len(best["points"]))):
        yield "At each price nearly all questions go to one candidate: this router tells no questions apart."
