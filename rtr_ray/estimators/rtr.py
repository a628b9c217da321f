"""Route-To-Reason: learned embeddings of models and strategies, one shared layer, two heads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as nn

from rtr_ray.errors import ConfigError
from rtr_ray.estimators.base import Profiles, check_fit, validation_split
from rtr_ray.estimators.lognormal import capped_mean, quantile
from rtr_ray.estimators.rtr_table import ACCURACY, LOG_TOKENS, MIN_SPREAD, SPREAD, Z95, FittedRTR
from rtr_ray.types import BoolArray, Candidate, FloatArray, Outcomes


@dataclass(frozen=True, slots=True)
class RTR:
    """The estimator of the paper, trained for all candidates of a batch of queries at once.

    z = ReLU(Wq q + Wm g(m) + Ws g(s) + w log(samples) + b), then a linear head for the logit
    of accuracy (BCE) and heads for the length of the answer.

    Lengths: the paper fits tokens by squared error (Eq. 7). Here their logarithm is normal with
    a predicted mean and spread, answers cut at max_tokens count as censored, and the mean that
    is predicted is that of the cut length, corrected per candidate on held-out rows. So sums of
    predicted tokens, and with them dollars, come out right.

    Source:
        Route-To-Reason (WWW '26), Eq. 1-7, section 4.1.5 (768 units, Adam, 1e-3, batches of 32).
        Ours: the split first layer, early stopping on a part of train, the length model,
        `weight_decay` and `dropout`.
    """

    hidden: int = 768
    learned: int = 64  # dimensions of the learned part of a model's or strategy's embedding
    learning_rate: float = 1e-3
    batch_size: int = 32
    max_epochs: int = 60
    patience: int = 8  # epochs without a better validation loss before training stops
    validation_share: float = 0.15
    weight_decay: float = 0.0
    dropout: float = 0.0
    token_weight: float = 0.3  # of the length loss against the accuracy loss
    seed: int = 0
    kind: ClassVar[str] = "rtr"

    def __post_init__(self) -> None:
        if min(self.hidden, self.learned, self.batch_size, self.max_epochs, self.patience) < 1:
            raise ConfigError(
                "estimator rtr: hidden, learned, batch_size, max_epochs and patience are 1 at least."
            )
        if not 0 < self.validation_share < 1:
            raise ConfigError(
                f"estimator rtr: validation_share is {self.validation_share}; it lies between 0 and 1."
            )

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedRTR:
        """Train on the outcomes, stop early on a part of them.

        Raises:
            DataError: If a candidate has no outcome, or the shapes do not fit.
        """
        check_fit(outcomes, embeddings_MD)
        held_out_M = validation_split(outcomes, self.validation_share, self.seed)
        if held_out_M.all() or not held_out_M.any():  # a handful of queries: nothing to hold out
            held_out_M = np.zeros(len(held_out_M), dtype=bool)
        targets = _Targets.of(outcomes)
        net = _Net(self, embeddings_MD.shape[1], outcomes.candidates, profiles)
        with _one_thread():
            _train(self, net, targets, embeddings_MD, held_out_M)
        return _calibrated(net.fitted(targets), outcomes, embeddings_MD, held_out_M)


@dataclass(frozen=True, slots=True, eq=False)
class _Targets:
    """What is learned from, as tensors; (M, C) each, with NaN where nothing was recorded."""

    accuracy: torch.Tensor
    log_tokens: torch.Tensor  # standardised, per sample
    censored: torch.Tensor
    mean: float
    scale: float
    max_tokens: dict[str, float]

    @classmethod
    def of(cls, outcomes: Outcomes) -> _Targets:
        samples_C = np.array([c.samples for c in outcomes.candidates])
        log_MC = np.log(np.maximum(outcomes.output_tokens / samples_C, 1.0))
        mean, scale = float(np.nanmean(log_MC)), max(float(np.nanstd(log_MC)), 1e-3)
        limits = {
            str(candidate): float(np.nanmax(outcomes.max_tokens[:, column]))
            for column, candidate in enumerate(outcomes.candidates)
            if not np.isnan(outcomes.max_tokens[:, column]).all()
        }
        return cls(
            torch.tensor(outcomes.accuracy, dtype=torch.float32),
            torch.tensor((log_MC - mean) / scale, dtype=torch.float32),
            torch.tensor(outcomes.cut > 0.5),
            mean,
            scale,
            limits,
        )


class _Net(torch.nn.Module):
    """The network in its split form."""

    def __init__(self, recipe: RTR, dim: int, candidates: tuple[Candidate, ...], profiles: Profiles) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(recipe.seed)
        self.candidates, self.recipe = candidates, recipe
        self.models = list(dict.fromkeys(c.model for c in candidates))
        self.strategies = list(dict.fromkeys(c.strategy for c in candidates))
        text_m = torch.tensor(np.stack([profiles.models[m] for m in self.models]), dtype=torch.float32)
        text_s = torch.tensor(
            np.stack([profiles.strategies[s] for s in self.strategies]), dtype=torch.float32
        )
        self.register_buffer("text_m", text_m)
        self.register_buffer("text_s", text_s)
        self.model_index = torch.tensor([self.models.index(c.model) for c in candidates])
        self.strategy_index = torch.tensor([self.strategies.index(c.strategy) for c in candidates])
        self.log_samples = torch.tensor([float(np.log(c.samples)) for c in candidates])
        width = dim + text_m.shape[1] + text_s.shape[1] + 2 * recipe.learned

        def uniform(*shape: int, fan_in: int) -> torch.nn.Parameter:
            bound = fan_in**-0.5
            return torch.nn.Parameter((torch.rand(*shape, generator=generator) * 2 - 1) * bound)

        def normal(*shape: int) -> torch.nn.Parameter:
            # of the size of an embedding's entry, so that text and learned part weigh alike at first
            return torch.nn.Parameter(torch.randn(*shape, generator=generator) * shape[-1] ** -0.5)

        self.learned_m = normal(len(self.models), recipe.learned)
        self.learned_s = normal(len(self.strategies), recipe.learned)
        self.query = uniform(recipe.hidden, dim, fan_in=width)
        self.model = uniform(recipe.hidden, text_m.shape[1] + recipe.learned, fan_in=width)
        self.strategy = uniform(recipe.hidden, text_s.shape[1] + recipe.learned, fan_in=width)
        self.samples = uniform(recipe.hidden, fan_in=width)
        self.bias = uniform(recipe.hidden, fan_in=width)
        self.heads = uniform(3, recipe.hidden, fan_in=recipe.hidden)
        self.heads_bias = torch.nn.Parameter(torch.zeros(3))

    def g(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 2 and 3: text beside learned."""
        return (
            torch.cat([self.get_buffer("text_m"), self.learned_m], dim=1),
            torch.cat([self.get_buffer("text_s"), self.learned_s], dim=1),
        )

    def forward(self, embeddings_BD: torch.Tensor) -> torch.Tensor:
        """(B, C, 3): Eq. 1 and the heads."""
        g_m, g_s = self.g()
        candidate_CH = (
            (g_m @ self.model.T)[self.model_index]
            + (g_s @ self.strategy.T)[self.strategy_index]
            + self.log_samples[:, None] * self.samples
            + self.bias
        )
        hidden_BCH = torch.relu((embeddings_BD @ self.query.T)[:, None] + candidate_CH)
        if self.training and self.recipe.dropout:
            hidden_BCH = nn.dropout(hidden_BCH, self.recipe.dropout)
        return hidden_BCH @ self.heads.T + self.heads_bias

    def fitted(self, targets: _Targets) -> FittedRTR:
        """The weights, without torch."""
        g_m, g_s = (g.detach().numpy() for g in self.g())
        return FittedRTR(
            candidates=self.candidates,
            query_HD=self.query.detach().numpy(),
            model_HG=self.model.detach().numpy(),
            strategy_HG=self.strategy.detach().numpy(),
            samples_H=self.samples.detach().numpy(),
            bias_H=self.bias.detach().numpy(),
            heads_3H=self.heads.detach().numpy(),
            heads_bias_3=self.heads_bias.detach().numpy(),
            models=dict(zip(self.models, g_m, strict=True)),
            strategies=dict(zip(self.strategies, g_s, strict=True)),
            learned=self.recipe.learned,
            log_tokens_mean=targets.mean,
            log_tokens_scale=targets.scale,
            ratio={},
            tail={},
            max_tokens=targets.max_tokens,
        )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The steps are too small to share: threads that wait for each other cost more than they do.

    On a machine that is busy otherwise, such as one where engines start, it is the difference
    between half a minute and many.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _loss(recipe: RTR, heads_BC3: torch.Tensor, targets: _Targets, rows: torch.Tensor) -> torch.Tensor:
    accuracy, tokens, cut = targets.accuracy[rows], targets.log_tokens[rows], targets.censored[rows]
    graded, counted = ~torch.isnan(accuracy), ~torch.isnan(tokens)
    # Eq. 5; several samples of a cell give a share between 0 and 1
    logits = heads_BC3[..., ACCURACY][graded]
    bce = nn.binary_cross_entropy_with_logits(logits, accuracy[graded], reduction="sum")
    spread = nn.softplus(heads_BC3[..., SPREAD]) + MIN_SPREAD / targets.scale
    z = (torch.nan_to_num(tokens) - heads_BC3[..., LOG_TOKENS]) / spread
    seen = 0.5 * z**2 + torch.log(spread)
    beyond = -torch.special.log_ndtr(-z)  # it would have been longer than where it was cut
    length = torch.where(cut, beyond, seen)[counted].sum()
    # rows none of which was graded add nothing: the mean of nothing is NaN, and stops training early
    return bce / max(int(graded.sum()), 1) + recipe.token_weight * length / max(int(counted.sum()), 1)


def _train(
    recipe: RTR, net: _Net, targets: _Targets, embeddings_MD: FloatArray, held_out_M: BoolArray
) -> None:
    """Adam until the validation loss stops falling; the best weights stay."""
    embeddings = torch.tensor(embeddings_MD, dtype=torch.float32)
    train, held_out = (torch.tensor(np.flatnonzero(m)) for m in (~held_out_M, held_out_M))
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    generator = torch.Generator().manual_seed(recipe.seed)
    best, best_weights, waited = float("inf"), None, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # dropout
        for _ in range(recipe.max_epochs):
            net.train()
            shuffled = train[torch.randperm(len(train), generator=generator)]
            for rows in torch.split(shuffled, recipe.batch_size):
                optimiser.zero_grad(set_to_none=True)
                _loss(recipe, net(embeddings[rows]), targets, rows).backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
                optimiser.step()
            if not len(held_out):
                continue
            net.eval()
            with torch.inference_mode():
                loss = float(_loss(recipe, net(embeddings[held_out]), targets, held_out))
            if loss < best:
                best, waited = loss, 0
                best_weights = {name: value.clone() for name, value in net.state_dict().items()}
            elif (waited := waited + 1) >= recipe.patience:
                break
    if best_weights is not None:
        net.load_state_dict(best_weights)


def _calibrated(
    fitted: FittedRTR, outcomes: Outcomes, embeddings_MD: FloatArray, held_out_M: BoolArray
) -> FittedRTR:
    """Correct each candidate's mean and 95% quantile of tokens by what was seen."""
    mean_MC, spread_MC = fitted.log_tokens(fitted.heads(embeddings_MD))
    ratio, tail = {}, {}
    for column, candidate in enumerate(fitted.candidates):
        actual_M = outcomes.output_tokens[:, column] / candidate.samples
        limit = np.float32(fitted.max_tokens.get(str(candidate), np.inf))
        predicted_M = capped_mean(mean_MC[:, column], spread_MC[:, column], limit)  # type: ignore[arg-type]
        seen_M = ~np.isnan(actual_M)
        # all rows, not only the held-out ones: a ratio of sums hardly overfits, and its noise
        # falls with their number
        ratio[str(candidate)] = float(actual_M[seen_M].sum() / max(predicted_M[seen_M].sum(), 1e-9))
        tested_M = seen_M & held_out_M
        if tested_M.sum() >= 20:
            upper_M = quantile(mean_MC[:, column], spread_MC[:, column], Z95)
            count = int(tested_M.sum())
            level = min(1.0, np.ceil((count + 1) * 0.95) / count)  # split conformal: finite-sample cover
            tail[str(candidate)] = float(np.quantile(actual_M[tested_M] / upper_M[tested_M], level))
    return replace(fitted, ratio=ratio, tail=tail)
