"""Batch objects in OpenAI's form, and which status may follow which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from rtr_ray.errors import DataError
from rtr_ray.keys.limits import MOST_USD

FOLLOWS: Mapping[str, frozenset[str]] = {
    "validating": frozenset({"in_progress", "failed", "cancelling", "expired"}),
    "in_progress": frozenset({"finalizing", "failed", "cancelling", "expired"}),
    "finalizing": frozenset({"completed", "failed", "cancelling", "expired"}),
    "cancelling": frozenset({"cancelled", "failed"}),
}
"""Status -> those that may follow; the others are final."""
STAMPS = {
    "in_progress": "in_progress_at",
    "finalizing": "finalizing_at",
    "completed": "completed_at",
    "failed": "failed_at",
    "expired": "expired_at",
    "cancelling": "cancelling_at",
    "cancelled": "cancelled_at",
}
_PAIRS, _NAME, _VALUE = 16, 64, 512  # of metadata, as OpenAI has it


@dataclass(frozen=True, slots=True)
class Counts:
    """How far a batch has come."""

    total: int = 0
    completed: int = 0
    failed: int = 0

    def to_json(self) -> dict[str, int]:
        """As in a batch object."""
        return {"total": self.total, "completed": self.completed, "failed": self.failed}


def new_batch(
    batch_id: str, input_file_id: str, endpoint: str, metadata: Mapping[str, str], created: int
) -> dict[str, Any]:
    """A batch that nobody has looked at yet."""
    return {
        "id": batch_id,
        "object": "batch",
        "endpoint": endpoint,
        "errors": None,
        "input_file_id": input_file_id,
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": created,
        "in_progress_at": None,
        "expires_at": created + 24 * 3600,
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": Counts().to_json(),
        "metadata": dict(metadata) or None,
    }


def check_metadata(found: Any) -> dict[str, str]:
    """The metadata of a batch that is to be created.

    Raises:
        DataError: If it is no object of up to 16 short texts, or its budget_usd cannot be one.
    """
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise DataError("metadata is not an object. Give an object of texts.")
    if len(found) > _PAIRS:
        raise DataError(f"metadata has {len(found)} entries. Give at most {_PAIRS}.")
    for name, value in found.items():
        if not isinstance(name, str) or len(name) > _NAME:
            raise DataError(f"metadata has a name of more than {_NAME} characters. Shorten it.")
        if not isinstance(value, str) or len(value) > _VALUE:
            raise DataError(f"metadata has a value that is no text of at most {_VALUE} characters.")
    budget_of(found)
    return dict(found)


def budget_of(metadata: Mapping[str, str]) -> Decimal | None:
    """What a batch may spend; None: as much as its key.

    Raises:
        DataError: If metadata.budget_usd is no amount.
    """
    typed = metadata.get("budget_usd")
    if typed is None:
        return None
    try:
        usd = Decimal(typed)
    except InvalidOperation:
        usd = Decimal("NaN")
    if not usd.is_finite() or not 0 <= usd <= MOST_USD:
        raise DataError(
            f"metadata.budget_usd is no amount. Give dollars from 0 to {MOST_USD:,}, such as 2.50."
        )
    return usd
