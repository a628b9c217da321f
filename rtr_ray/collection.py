"""A collection of outcomes, checked: everything that it names is read before anything is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rtr_ray import grading
from rtr_ray.config import CollectFile, load_pool
from rtr_ray.corpus import Corpus, Split
from rtr_ray.errors import ConfigError
from rtr_ray.job import build_grader, check_output, check_sandbox, columns_of
from rtr_ray.pool import Pool, fingerprint
from rtr_ray.reading import open_corpus
from rtr_ray.types import Candidate

_COMPARING = (grading.Exact, grading.Numeric, grading.MultipleChoice, grading.Code)


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """A collection whose every part has been checked, before anything is started."""

    file: CollectFile
    pool: Pool
    candidates: tuple[Candidate, ...]
    grader: grading.Grader | None
    corpus: Corpus
    splits: tuple[Split, ...]
    pool_fingerprint: str  # of the whole pool, also where only some of it is run
    chosen: Mapping[Candidate, frozenset[str]] | None = None  # ids of the queries; None: all, or `sample`

    @classmethod
    def check(cls, file: CollectFile) -> Collection:
        """Read everything that the file names.

        Raises:
            RtrError: The first thing that is wrong, in one sentence.
        """
        check_output(file.output)
        pool = load_pool(file.pool)
        candidates = _chosen(pool, file.candidates)
        grader = build_grader(file.grader)
        if grader is not None:
            grading.check_candidate(grader, pool.candidates)
        if isinstance(grader, grading.Reference) and Candidate.parse(grader.candidate) not in candidates:
            raise ConfigError(
                f"The grader compares with {grader.candidate}, which is not among the candidates to be run."
            )
        if isinstance(grader, grading.Code) or any(
            pool.strategies[c.strategy].answer == "program" for c in candidates
        ):
            check_sandbox(file.sandbox_keys)
        keys = file.queries
        columns = columns_of(keys.columns)
        if columns.reference is None and isinstance(grader, _COMPARING):
            raise ConfigError(
                f"The grader '{grader.kind}' compares with a reference answer. Name its column "
                "(--reference-column), or grade with reference, judge or a function of your own."
            )
        corpus, splits = open_corpus(keys.path, columns, keys.format, keys.unreadable)
        return cls(file, pool, candidates, grader, corpus, splits, pool.fingerprint)

    @property
    def fingerprints(self) -> dict[str, str]:
        """What must be the same for a collection to go on."""
        found = {"queries": self.corpus.fingerprint}
        if any(len(split.extents) > 1 for split in self.splits):
            # answers are filed by the number of their split, and how files are packed may change one day
            found["splits"] = fingerprint([split.name for split in self.splits])
        return found


def _chosen(pool: Pool, names: Sequence[str] | None) -> tuple[Candidate, ...]:
    if names is None:
        return pool.candidates
    chosen = tuple(Candidate.parse(name) for name in names)
    for candidate in chosen:
        if candidate not in pool.candidates:
            raise ConfigError(
                f"{candidate} is not a candidate of the pool. Known: {', '.join(map(str, pool.candidates))}."
            )
    return chosen
