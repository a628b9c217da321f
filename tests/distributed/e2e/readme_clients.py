"""The README's own lines for clients, to be run against an endpoint that listens elsewhere."""

from __future__ import annotations

import re

from tests.distributed.conftest import ROOT

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(kind: str, url: str, key: str) -> list[str]:
    """The blocks of one language in the section Online, with another address and key."""
    text = (ROOT / "README.md").read_text()
    section = re.split(r"^## ", text.split("\n## Online\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    found = [body for language, body in _FENCE.findall(section) if language == kind]
    return [
        body.replace("http://127.0.0.1:8000", url)
        .replace('api_key="none"', f'api_key="{key}"')
        .replace("Bearer none", f"Bearer {key}")
        for body in found
    ]
