"""Small models of the logit of accuracy, by L-BFGS, with the penalty that a part of train likes best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rtr_ray.estimators.base import validation_split
from rtr_ray.types import BoolArray, FloatArray, Outcomes

Weights = dict[str, FloatArray]
PENALTIES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Of squared weights against the mean loss of a query; from strong to weak."""
_HELD_OUT_SHARE = 0.25
_LEAST_QUERIES = 20  # fewer leave nothing to hold out: the strongest penalty
_ROUNDS = 100


class Form(Protocol):
    """A model: from weights and features to scores, and back from the scores' gradients to the weights'."""

    def scores(self, weights: Weights, features_MD: FloatArray) -> FloatArray:
        """(M, N) one score per query and output."""
        ...

    def gradient(self, weights: Weights, features_MD: FloatArray, slope_MN: FloatArray) -> Weights:
        """Of each weight, where `slope_MN` is that of each score."""
        ...


Loss = Callable[[FloatArray, FloatArray], tuple[float, FloatArray]]
"""(scores, targets with NaN) -> the loss summed over what is known, and its slope at each score."""


def sigmoid(score: FloatArray) -> FloatArray:
    """1 / (1 + exp(-score)), without overflow."""
    found: FloatArray = 0.5 * (1 + np.tanh(score / 2))
    return found


def cross_entropy(score_MN: FloatArray, target_MN: FloatArray) -> tuple[float, FloatArray]:
    """Of independent outputs, each a share between 0 and 1; several samples of a cell are one share."""
    known_MN = ~np.isnan(target_MN)
    goal_MN = np.where(known_MN, target_MN, 0.0)
    loss_MN = np.maximum(score_MN, 0) - score_MN * goal_MN + np.log1p(np.exp(-np.abs(score_MN)))
    slope_MN = np.where(known_MN, sigmoid(score_MN) - goal_MN, 0.0)
    return float(loss_MN[known_MN].sum()), slope_MN


def softmax(score_MN: FloatArray) -> FloatArray:
    """Shares that add up to 1 in each row."""
    above_MN = np.exp(score_MN - score_MN.max(axis=1, keepdims=True))
    share_MN: FloatArray = above_MN / above_MN.sum(axis=1, keepdims=True)
    return share_MN


def choice_entropy(score_MN: FloatArray, target_MN: FloatArray) -> tuple[float, FloatArray]:
    """Of one choice among the outputs; rows of NaN count nothing."""
    known_M1 = ~np.isnan(target_MN).any(axis=1, keepdims=True)
    share_MN, goal_MN = softmax(score_MN), np.where(known_M1, target_MN, 0.0)
    return float(-(goal_MN * np.log(np.maximum(share_MN, 1e-12))).sum()), np.where(
        known_M1, share_MN - goal_MN, 0.0
    )


@dataclass(frozen=True, slots=True)
class LinearForm:
    """score = features @ weight + bias."""

    def scores(self, weights: Weights, features_MD: FloatArray) -> FloatArray:
        """A product."""
        found: FloatArray = features_MD @ weights["weight_DN"] + weights["bias_N"]
        return found

    def gradient(self, weights: Weights, features_MD: FloatArray, slope_MN: FloatArray) -> Weights:
        """The other way round."""
        return {"weight_DN": features_MD.T @ slope_MN, "bias_N": slope_MN.sum(axis=0)}


def fitted(
    form: Form,
    start: Weights,
    free: Sequence[str],
    features_MD: FloatArray,
    target_MN: FloatArray,
    outcomes: Outcomes,
    penalty: float | None,
    seed: int,
    loss: Loss = cross_entropy,
) -> Weights:
    """The weights with the least loss.

    Args:
        form: The model.
        start: Where to begin; not touched.
        free: Names of weights that are not penalised.
        features_MD: Of M queries.
        target_MN: NaN where nothing is known.
        outcomes: Of the same queries; related ones are held out together.
        penalty: None: the one of `PENALTIES` with the least loss on a quarter of the queries that was
            held out; then all are used.
        seed: Of the held-out part.
        loss: Of scores against targets.
    """
    if penalty is not None:
        return _solved(form, start, free, features_MD, target_MN, penalty, loss)
    held_M = validation_split(outcomes, _HELD_OUT_SHARE, seed)
    best = PENALTIES[0]
    if len(held_M) >= _LEAST_QUERIES and held_M.any() and not held_M.all():
        best = _chosen(form, start, free, features_MD, target_MN, held_M, loss)
    return _solved(form, start, free, features_MD, target_MN, best, loss)


def _chosen(
    form: Form,
    start: Weights,
    free: Sequence[str],
    features_MD: FloatArray,
    target_MN: FloatArray,
    held_M: BoolArray,
    loss: Loss,
) -> float:
    found: list[float] = []
    for one in PENALTIES:
        # not begun at the last: a product whose factors were both driven to zero stays there
        weights = _solved(form, start, free, features_MD[~held_M], target_MN[~held_M], one, loss)
        found.append(loss(form.scores(weights, features_MD[held_M]), target_MN[held_M])[0])
        if found[-1] > 1.05 * min(found):  # weaker ones only fit more noise
            break
    return PENALTIES[int(np.argmin(found))]


def _solved(
    form: Form,
    start: Weights,
    free: Sequence[str],
    features_MD: FloatArray,
    target_MN: FloatArray,
    penalty: float,
    loss: Loss,
) -> Weights:
    from scipy.optimize import minimize

    known = max(int((~np.isnan(target_MN)).any(axis=1).sum()), 1)
    strength = {name: 0.0 if name in free else penalty for name in start}

    def objective(flat: FloatArray) -> tuple[float, FloatArray]:
        weights = _split(flat, start)
        total, slope_MN = loss(form.scores(weights, features_MD), target_MN)
        gradient = form.gradient(weights, features_MD, slope_MN / known)
        total /= known
        for name, value in weights.items():
            total += 0.5 * strength[name] * float((value**2).sum())
            gradient[name] = gradient[name] + strength[name] * value
        return total, np.concatenate([gradient[name].reshape(-1) for name in start])

    begun = np.concatenate([value.reshape(-1) for value in start.values()]).astype(np.float64)
    done = minimize(objective, begun, jac=True, method="L-BFGS-B", options={"maxiter": _ROUNDS})
    return _split(done.x, start)


def _split(flat: FloatArray, like: Mapping[str, FloatArray]) -> Weights:
    found, place = {}, 0
    for name, value in like.items():
        found[name] = flat[place : place + value.size].reshape(value.shape)
        place += value.size
    return found


def logit(share: FloatArray) -> FloatArray:
    """The score of a share, none of which is taken as certain."""
    kept = np.clip(share, 0.01, 0.99)
    found: FloatArray = np.log(kept / (1 - kept))
    return found
