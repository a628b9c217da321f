"""A job without a router, checked: what is labelled, learned from and run, all under one budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal

from rich.table import Table

from rtr_ray import grading, registry
from rtr_ray.collection import Collection
from rtr_ray.config import CollectFile, JobFile, RouterKeys
from rtr_ray.encoders import KNOWN as ENCODERS
from rtr_ray.encoders.base import Encoder
from rtr_ray.errors import BudgetError, ConfigError
from rtr_ray.estimators import KNOWN as ESTIMATORS
from rtr_ray.estimators.base import Estimator
from rtr_ray.labels import Labels, check_one_call, limit
from rtr_ray.policies import KNOWN as POLICIES
from rtr_ray.policies.base import Budgeted
from rtr_ray.pool import Pool, fingerprint
from rtr_ray.screen import money
from rtr_ray.summary import plain
from rtr_ray.training import encoder_spec


@dataclass(frozen=True, slots=True, eq=False)
class Labelling:
    """A job without a router, every part of which has been checked, before anything is started."""

    file: JobFile
    budget_usd: Decimal
    policy: Budgeted
    encoder: Encoder
    estimator: Estimator
    collection: Collection  # of the whole corpus: `sample` is decided as labels come in

    @classmethod
    def check(cls, file: JobFile) -> Labelling:
        """Read everything that the file names.

        Raises:
            RtrError: The first thing that is wrong, in one sentence.
        """
        budget = file.budget_usd
        if budget is None:
            raise ConfigError(
                "The job has no router, so a sample is labelled first, and that takes money. Give a "
                "budget_usd (or --budget-usd) for labels and answers together, or a router."
            )
        if file.grader is None:
            raise ConfigError(
                "The job has no router, so a sample is labelled first, and nobody says which answers are "
                "right. Give a grader: numeric, exact or multiple_choice with corpus.columns.reference, "
                "{kind: reference, candidate: model:strategy}, or {kind: judge, candidate: model:strategy}; "
                "or give a router."
            )
        policy = registry.build(file.policy_spec, POLICIES, "policy")
        if not (isinstance(policy, Budgeted) and policy.divides_usd):
            raise ConfigError(
                f"The job has no router, and its policy '{file.policy_spec['kind']}' does not divide "
                "budget_usd among the rows. Leave policy out, or give a router."
            )
        if file.budget_currency != "tokens":
            raise ConfigError(
                f"The job has no router, and budget_currency is '{file.budget_currency}': engines that stay "
                "up from labels to answers are not counted by the hour. Leave budget_currency out, or give a "
                "router."
            )
        spec = encoder_spec(file.labels.encoder)
        encoder: Encoder = registry.build(spec, ENCODERS, "labels.encoder")
        estimator: Estimator = registry.build(file.labels.estimator, ESTIMATORS, "labels.estimator")
        found = cls(file, budget, policy, encoder, estimator, Collection.check(_collect(file)))
        check_one_call(found.pool, found.limit_usd, file.labels.share)
        return found

    @property
    def pool(self) -> Pool:
        """Its candidates."""
        return self.collection.pool

    @property
    def limit_usd(self) -> Decimal:
        """What labels may cost at most."""
        return limit(self.budget_usd, self.file.labels.share)

    @property
    def uri(self) -> str:
        """The folder of the labels."""
        return _uri(self.file)

    @property
    def outcomes(self) -> str:
        """The folder of their outcomes."""
        return self.collection.file.output

    @property
    def router(self) -> str:
        """The folder of the router that is trained on them."""
        return f"{self.file.output.rstrip('/')}-router"

    @property
    def fingerprints(self) -> dict[str, str]:
        """What must be the same for labels to be gone on with."""
        labels = self.file.labels
        specs = [self.file.policy_spec, self.file.grader, encoder_spec(labels.encoder), labels.estimator]
        return {
            "config": fingerprint([*specs, self.file.sandbox_keys.model_dump()]),
            "corpus": self.collection.corpus.fingerprint,
            "pool": self.pool.fingerprint,
        }

    def sample(self, rows: int, app: str | None) -> Collection:
        """The collection of so many labelled rows.

        Args:
            rows: How many.
            app: The prefix of running applications; None: the engines are its own.
        """
        file = self.collection.file
        changed = file.model_copy(
            update={"sample": rows, "budget_usd": self.limit_usd, "cluster": _attached(self.file, app)}
        )
        return replace(self.collection, file=changed)

    def routed(self, labels: Labels, app: str | None) -> JobFile:
        """The job with its router, for what the labels have left of the budget.

        Graders that compare answers to the same query serve the labels alone.

        Raises:
            BudgetError: If they have left nothing.
        """
        left = self.budget_usd - labels.gone_usd
        if left <= 0:
            raise BudgetError(
                f"Labels have taken ${plain(labels.gone_usd)}, and budget_usd is ${plain(self.budget_usd)} "
                "for labels and answers together. Raise budget_usd."
            )
        comparing = isinstance(self.collection.grader, grading.Reference | grading.Judge)
        return self.file.model_copy(
            update={
                "router": RouterKeys(path=self.router),
                "budget_usd": left,
                "grader": None if comparing else self.file.grader,
                "cluster": _attached(self.file, app),
            }
        )

    def split_table(self) -> Table:
        """How the budget is split, before anything is known."""
        labels, limit_usd = self.file.labels, self.limit_usd
        table = Table(title=f"How {money(self.budget_usd)} is split", title_justify="left")
        table.add_column("for")
        table.add_column("dollars", justify="right", no_wrap=True)
        table.add_column("what")
        judged = isinstance(self.collection.grader, grading.Judge)
        table.add_row(
            "labels",
            f"at most {money(limit_usd)}",
            f"up to {labels.rows:,} rows, each answered by all {len(self.pool.candidates)} candidates"
            + (" and judged" if judged else ""),
        )
        table.add_row(
            "answers", f"at least {money(self.budget_usd - limit_usd)}", "all rows, each by one candidate"
        )
        return table


def _uri(file: JobFile) -> str:
    return f"{file.output.rstrip('/')}-labels"


def _attached(file: JobFile, app: str | None) -> object:
    return file.cluster if app is None else file.cluster.model_copy(update={"serve_app": app})


def _collect(file: JobFile) -> CollectFile:
    return CollectFile(
        pool=file.pool,
        queries=file.corpus,
        output=f"{_uri(file)}/outcomes",
        grader=file.grader,
        encoder=file.encoder,
        dispatch=file.dispatch,
        sandbox=file.sandbox,
        cluster=file.cluster,
    )
