"""API keys and their budgets: who may spend how much, kept in an SQLite file."""

from rtr_ray.keys.binding import check_binding
from rtr_ray.keys.gate import Bank, KeyGate, LocalBank
from rtr_ray.keys.limits import GLOBAL, Key, Limits
from rtr_ray.keys.operations import Admit, Ask, Close
from rtr_ray.keys.store import KeyStore

__all__ = [
    "GLOBAL",
    "Admit",
    "Ask",
    "Bank",
    "Close",
    "Key",
    "KeyGate",
    "KeyStore",
    "Limits",
    "LocalBank",
    "check_binding",
]
