"""What Python runs first in a process whose path begins here: it breaks rtr-ray on purpose.

`RTR_FAULTS_BREAK` names what, with commas between. So the campaign can be shown to notice; nothing
in rtr-ray knows of it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def forget_settlements(module: ModuleType) -> None:
    """Of every ten settlements the ledger books nothing for one."""
    count, settle = itertools.count(1), module.Ledger.settle

    def forgetful(self: Any, key: str, usage: Any, cost_usd: Any) -> None:
        if next(count) % 10:
            settle(self, key, usage, cost_usd)
        else:
            self.release(key)

    module.Ledger.settle = forgetful


def misprice(module: ModuleType) -> None:
    """Of every ten calls one is said to have cost half: books and results agree, and are wrong."""
    count, cost_usd = itertools.count(1), module.Price.cost_usd

    def cheaper(self: Any, usage: Any) -> Any:
        cost = cost_usd(self, usage)
        return cost if next(count) % 10 else (cost / 2).quantize(cost)

    module.Price.cost_usd = cheaper


def grant_everything(module: ModuleType) -> None:
    """The ledger does not look at its budget."""
    reserve = module.Ledger.reserve

    def generous(self: Any, *asked: Any) -> Any:
        budget_usd, self.budget_usd = self.budget_usd, None
        try:
            return reserve(self, *asked)
        finally:
            self.budget_usd = budget_usd

    module.Ledger.reserve = generous


BREAKS: dict[str, tuple[str, Callable[[ModuleType], None]]] = {
    "forget": ("rtr_ray.ledger", forget_settlements),
    "misprice": ("rtr_ray.pool", misprice),
    "generous": ("rtr_ray.ledger", grant_everything),
}


class _Breaking(importlib.abc.MetaPathFinder):
    """Imports one module as usual, then breaks it."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self._name, self._change = name, change

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)  # it happens once
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load: Callable[[ModuleType], None] = spec.loader.exec_module

        def load_and_break(module: ModuleType) -> None:
            load(module)
            self._change(module)

        spec.loader.exec_module = load_and_break  # type: ignore[method-assign]
        return spec


for _wanted in filter(None, os.environ.get("RTR_FAULTS_BREAK", "").split(",")):
    sys.meta_path.insert(0, _Breaking(*BREAKS[_wanted]))
