"""Estimators against every way not to route, on a table of recorded outcomes; nothing is asked of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rtr_ray import registry
from rtr_ray.corpus import filesystem, list_files
from rtr_ray.encoders.base import Encoder
from rtr_ray.errors import ConfigError, DataError
from rtr_ray.estimators import KNOWN
from rtr_ray.estimators.base import Estimator, Profiles, related
from rtr_ray.outcomes import pivot, read_long, split_rows
from rtr_ray.quality.measures import Yardstick
from rtr_ray.quality.trial import Part, Trial, paid
from rtr_ray.types import BoolArray, Candidate, FloatArray, IntArray, Outcomes

TRAIN_SHARE = 0.7
RESAMPLES = 1000
_LEAST_QUERIES = 20
_LEAST_CELLS = 10  # of a candidate in a part; half of the queries of a part that has fewer than twice that
_SAMPLE = "sample"


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table of outcomes, encoded once for all splits."""

    name: str
    whole: Outcomes
    halves: tuple[Outcomes, Outcomes] | None
    embeddings: FloatArray  # (M, D)
    train_M: BoolArray  # its own split
    test_M: BoolArray
    ood_M: BoolArray
    notes: tuple[str, ...] = ()
    profiles: Profiles = field(default_factory=lambda: Profiles({}, {}))
    """Of models and strategies by their names: a table of outcomes has no profile texts."""

    @classmethod
    def read(cls, uri: str, encoder: Encoder) -> Table:
        """Read and encode.

        Raises:
            DataError: If the table is damaged, has one candidate only, or too few queries.
        """
        long = read_long(uri)
        long = long.append_column(_SAMPLE, _samples(uri, len(long)))
        whole = pivot(long)
        if len(whole.candidates) < 2:
            raise DataError(
                f"{uri} has outcomes of one candidate, {whole.candidates[0]}; where there is no choice there "
                "is nothing to route."
            )
        if len(whole.query_ids) < _LEAST_QUERIES:
            raise DataError(
                f"{uri} has {len(whole.query_ids)} queries; {_LEAST_QUERIES} are needed to say anything."
            )
        place = {name: row for row, name in enumerate(whole.query_ids)}

        def marked(part: pa.Table) -> BoolArray:
            found_M = np.zeros(len(place), dtype=bool)
            found_M[[place[name] for name in pc.unique(part["query_id"]).to_pylist() if name in place]] = True
            return found_M

        train_M, test_M = (marked(split_rows(long, name)) for name in ("train", "test"))
        ood_M = marked(split_rows(long, None, ood=True))
        return cls(
            uri,
            whole,
            _halves(long, whole),
            encoder.encode(whole.queries),
            train_M,
            test_M,
            ood_M,
            tuple(_notes(uri, whole)),
            _named(whole.candidates, encoder),
        )

    def noted(self, notes: Iterable[str]) -> Table:
        """With more that a reader must know."""
        return replace(self, notes=(*self.notes, *notes))

    def scorable(self, parts: Sequence[BoolArray]) -> Table:
        """Without candidates of which a part has so few scored cells that their mean would be luck.

        Raises:
            DataError: If fewer than two are left.
        """
        whole = self.whole
        seen_MC = ~(np.isnan(whole.accuracy) | np.isnan(whole.output_tokens) | np.isnan(paid(whole)))
        needed = [min(_LEAST_CELLS, -(-int(mask_M.sum()) // 2)) for mask_M in parts]
        counts = [seen_MC[mask_M].sum(axis=0) for mask_M in parts]
        enough_C = np.all([count_C >= least for count_C, least in zip(counts, needed, strict=True)], axis=0)
        if enough_C.all():
            return self
        few = [
            f"{candidate} ({' + '.join(str(count_C[c]) for count_C in counts)})"
            for c, candidate in enumerate(whole.candidates)
            if not enough_C[c]
        ]
        asked = " + ".join(map(str, needed))
        told = "too few cells with accuracy, tokens and cost"
        told += " in train + test" if len(parts) > 1 else ""
        if enough_C.sum() < 2:
            raise DataError(
                f"{self.name} has {told} for {', '.join(few)}; {asked} are needed of two candidates or more."
            )
        kept = np.flatnonzero(enough_C)
        halves = self.halves and (columns(self.halves[0], kept), columns(self.halves[1], kept))
        left_out = replace(self, whole=columns(whole, kept), halves=halves)
        return left_out.noted([f"Left out, for {told} ({asked} are needed): {', '.join(few)}."])

    def part(self, mask_M: BoolArray) -> Part:
        """Some of the queries, to score on."""
        halves = None if self.halves is None else (self.halves[0].rows(mask_M), self.halves[1].rows(mask_M))
        return Part(self.whole.rows(mask_M), halves, self.embeddings[mask_M])

    def splits(self, repeats: int | None) -> Iterator[tuple[int | None, BoolArray, BoolArray]]:
        """(seed, train, test): the table's own split, or random ones that keep related queries together."""
        if repeats is None:
            yield None, self.train_M, self.test_M
            return
        rest_M = ~self.ood_M
        group_M = related(self.whole)
        groups = np.unique(group_M[rest_M])
        for seed in range(repeats):
            drawn = np.random.default_rng(seed).permutation(groups)
            known = np.zeros(int(group_M.max()) + 1, dtype=bool)
            known[drawn[: round(TRAIN_SHARE * len(drawn))]] = True
            yield seed, rest_M & known[group_M], rest_M & ~known[group_M]


def columns(outcomes: Outcomes, kept: IntArray) -> Outcomes:
    """Some of the candidates."""
    arrays: dict[str, Any] = {
        name: getattr(outcomes, name)[:, kept]
        for name in ("accuracy", "input_tokens", "output_tokens", "cost_usd", "cut", "max_tokens", "runs")
    }
    return replace(outcomes, candidates=tuple(outcomes.candidates[c] for c in kept), **arrays)


def _named(candidates: Sequence[Candidate], encoder: Encoder) -> Profiles:
    models = sorted({candidate.model for candidate in candidates})
    strategies = sorted({candidate.strategy for candidate in candidates})
    rows_ND = encoder.encode([*models, *strategies])
    return Profiles(
        dict(zip(models, rows_ND, strict=False)),
        dict(zip(strategies, rows_ND[len(models) :], strict=True)),
    )


def _samples(uri: str, rows: int) -> pa.Array:
    """The column that numbers the runs of a cell, where the files have one."""
    system, _ = filesystem(uri)
    parts: list[pa.ChunkedArray] = []
    for file in list_files(uri, "parquet"):
        with system.open_input_file(file.path) as source:
            parquet = pq.ParquetFile(source)
            if _SAMPLE not in parquet.schema_arrow.names:
                return pa.nulls(rows, pa.int64())
            parts.append(parquet.read(columns=[_SAMPLE])[_SAMPLE].cast(pa.int64()))
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.int64())


def _halves(long: pa.Table, whole: Outcomes) -> tuple[Outcomes, Outcomes] | None:
    """Even and odd runs, in the queries and candidates of the whole; None where most cells have one run."""
    numbers = long[_SAMPLE]
    if numbers.null_count or np.median(whole.runs[whole.runs > 0]) < 2:
        return None
    even = pc.equal(pc.bit_wise_and(numbers, 1), 0)
    try:
        found = [pivot(long.filter(mask), whole.candidates) for mask in (even, pc.invert(even))]
    except DataError:
        return None
    place = {name: row for row, name in enumerate(whole.query_ids)}
    halves = []
    for half in found:
        row_H = np.array([place[name] for name in half.query_ids])
        halves.append(_spread(half, row_H, whole))
    return halves[0], halves[1]


def _spread(half: Outcomes, row_H: IntArray, whole: Outcomes) -> Outcomes:
    """A half in the rows of the whole; NaN where it has no run."""
    arrays: dict[str, Any] = {}
    for name in ("accuracy", "input_tokens", "output_tokens", "cost_usd", "cut", "max_tokens"):
        arrays[name] = np.full(whole.accuracy.shape, np.nan)
        arrays[name][row_H] = getattr(half, name)
    runs = np.zeros(whole.runs.shape, dtype=whole.runs.dtype)
    runs[row_H] = half.runs
    return Outcomes(whole.query_ids, whole.queries, whole.candidates, runs=runs, **arrays)


def _split_notes(table: Table, train_M: BoolArray, test_M: BoolArray) -> Iterator[str]:
    """What a reader must know of a table's own split."""
    whole = table.whole
    texts = np.array(whole.queries, dtype=object)
    twice = len(set(texts[train_M]) & set(texts[test_M]))
    if twice:
        yield f"{twice} texts are in train and in test: the figures of the table's own split are too good."
    both = int((table.train_M & table.test_M).sum())
    if both:
        yield f"{both} query ids are in train and in test: they are left out of test."
    names = np.array(whole.datasets or [""] * len(texts), dtype=object)
    unknown = sorted(set(names[test_M]) - set(names[train_M]))
    if unknown:
        count = int(np.isin(names[test_M].astype(str), unknown).sum())
        yield f"Nothing was learned from {', '.join(unknown)}, which {count} of the test queries are from."


def _notes(uri: str, whole: Outcomes) -> Iterator[str]:
    """What a reader of the figures must know of a table."""
    graded = whole.accuracy[~np.isnan(whole.accuracy)]
    if len(graded) and (graded == graded[0]).all() and graded[0] in (0, 1):
        yield (
            f"All outcomes are {'right' if graded[0] else 'wrong'}: the cheapest candidate is as good as "
            "any, and there is nothing to learn."
        )
    if np.isnan(whole.cost_usd).all():
        yield f"{uri} has no cost_usd: costs are output tokens here."
    missing = float(np.isnan(whole.accuracy).mean())
    if missing:
        yield f"{missing:.0%} of the cells were not run: a router is not given what nobody can score."


@dataclass(slots=True)
class Evaluation:
    """Estimators on a table."""

    table: Table
    estimators: Mapping[str, Estimator]
    repeats: int | None = None  # None: the table's own split
    resamples: int = RESAMPLES
    told: Callable[[str], object] = lambda text: None

    def run(self) -> dict[str, Any]:
        """All splits, all estimators.

        Returns:
            The content of the JSON file, see docs/quality.md.

        Raises:
            DataError: If a split has nothing to train on or to score on.
        """
        splits = [
            (seed, train_M & ~self.table.ood_M, test_M & ~train_M & ~self.table.ood_M)
            for seed, train_M, test_M in self.table.splits(self.repeats)
        ]
        for _, *masks in splits:
            for name, mask_M in zip(("train", "test"), masks, strict=True):
                if not mask_M.any():
                    raise self._empty(name)
        if self.repeats is not None:
            table = self.table.scorable([~self.table.ood_M])
        else:
            _, train_M, test_M = splits[0]
            table = self.table.scorable([train_M, test_M])
            table = table.noted(_split_notes(table, train_M, test_M))
        here = replace(self, table=table)
        return here._joined([here._split(*one) for one in splits])

    def _empty(self, name: str) -> DataError:
        """There is nothing to train on, or nothing to score on."""
        table = self.table
        outside = " outside of those marked as ood" if table.ood_M.any() else ""
        rest = "." if self.repeats is not None or table.ood_M.all() else "; --repeats makes random ones."
        return DataError(f"{table.name} has no query of split '{name}'{outside}{rest}")

    def _split(self, seed: int | None, train_M: BoolArray, test_M: BoolArray) -> dict[str, Any]:
        parts = {"test": self.table.part(test_M)}
        if self.table.ood_M.any():
            parts["ood"] = self.table.part(self.table.ood_M)
        trial = Trial(
            self.table.whole.rows(train_M), self.table.embeddings[train_M], parts, self.table.profiles
        )
        best = trial.best_single()
        sticks = {
            name: Yardstick.of(
                part,
                trial.fixed(part),
                trial.oracle(part),
                best,
                self.resamples,
                seed if seed is not None else 0,
            )
            for name, part in parts.items()
        }
        routers = []
        for name, estimator in self.estimators.items():
            for part_name, scored in trial.routed(name, estimator).items():
                routers.append({"part": part_name, **sticks[part_name].measured(scored)})
            self.told(name if seed is None else f"split {seed + 1}, {name}")
        cost_C, accuracy_C = sticks["test"].cost[0], sticks["test"].accuracy[0]
        tokens_C = np.nanmean(parts["test"].outcomes.output_tokens, axis=0)
        return {
            "seed": seed,
            "n_train": int(train_M.sum()),
            "n_test": int(test_M.sum()),
            "candidates": np.stack([accuracy_C, cost_C, tokens_C]),
            "anchors": {name: stick.anchors() for name, stick in sticks.items()},
            "routers": routers,
        }

    def _joined(self, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Means over splits. Their intervals are means, too: queries return in other splits, so that many
        splits are not many times as sure as one."""
        values = np.mean([one["candidates"] for one in found], axis=0)
        names = ("accuracy", "cost_usd", "output_tokens")
        anchors = mean_of([one["anchors"] for one in found])
        report = {
            "table": self.table.name,
            "n_train": round(np.mean([one["n_train"] for one in found])),
            "n_test": round(np.mean([one["n_test"] for one in found])),
            "n_ood": int(self.table.ood_M.sum()),
            "repeats": self.repeats,
            "seeds": [one["seed"] for one in found],
            "notes": list(self.table.notes),
            "cost_unit": "output_tokens" if np.isnan(self.table.whole.cost_usd).all() else "usd",
            "candidates": [
                {
                    "model": candidate.model,
                    "strategy": candidate.strategy,
                    "samples": candidate.samples,
                    **{name: float(row[column]) for name, row in zip(names, values, strict=True)},
                }
                for column, candidate in enumerate(self.table.whole.candidates)
            ],
            "anchors": anchors["test"],
            "anchors_ood": anchors.get("ood"),
            "routers": [
                mean_of([one["routers"][n] for one in found]) for n in range(len(found[0]["routers"]))
            ],
        }
        return {**report, "verdict": verdict(report["routers"])}


def mean_of(values: Sequence[Any]) -> Any:
    """The mean of equal structures, number by number; None only where all are. Words must be the same or
    are those of most."""
    first = next((value for value in values if value is not None), None)
    if isinstance(first, dict):
        keys = dict.fromkeys(key for value in values if value is not None for key in value)
        return {key: mean_of([value.get(key) for value in values if value is not None]) for key in keys}
    if isinstance(first, list):
        return [mean_of(list(column)) for column in zip(*(v for v in values if v is not None), strict=True)]
    if isinstance(first, bool) or not isinstance(first, int | float):
        return max(values, key=values.count) if first is not None else None
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def verdict(routers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether routing pays on the test part, by the best estimator that is none of the anchors."""
    tried = [one for one in routers if one["part"] == "test" and one["name"] not in ("prior", "oracle")]
    if not tried:
        return {"route": False, "estimator": None, "reason": "No estimator was tried that looks at queries."}
    best = max(tried, key=lambda one: one["aiq_over_hull"])
    low, high = best["aiq_over_hull_interval"]
    route = low is not None and low > 0
    gained = 100 * best["aiq_over_hull"]
    span = "" if low is None else f" (95% interval {100 * low:+.1f} to {100 * high:+.1f})"
    saved = best["cost_saved_within_1pt"]
    at = "" if saved is None else f"; it saves {saved:.0%} of the best single candidate's cost within 1 point"
    reason = f"{best['name']} gains {gained:+.1f} points over the best mix that looks at no query{span}{at}."
    return {
        "route": route,
        "estimator": best["name"],
        "reason": ("Routing pays here: " if route else "Do not route here: ") + reason,
    }


def estimators_of(names: Sequence[str]) -> dict[str, Estimator]:
    """Estimators by their names, as a user gives them: a kind, or JSON.

    Raises:
        ConfigError: If there is no such kind.
    """
    import json

    found: dict[str, Estimator] = {}
    for name in names:
        try:
            spec = json.loads(name) if name.lstrip().startswith("{") else {"kind": name}
        except ValueError as error:
            raise ConfigError(f"--estimator is not JSON: {error}.") from None
        found[name] = registry.build(spec, KNOWN, "estimator")
    return found
