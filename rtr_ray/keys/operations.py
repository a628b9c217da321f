"""What a gate asks of the store, in a form that travels between processes."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from rtr_ray.errors import LedgerError
from rtr_ray.gate import Caller, Hold, Offer, Refusal


@dataclass(frozen=True, slots=True)
class Admit:
    """Who has this token?"""

    token_digest: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """Put aside for the first of the offers that can be paid.

    The one who asks names the hold: so an answer that got lost leaves nothing behind that cannot be
    released.
    """

    hold_id: str
    key_id: str
    offers: tuple[Offer, ...]

    def __post_init__(self) -> None:
        if not self.offers:
            raise LedgerError(f"The request {self.hold_id} makes no offer; one is the least.")
        for offer in self.offers:
            if not offer.worst_usd.is_finite() or offer.worst_usd < 0 or offer.worst_tokens < 0:
                raise LedgerError(
                    f"{offer.candidate} is offered for {offer.worst_usd} dollars and {offer.worst_tokens} "
                    "tokens; neither is negative or unknown."
                )


@dataclass(frozen=True, slots=True)
class Close:
    """How a hold ends; closing it again changes nothing."""

    hold_id: str
    spent_usd: Decimal | None = None  # None: nothing was generated
    tokens: int = 0
    unknown: bool = False  # the count was lost: the worst case is taken

    def __post_init__(self) -> None:
        spent = self.spent_usd
        if self.tokens < 0 or (spent is not None and (not spent.is_finite() or spent < 0)):
            raise LedgerError(
                f"The request {self.hold_id} is said to have cost {spent} dollars and {self.tokens} tokens; "
                "neither is negative or unknown."
            )


Operation = Admit | Ask | Close
Result = Caller | Hold | Refusal | None
"""Of an `Admit` a caller, of an `Ask` a hold, of either a refusal; of a `Close` None."""
