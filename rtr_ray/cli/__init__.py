"""The command line: `rtr-ray`. One module for each kind of command; each adds its commands to `app`.

Exit codes: 0 done; 1 something is wrong, said in one sentence; 2 wrong usage; 3 done as far as
the budget went; 130 interrupted.
"""

from rtr_ray.cli.extending import extend
from rtr_ray.cli.jobs import explain, plan, run
from rtr_ray.cli.keys import keys_app
from rtr_ray.cli.learning import collect, evaluate, import_outcomes, train
from rtr_ray.cli.reporting import report
from rtr_ray.cli.routers import router_app
from rtr_ray.cli.serving import serve
from rtr_ray.cli.shared import app
from rtr_ray.cli.trying import demo, validate
from rtr_ray.cli.watching import grafana

__all__ = [
    "app",
    "collect",
    "demo",
    "evaluate",
    "explain",
    "extend",
    "grafana",
    "import_outcomes",
    "keys_app",
    "main",
    "plan",
    "report",
    "router_app",
    "run",
    "serve",
    "train",
    "validate",
]


def main() -> None:
    """The entry point."""
    app()
