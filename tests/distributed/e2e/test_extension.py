"""Answers that get longer while they are generated, by real vLLM under a real ledger actor."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rtr_ray.config import load_pool
from rtr_ray.distributed.deployments import Deployments
from rtr_ray.embedded.questions import draw
from rtr_ray.pool import MTOK
from rtr_ray.types import Candidate, Query, Request
from tests.distributed.lent import answered

pytestmark = [pytest.mark.ray, pytest.mark.vllm]

POOL = load_pool("embedded")
NANO = Candidate("nano", "cot")
FEW = 12  # tokens that are set aside for each answer at first


def asked(served: str, requests: list[Request], budget_usd: Decimal | None, folder: Path) -> Any:
    """The outcomes, and the ledger's last balance."""
    handle = Deployments(served).handle(POOL.deployment(NANO))
    return answered(handle, POOL, requests, budget_usd, folder)


def test_extended_answers_are_whole_and_those_that_get_nothing_end_where_they_are_paid(
    served: str, tmp_path: Path
) -> None:
    requests = [
        POOL.request(Query(f"q{i}", one.query), NANO) for i, one in enumerate(draw("test", 24, seed=7))
    ]
    whole, _ = asked(served, requests, None, tmp_path / "whole")
    lengths = {name: o.usage.output_tokens for name, o in whole.items() if o.usage}
    assert max(lengths.values()) > 3 * FEW, "nothing would have to be extended"
    price = POOL.price(NANO)
    worst = POOL.worst_case_usd(requests[0])
    short = [replace(request, expected_tokens=FEW) for request in requests]

    # room for every answer, though not for 24 worst cases
    extended, balance = asked(served, short, worst * 12, tmp_path / "extended")
    assert {n: o.samples for n, o in extended.items()} == {n: o.samples for n, o in whole.items()}
    assert {n: o.usage for n, o in extended.items()} == {n: o.usage for n, o in whole.items()}
    assert balance.spent_usd == sum(POOL.cost_usd(NANO, o.usage) for o in whole.values() if o.usage)
    assert (balance.reserved_usd, balance.unknown_usd) == (0, 0)

    # the prompts are paid, and hardly anything beside them: one after the other is cut
    least = price.worst_case_usd(requests[0].max_input_tokens, FEW)
    some, balance = asked(served, short[:6], least + 5 * price.output_usd_per_mtok / MTOK, tmp_path / "some")
    cut = {n: o for n, o in some.items() if o.samples and o.samples[0].finish_reason == "budget"}
    assert cut, some
    for name, outcome in cut.items():
        (sample,) = outcome.samples
        assert outcome.usage is not None
        assert sample.output_tokens == outcome.usage.output_tokens == FEW
        assert whole[name].samples[0].text.startswith(sample.text)
        assert outcome.usage.input_tokens == whole[name].usage.input_tokens  # type: ignore[union-attr]
    assert balance.spent_usd == sum(POOL.cost_usd(NANO, o.usage) for o in some.values() if o.usage)
    assert balance.spent_usd <= balance.budget_usd
    assert (balance.reserved_usd, balance.unknown_usd) == (0, 0)

    # what is cut is what the engine gives when it is asked for no more in the first place
    limited = [replace(request, max_tokens=FEW) for request in requests[:6]]
    given, _ = asked(served, limited, None, tmp_path / "limited")
    for name, outcome in cut.items():
        assert outcome.samples[0].text == given[name].samples[0].text
        assert outcome.usage == given[name].usage
