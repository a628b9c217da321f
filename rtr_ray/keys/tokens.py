"""The secret of a key: shown once, kept as a hash.

A token has 256 random bits, so that nobody guesses one and no table of hashes can be made in
advance. That is why plain SHA-256 suffices: slow, salted hashes protect passwords, which people
choose and which can be tried one after the other.
"""

from __future__ import annotations

import hashlib
import re
import secrets

_FORM = re.compile(r"rtr-[A-Za-z0-9_-]{43}")


def new_token() -> str:
    """`rtr-` and 256 random bits."""
    return f"rtr-{secrets.token_urlsafe(32)}"


def digest(token: str) -> bytes:
    """What is kept of a token, 32 bytes."""
    return hashlib.sha256(token.encode()).digest()


def digest_of_bearer(bearer: str | None) -> bytes | None:
    """The digest of what an Authorization header holds; None where that cannot be a token of ours.

    With or without the word Bearer.
    """
    text = (bearer or "").strip()
    if text[:7].lower() == "bearer ":
        text = text[7:].strip()
    return digest(text) if _FORM.fullmatch(text) else None
