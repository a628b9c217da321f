"""A page and its pictures, written into a folder."""

from __future__ import annotations

from rtr_ray.reports.page import Page, html
from rtr_ray.reports.png import available, png
from rtr_ray.storage import open_store

INDEX = "index.html"


def write_page(page: Page, folder: str) -> list[str]:
    """Write `index.html`, and each chart as PNG beside it where matplotlib is installed.

    Args:
        page: What to write.
        folder: Local or `s3://`; made if it is not there. What lies in it stays.

    Returns:
        The names of the files.

    Raises:
        StorageError: If it cannot be written to.
    """
    store = open_store(folder)
    files = {INDEX: html(page).encode()}
    if available():
        files |= {f"{chart.name}.png": png(chart) for chart in page.charts}
    for name, data in files.items():
        store.write(name, data)
    return list(files)
