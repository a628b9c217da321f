"""What a key may do, in which unit money is kept, and when a budget begins anew."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal

from rtr_ray.errors import ConfigError
from rtr_ray.types import Candidate

GLOBAL = "global"
"""The account that every key spends from; no key may have this name."""

# Prices have at most 6 decimals per million tokens: a cost is a whole number of these.
PUSD_PER_USD = 10**12
MOST_USD = Decimal(9_000_000)  # 64 bits hold a little more than 9.2 million dollars in these units
ALL = "all"  # the period that never ends


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be spent and asked; None: unbounded."""

    day_usd: Decimal | None = None  # begins anew at 00:00 UTC
    month_usd: Decimal | None = None  # begins anew on the 1st, 00:00 UTC
    total_usd: Decimal | None = None  # never begins anew
    max_request_usd: Decimal | None = None  # of the worst case of one request
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # input and output
    candidates: tuple[str, ...] | None = None  # "model:strategy"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Decimal):
                if not value.is_finite() or not 0 <= value <= MOST_USD:
                    raise ConfigError(
                        f"{field.name}={value} cannot be a limit. Give dollars from 0 to {MOST_USD:,}."
                    )
                if value != value.quantize(Decimal(1).scaleb(-12)):
                    raise ConfigError(f"{field.name}={value} has more than 12 decimals. Round it.")
            elif isinstance(value, int) and not 1 <= value <= 10**12:
                raise ConfigError(f"{field.name}={value} cannot be a limit. Give a whole number from 1.")
        for name in self.candidates or ():
            Candidate.parse(name)

    def by_period(self) -> dict[str, Decimal | None]:
        """Budgets by the kind of their period."""
        return {"day": self.day_usd, "month": self.month_usd, ALL: self.total_usd}


@dataclass(frozen=True, slots=True)
class Key:
    """A key, without its secret."""

    id: str
    name: str
    limits: Limits
    created_at: str  # ISO 8601
    revoked_at: str | None = None


def to_pusd(usd: Decimal) -> int:
    """Trillionths of a dollar; a smaller part counts as a whole one, so that nothing is free."""
    return int((usd * PUSD_PER_USD).to_integral_value(ROUND_CEILING))


def to_usd(pusd: int) -> Decimal:
    """Dollars, exactly."""
    return Decimal(pusd).scaleb(-12)


def period_names(now: datetime) -> dict[str, str]:
    """The periods that `now` lies in, by their kind."""
    utc = now.astimezone(UTC)
    return {"day": f"{utc:%Y-%m-%d}", "month": f"{utc:%Y-%m}", ALL: ALL}


def next_period(kind: str, now: datetime) -> datetime | None:
    """When the budget of this kind begins anew; None: never."""
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if kind == "day":
        return midnight + timedelta(days=1)
    if kind == "month":
        return (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
    return None
