"""Which faults a campaign tries: drawn from a seed, spread over the kinds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from benchmarks.fault_tools.case import Case, Fault

# What is tried with the fake engines; a kind that stands there twice is tried twice as often.
ORDER = (
    *("driver", "s3", "replica", "dispatch", "ledger", "several", "node", "disk", "encoder"),
    *("driver", "s3", "replica", "several"),
)
ORDER_VLLM = ("engine", "driver", "replica", "dispatch", "engine", "several", "replica", "ledger")
_SINGLE = ("driver", "dispatch", "ledger", "replica", "node", "s3")


def plan(runs: int, runs_vllm: int, seed: int, only: Sequence[str] = (), rows: int = 400) -> list[Case]:
    """The cases of a campaign: those with real engines last."""
    fake = _cases(ORDER, only, "fake", seed, rows)
    vllm = _cases(ORDER_VLLM, only, "vllm", seed, rows // 2)
    return [*itertools.islice(fake, runs), *itertools.islice(vllm, runs_vllm)]


def _cases(order: Sequence[str], only: Sequence[str], engines: str, seed: int, rows: int) -> Iterator[Case]:
    kinds = [kind for kind in order if not only or kind in only]
    if not kinds:
        return
    for number, kind in enumerate(itertools.cycle(kinds)):
        luck = random.Random(f"{seed}-{engines}-{number}")
        shares = (None, 0.6, 0.8) if engines == "fake" else (None, 0.75, 0.9)
        budget_share = luck.choice(shares)
        most = 0.75 * (budget_share or 1.0)  # of the rows: later a budget may have ended the run
        faults = _several(luck, engines, most) if kind == "several" else (_fault(kind, luck, most),)
        s3 = any(fault.victim == "s3" for fault in faults)
        yield Case(
            name=f"{engines}{number:03d}",
            kind=kind,
            seed=luck.randrange(1 << 30),
            faults=faults,
            engines=engines,
            rows=rows,
            budget_share=budget_share,
            place="s3" if s3 else "tmpfs" if kind == "disk" else "local",
        )


def _fault(kind: str, luck: random.Random, most: float) -> Fault:
    if kind == "encoder":
        return Fault(kind, after_s=luck.uniform(0.0, 1.0))
    if kind == "driver" and luck.random() < 0.4:  # while it starts, routes and plans
        return Fault(kind, after_s=luck.uniform(2.0, 10.0))
    if kind == "node" and luck.random() < 0.3:
        return Fault(kind, after_s=luck.uniform(3.0, 10.0))
    share = luck.uniform(0.02, most)
    if kind == "s3":
        if luck.random() < 0.25:  # from the beginning
            return Fault(kind, after_s=0.5, lasts_s=luck.uniform(5.0, 12.0), strength=luck.uniform(0.1, 0.6))
        return Fault(kind, share, lasts_s=luck.uniform(2.0, 10.0), strength=luck.choice((0.2, 0.5, 0.8, 1.0)))
    if kind == "disk":
        return Fault(
            kind, share, lasts_s=luck.choice((2.0, 6.0, 15.0)), strength=luck.choice((0, 4096, 20_000))
        )
    return Fault(kind, share)


def _several(luck: random.Random, engines: str, most: float) -> tuple[Fault, ...]:
    """Two or three faults, one after the other, each at a later moment."""
    names = ("driver", "engine", "replica", "dispatch", "ledger") if engines == "vllm" else _SINGLE
    shares = sorted(luck.uniform(0.05, most) for _ in range(luck.choice((2, 2, 3))))
    faults = []
    for share in shares:
        name = luck.choice(names)
        if name == "s3":
            faults.append(
                Fault(name, share, lasts_s=luck.uniform(1.0, 5.0), strength=luck.choice((0.3, 0.8)))
            )
        else:
            faults.append(Fault(name, share))
    return tuple(faults)
