"""Looking again and again, in a thread of its own, while something runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

EVERY_S = 0.5


@contextlib.contextmanager
def looking(look: Callable[[], object]) -> Iterator[None]:
    """Call `look` at the beginning, twice a second, and at the end."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(EVERY_S):
            look()

    look()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look()
