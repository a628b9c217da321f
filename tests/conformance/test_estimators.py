"""Every estimator keeps the same promises. A new kind needs a row in `ROWS`."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtr_ray import registry
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.errors import ConfigError, DataError
from rtr_ray.estimators import FITTED, KNOWN
from rtr_ray.estimators.base import Estimator, FittedEstimator, Profiles, State
from rtr_ray.router import InputTokens, RouterFolder
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes

ROWS: dict[str, list[dict[str, Any]]] = {
    "auto": [{}, {"members": [{"kind": "knn", "k": 5}, {"kind": "prior"}], "folds": 3}],
    "prior": [{}],
    "knn": [{}, {"k": 1, "shrinkage": 0.0}, {"k": 10_000}],
    "linear": [{}, {"penalty": 3.0}],
    "oracle": [{}],
    "kernel": [{}, {"embedding": 0.0, "landmarks": 7}, {"power": 1}],
    "vocabulary": [{}, {"words": 3, "directions": 1}],
    "clustering": [{}, {"clusters": 3, "shrinkage": 0.0}, {"clusters": 1000}],
    "matrix_factorization": [{"rank": 2}, {"rank": 1, "penalty": 1.0}],
    "irt": [{"dimensions": 2}, {"dimensions": 1, "penalty": 0.1}],
    "binary": [{}, {"penalty": 0.1}],
    "bradley_terry": [{}, {"base": 1.0}],
    "nclass": [{}, {"penalty": 0.1}],
    "nlabel": [{}, {"penalty": 0.1}],
    "tfidf_clustering": [{}, {"clusters": 3, "shrinkage": 0.0, "words": 5}],
    "rtr": [
        {"hidden": 16, "learned": 4, "max_epochs": 3},
        {"hidden": 8, "learned": 1, "max_epochs": 2, "dropout": 0.5, "weight_decay": 0.1, "batch_size": 7},
    ],
}
REFUSED: dict[str, list[dict[str, Any]]] = {
    "auto": [{"members": []}, {"folds": 1}, {"members": [{"kind": "nobody"}]}],
    "prior": [{"k": 3}],
    "knn": [{"k": 0}, {"shrinkage": -1.0}],
    "linear": [{"penalty": 0.0}, {"penalty": -1.0}],
    "oracle": [{"seed": 0}],
    "kernel": [{"embedding": -1.0}, {"embedding": 0.0, "wording": 0.0}, {"landmarks": 0}, {"power": 3}],
    "vocabulary": [{"words": 0}, {"directions": 0}],
    "clustering": [{"clusters": 0}, {"shrinkage": -1.0}],
    "matrix_factorization": [{"rank": 0}, {"penalty": 0.0}],
    "irt": [{"dimensions": 0}, {"penalty": -1.0}],
    "binary": [{"penalty": 0.0}],
    "bradley_terry": [{"base": 0.0}],
    "nclass": [{"penalty": 0.0}],
    "nlabel": [{"penalty": 0.0}],
    "tfidf_clustering": [{"clusters": 0}, {"words": 0}, {"shrinkage": -0.5}],
    "rtr": [{"hidden": 0}, {"learned": 0}, {"max_epochs": 0}, {"validation_share": 0.0}, {"patience": 0}],
}
CASES = [(kind, row) for kind, rows in ROWS.items() for row in rows]
PARTS = ("accuracy", "output_tokens", "output_tokens_p95")
CANDIDATES = (
    Candidate("small", "vanilla"),
    Candidate("small", "cot"),
    Candidate("small", "cot", 3),
    Candidate("large", "cot"),
)
QUERIES, DIM, LIMIT = 90, 12, 400


def outcomes_of(seed: int = 0, unknown: float = 0.3) -> Outcomes:
    """Random outcomes of 4 candidates; some cells were not run, some were not graded, some were cut."""
    dice = np.random.default_rng(seed)
    shape = (QUERIES, len(CANDIDATES))
    samples_C = np.array([c.samples for c in CANDIDATES])
    drawn_MC = np.round(np.exp(dice.normal(4, 1, shape)) + 1)
    accuracy_MC = dice.integers(0, 2, shape).astype(float)
    tokens_MC = np.minimum(drawn_MC, LIMIT) * samples_C
    not_run_MC = dice.random(shape) < unknown
    accuracy_MC[not_run_MC | (dice.random(shape) < unknown / 3)] = np.nan
    tokens_MC[not_run_MC] = np.nan
    return Outcomes(
        query_ids=tuple(f"q{i}" for i in range(QUERIES)),
        queries=tuple(f"question {i}" for i in range(QUERIES)),
        candidates=CANDIDATES,
        accuracy=accuracy_MC,
        input_tokens=np.where(not_run_MC, np.nan, 20.0),
        output_tokens=tokens_MC,
        cost_usd=np.full(shape, np.nan),
        cut=np.where(not_run_MC, np.nan, drawn_MC >= LIMIT),
        max_tokens=np.where(not_run_MC, np.nan, LIMIT),
        runs=(~not_run_MC).astype(int),
    )


EMBEDDINGS: FloatArray = np.random.default_rng(7).normal(size=(QUERIES, DIM)).astype(np.float32)
_DICE = np.random.default_rng(8)
PROFILES = Profiles(
    {name: _DICE.normal(size=DIM).astype(np.float32) for name in ("small", "large", "new")},
    {name: _DICE.normal(size=DIM).astype(np.float32) for name in ("vanilla", "cot")},
)


def learned(estimator: Estimator, outcomes: Outcomes | None = None) -> FittedEstimator:
    """What comes of the outcomes above."""
    return estimator.fit(outcomes or outcomes_of(), EMBEDDINGS, PROFILES)


def bytes_of(estimate: Estimate) -> list[bytes]:
    """Everything that was predicted, to the last bit."""
    return [np.ascontiguousarray(getattr(estimate, part)).tobytes() for part in PARTS]


def test_every_kind_has_its_rows():
    assert set(ROWS) == set(REFUSED) == set(KNOWN) == set(FITTED)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'-'.join(map(str, case[1].values()))}")
def estimator(request: pytest.FixtureRequest) -> Estimator:
    kind, row = request.param
    built: Estimator = registry.build({"kind": kind} | row, KNOWN, "estimator")
    return built


def test_it_is_what_the_protocol_says(estimator: Estimator):
    fitted = learned(estimator)
    assert isinstance(estimator, Estimator)
    assert isinstance(fitted, FittedEstimator)
    assert estimator.kind == fitted.kind
    assert isinstance(fitted, registry.load(fitted.kind, FITTED, "estimator"))


def test_it_is_frozen(estimator: Estimator):
    name = next((field.name for field in fields(estimator)), "anything")  # type: ignore[arg-type]
    with pytest.raises((FrozenInstanceError, TypeError)):  # TypeError: slots, and no field at all
        setattr(estimator, name, None)


@pytest.mark.parametrize(("kind", "row"), [(k, r) for k, rows in REFUSED.items() for r in rows])
def test_impossible_configurations_are_refused(kind: str, row: dict[str, Any]):
    with pytest.raises(ConfigError):
        registry.build({"kind": kind} | row, KNOWN, "estimator")


def test_a_recipe_survives_json(estimator: Estimator):
    spec = json.loads(json.dumps(registry.spec_of(estimator, KNOWN)))
    assert registry.build(spec, KNOWN, "estimator") == estimator


def test_predictions_have_a_row_per_query_and_lie_in_their_range(estimator: Estimator):
    fitted = learned(estimator)
    assert fitted.candidates == CANDIDATES
    estimate = fitted.predict(EMBEDDINGS)
    for part in PARTS:
        values_QC = getattr(estimate, part)
        assert values_QC.shape == (QUERIES, len(CANDIDATES))
        assert np.issubdtype(values_QC.dtype, np.floating)
        assert np.isfinite(values_QC).all()
    assert estimate.accuracy.min() >= 0
    assert estimate.accuracy.max() <= 1
    assert estimate.output_tokens.min() > 0
    assert (estimate.output_tokens_p95 >= estimate.output_tokens * 0.999).all()


def test_no_query_at_all_gives_an_empty_table(estimator: Estimator):
    estimate = learned(estimator).predict(EMBEDDINGS[:0])
    assert {getattr(estimate, part).shape for part in PARTS} == {(0, len(CANDIDATES))}


def test_a_query_is_predicted_for_by_itself_and_in_any_order(estimator: Estimator):
    fitted = learned(estimator)
    together = fitted.predict(EMBEDDINGS)
    order = np.random.default_rng(1).permutation(QUERIES)
    shuffled, alone = fitted.predict(EMBEDDINGS[order]), fitted.predict(EMBEDDINGS[3:4])
    for part in PARTS:  # a product of matrices of another shape may round otherwise
        np.testing.assert_allclose(getattr(shuffled, part), getattr(together, part)[order], rtol=1e-4)
        np.testing.assert_allclose(getattr(alone, part), getattr(together, part)[3:4], rtol=1e-4)


def test_the_same_outcomes_give_the_same_estimator_to_the_last_bit(estimator: Estimator):
    one, other = learned(estimator), learned(estimator)
    assert bytes_of(one.predict(EMBEDDINGS)) == bytes_of(other.predict(EMBEDDINGS))
    assert one.state().values == other.state().values
    for name, array in one.state().arrays.items():
        assert array.tobytes() == other.state().arrays[name].tobytes()


def test_it_learns_from_the_outcomes_and_not_from_the_numpy_dice(estimator: Estimator):
    np.random.seed(0)
    one = bytes_of(learned(estimator).predict(EMBEDDINGS))
    np.random.seed(1)
    assert one == bytes_of(learned(estimator).predict(EMBEDDINGS))
    assert one != bytes_of(learned(estimator, outcomes_of(seed=1)).predict(EMBEDDINGS))


def test_what_it_is_given_is_left_as_it_was(estimator: Estimator):
    outcomes, embeddings = outcomes_of(), EMBEDDINGS.copy()
    before = [getattr(outcomes, name).tobytes() for name in ("accuracy", "output_tokens", "cut")]
    estimator.fit(outcomes, embeddings, PROFILES).predict(embeddings)
    assert before == [getattr(outcomes, name).tobytes() for name in ("accuracy", "output_tokens", "cut")]
    assert embeddings.tobytes() == EMBEDDINGS.tobytes()


def test_the_state_makes_the_same_estimator(estimator: Estimator):
    fitted = learned(estimator)
    state = fitted.state()
    values = json.loads(json.dumps(dict(state.values)))
    again = type(fitted).from_state(fitted.candidates, State(dict(state.arrays), values))
    assert bytes_of(again.predict(EMBEDDINGS)) == bytes_of(fitted.predict(EMBEDDINGS))


def test_a_router_folder_holds_json_and_tensors_and_loads_to_the_same_predictions(
    estimator: Estimator, tmp_path: Path
):
    fitted = learned(estimator)
    folder = RouterFolder(
        {"kind": "hash", "dim": DIM},
        HashEncoder(DIM).identity,
        fitted,
        InputTokens.fit(outcomes_of()),
        {str(c): "as ever" for c in CANDIDATES},
    )
    folder.save(str(tmp_path / "router"))
    loaded = RouterFolder.load(str(tmp_path / "router"))
    assert loaded.estimator.candidates == CANDIDATES
    assert bytes_of(loaded.estimator.predict(EMBEDDINGS)) == bytes_of(fitted.predict(EMBEDDINGS))
    assert loaded.fingerprint == folder.fingerprint
    found = {path.name: path.read_bytes() for path in (tmp_path / "router").rglob("*") if path.is_file()}
    assert set(found) == {"router.json", "estimator.safetensors"}
    json.loads(found["router.json"])
    # safetensors: the length of a JSON header, the header, and numbers
    size = int.from_bytes(found["estimator.safetensors"][:8], "little")
    header = json.loads(found["estimator.safetensors"][8 : 8 + size])
    kinds = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    assert kinds <= {"F32", "F64"}


def test_outcomes_that_nothing_can_be_learned_from_are_refused(estimator: Estimator):
    outcomes = outcomes_of()
    unseen = outcomes.accuracy.copy()
    unseen[:, 2] = np.nan
    with pytest.raises(DataError, match="small:cot@3"):
        estimator.fit(replace(outcomes, accuracy=unseen), EMBEDDINGS, PROFILES)
    with pytest.raises(DataError, match="90 queries came with 89 embeddings"):
        estimator.fit(outcomes, EMBEDDINGS[1:], PROFILES)
    with pytest.raises(DataError, match="NaN"):
        estimator.fit(outcomes, np.full_like(EMBEDDINGS, np.nan), PROFILES)
    with pytest.raises(DataError, match="no outcomes"):
        estimator.fit(outcomes.rows(np.zeros(QUERIES, dtype=bool)), EMBEDDINGS[:0], PROFILES)


def test_a_single_query_is_enough(estimator: Estimator):
    one = outcomes_of(unknown=0.0).rows(np.arange(QUERIES) == 5)
    estimate = estimator.fit(one, EMBEDDINGS[5:6], PROFILES).predict(EMBEDDINGS[5:6])
    assert all(np.isfinite(getattr(estimate, part)).all() for part in PARTS)


def test_a_graded_cell_here_and_there_is_enough(estimator: Estimator):
    """A batch of queries none of which was graded, or none of which has a length, is no accident."""
    outcomes = outcomes_of(unknown=0.0)
    known_MC = np.zeros_like(outcomes.accuracy, dtype=bool)
    known_MC[::40] = True
    for name in ("accuracy", "output_tokens"):
        sparse = replace(outcomes, **{name: np.where(known_MC, getattr(outcomes, name), np.nan)})
        estimate = learned(estimator, sparse).predict(EMBEDDINGS)
        assert all(np.isfinite(getattr(estimate, part)).all() for part in PARTS), name
