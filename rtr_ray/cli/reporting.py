"""`report`: a run as a page that one can look at."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtr_ray.reports.page import Page
    from rtr_ray.screen import Screen


def written(page: Page, folder: str, screen: Screen) -> str:
    """Write a page and its pictures; gives where the page lies."""
    from rtr_ray.reports.written import INDEX, write_page

    with screen.stage("report", unit="files") as stage:
        names = write_page(page, folder)
        stage.done = len(names)
        if len(names) == 1:
            stage.note = "without PNGs, for which matplotlib is needed: pip install 'rtr-ray[report]'"
    return f"{folder.rstrip('/')}/{INDEX}" if "://" in folder else str(PurePosixPath(folder) / INDEX)
