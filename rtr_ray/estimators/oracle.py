"""The true table, for queries whose outcomes were recorded: what no router can beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rtr_ray.errors import DataError
from rtr_ray.estimators.base import Profiles, State, check_fit
from rtr_ray.types import Candidate, Estimate, FloatArray, IntArray, Outcomes


@dataclass(frozen=True, slots=True)
class Oracle:
    """Knows what was recorded; raises for any other query, since it never invents a cell."""

    kind: ClassVar[str] = "oracle"

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedOracle:
        """Keep the recorded cells; queries with the same embedding share their mean."""
        check_fit(outcomes, embeddings_MD)
        unique_UD, where_M = np.unique(
            np.ascontiguousarray(embeddings_MD, dtype=np.float32), axis=0, return_inverse=True
        )
        return FittedOracle(
            outcomes.candidates,
            unique_UD,
            *(
                _group_mean(values_MC, where_M.reshape(-1), len(unique_UD))
                for values_MC in (outcomes.accuracy, outcomes.output_tokens)
            ),
        )


@dataclass(frozen=True, slots=True, eq=False)
class FittedOracle:
    """Recorded cells by embedding. A cell that was not run is predicted as never correct."""

    candidates: tuple[Candidate, ...]
    embeddings_UD: FloatArray
    accuracy_UC: FloatArray
    output_tokens_UC: FloatArray
    kind: ClassVar[str] = "oracle"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """The recorded values.

        Raises:
            DataError: If an embedding was not recorded.
        """
        place = {row.tobytes(): index for index, row in enumerate(self.embeddings_UD)}
        rows_Q = [place.get(row.tobytes(), -1) for row in np.asarray(embeddings_QD, dtype=np.float32)]
        if rows_Q and min(rows_Q) < 0:
            raise DataError(
                f"The oracle was asked for {rows_Q.count(-1)} of {len(rows_Q)} queries whose outcomes were "
                "not recorded. It knows the queries that it was fitted on, no others."
            )
        index_Q = np.array(rows_Q, dtype=np.intp)
        accuracy_QC = np.nan_to_num(self.accuracy_UC[index_Q], nan=0.0)
        tokens_QC = self.output_tokens_UC[index_Q]
        filled_QC = np.where(np.isnan(tokens_QC), np.nanmax(self.output_tokens_UC, axis=0), tokens_QC)
        return Estimate(accuracy_QC, filled_QC, filled_QC)

    def state(self) -> State:
        """The recorded cells."""
        return State(
            {name: getattr(self, name) for name in ("embeddings_UD", "accuracy_UC", "output_tokens_UC")}, {}
        )

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedOracle:
        """The estimator that `state` was taken from."""
        return cls(candidates, **state.arrays)


def _group_mean(values_MC: FloatArray, group_M: IntArray, groups: int) -> FloatArray:
    total_UC = np.zeros((groups, values_MC.shape[1]))
    count_UC = np.zeros_like(total_UC)
    np.add.at(total_UC, group_M, np.nan_to_num(values_MC))
    np.add.at(count_UC, group_M, ~np.isnan(values_MC))
    with np.errstate(invalid="ignore"):
        mean_UC: FloatArray = (total_UC / np.where(count_UC == 0, np.nan, count_UC)).astype(np.float32)
    return mean_UC
