"""The command line: `rtr-ray`. One module for each kind of command; each adds its commands to `app`.

Exit codes: 0 done; 1 something is wrong, said in one sentence; 2 wrong usage; 3 done as far as
the budget went; 130 interrupted.
"""

from rtr_ray.cli import jobs, learning, trying
from rtr_ray.cli.shared import app

__all__ = ["app", "jobs", "learning", "main", "trying"]


def main() -> None:
    """The entry point."""
    app()
