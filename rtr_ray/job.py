"""A batch job, checked: everything that its file names is read before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtr_ray import grading, registry
from rtr_ray.config import ColumnKeys, JobFile, SandboxKeys, load_pool
from rtr_ray.corpus import Columns, Corpus, Split
from rtr_ray.errors import ConfigError
from rtr_ray.labels import Labels
from rtr_ray.policies import KNOWN
from rtr_ray.policies.base import Budgeted, Grounded, Policy
from rtr_ray.pool import Pool, fingerprint
from rtr_ray.reading import open_corpus
from rtr_ray.router import RouterFolder
from rtr_ray.sandbox import probe

_SPLITS_PER_ACTOR = 16  # a split that comes late, or is done again, should be a small part of the whole


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A job whose every part has been checked, before anything is started."""

    file: JobFile
    pool: Pool
    policy: Policy
    grader: grading.Grader | None
    router: RouterFolder
    corpus: Corpus
    splits: tuple[Split, ...]
    labels: Labels | None = None  # that were paid for from the same budget; file.budget_usd is what is left

    @classmethod
    def check(cls, file: JobFile) -> Job:
        """Read everything that the file names.

        Raises:
            RtrError: The first thing that is wrong, in one sentence.
        """
        check_output(file.output)
        router_keys = file.router_keys
        pool = load_pool(file.pool)
        policy = _policy(file, pool)
        grader = build_grader(file.grader)
        if isinstance(grader, grading.Reference | grading.Judge):
            raise ConfigError(
                f"The grader '{grader.kind}' compares answers to the same query, and a run has one of each. "
                "It serves rtr-ray collect; a run takes exact, numeric, multiple_choice, code or a function."
            )
        router = RouterFolder.load(router_keys.path)
        router.check(pool, router_keys.untrained)
        if router_keys.caution is not None:
            router.check_caution(pool, router_keys.caution)
        if any(pool.strategies[c.strategy].answer == "program" for c in pool.candidates):
            check_sandbox(file.sandbox_keys)
        keys = file.corpus
        columns = columns_of(keys.columns)
        most = file.encoder.actors if isinstance(file.encoder.actors, int) else file.encoder.actors[1]
        corpus, splits = open_corpus(
            keys.path, columns, keys.format, keys.unreadable, least_splits=most * _SPLITS_PER_ACTOR
        )
        return cls(file, pool, policy, grader, router, corpus, splits)

    @property
    def fingerprints(self) -> dict[str, str]:
        """What must be the same for a run to go on."""
        file = self.file
        return {
            "config": fingerprint(
                [
                    file.policy_spec,
                    file.grader,
                    file.router_keys.untrained,
                    file.sandbox_keys.model_dump(),
                    *([file.router_keys.ood.model_dump()] if file.router_keys.ood is not None else []),
                ]
            ),
            "corpus": self.corpus.fingerprint,
            "router": self.router.fingerprint,
            "pool": self.pool.fingerprint,
        }


def _policy(file: JobFile, pool: Pool) -> Policy:
    """The policy for a pool, with the budget that it has to keep to."""
    policy: Policy = registry.build(file.policy_spec, KNOWN, "policy")
    if isinstance(policy, Grounded):
        policy = policy.on(pool)
    if not (isinstance(policy, Budgeted) and policy.divides_usd):
        return policy
    if file.budget_usd is not None:
        return policy.within(float(file.budget_usd), refuse=True)
    if policy.needs_usd:
        raise ConfigError(
            f"The policy '{file.policy_spec['kind']}' divides a budget, and the job has none. Give it a "
            "budget_usd (or --budget-usd), which also is the most that the run may spend."
        )
    return policy


def check_output(output: str) -> None:
    """Refuse an output that would be lost with the job.

    Raises:
        ConfigError: If a Ray job would write into its own working directory.
    """
    relative = "://" not in output and not Path(output).is_absolute()
    if relative and "runtime_resources" in Path.cwd().parts:
        raise ConfigError(
            f"output is '{output}', which lies in the job's own working directory and goes with it. "
            "Give an absolute path that all nodes share, or s3://."
        )


def columns_of(keys: ColumnKeys) -> Columns:
    """The columns that a file names."""
    return Columns(keys.query, keys.id, keys.messages, keys.reference, keys.settings)


def check_sandbox(keys: SandboxKeys) -> None:
    """Refuse programs that this machine cannot isolate as configured.

    Raises:
        SandboxError: With what was found, and what to do.
    """
    probe(keys.mode)


def build_grader(spec: str | Mapping[str, Any] | None) -> grading.Grader | None:
    """The grader of a configuration; None where none is configured.

    Raises:
        ConfigError: If nobody knows it.
    """
    if spec is None:
        return None
    if isinstance(spec, str) and ":" in spec:
        return grading.Own(spec)
    grader: grading.Grader = registry.build(spec, grading.KNOWN, "grader")
    return grader
