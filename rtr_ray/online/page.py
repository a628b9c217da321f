"""The page at `/`: one file without anything from elsewhere, and what a browser may do with it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources


@cache
def page() -> tuple[str, Mapping[str, str]]:
    """The HTML, and the headers that it goes out with.

    Only the script and the style that are in the file run, by their hashes; the page speaks to its own
    origin alone, and nobody may frame it.
    """
    text = (resources.files("rtr_ray.online") / "page.html").read_text()
    policy = (
        f"default-src 'none'; script-src {_hashes(text, 'script')}; style-src {_hashes(text, 'style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def _hashes(text: str, tag: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
