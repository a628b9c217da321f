"""serve.yaml: what it may say, and what is refused before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rtr_ray.config import ServeFile, load_serving
from rtr_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]


def written(folder: Path, **content: object) -> Path:
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({"pool": "embedded"} | content))
    return path


def test_the_file_that_make_serve_takes_is_read():
    file = load_serving(ROOT / "serve.yaml")
    assert (file.pool, file.host, file.router) == ("embedded", "127.0.0.1", None)
    assert file.feedback_uri == "runs/serve/feedback"


def test_flags_stand_over_the_file_and_the_rest_has_defaults(tmp_path: Path):
    file = load_serving(written(tmp_path), {"port": 9, "cluster.address": "127.0.0.1:6379"})
    assert (file.port, file.cluster.address) == (9, "127.0.0.1:6379")
    assert file.swap.policy == {"kind": "score", "lam": 0.95}
    assert file.router_path is None


def test_only_what_can_change_in_flight_is_in_the_user_config(tmp_path: Path):
    file = load_serving(written(tmp_path, router={"path": "r", "untrained": "by_profile"}, port=9))
    assert set(file.swap.model_dump(mode="json")) == {
        "router",
        "policy",
        "shadow",
        "latency_weight",
        "warm_within",
    }
    assert (file.swap.router_path, file.swap.untrained) == ("r", "by_profile")
    assert ServeFile.model_validate(file.model_dump()) == file


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"port": 70000}, "port"),
        ({"reads": "tea leaves"}, "reads"),
        ({"models": {"nano": {"min_replicas": -1}}}, "min_replicas"),
        ({"ingress": {"most_in_flight": 0}}, "most_in_flight"),
        ({"roter": "r"}, "roter"),
        ({"shadow": {"lam": 1}}, "lam"),
        ({"latency_weight": -1}, "latency_weight"),
        ({"warm_within": 101}, "warm_within"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: dict[str, object], complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        load_serving(written(tmp_path, **content))
