"""Bad input that is known without a cluster: one sentence at once, and nothing is left behind.

What a file may hold is tested where it is read (`test_reading`, `test_corpus`, `test_config`,
`test_cli`); what shows only on a cluster, in `distributed/test_bad_input`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import save
from typer.testing import CliRunner

from benchmarks.fault_tools.s3 import S3
from rtr_ray.cli import app
from rtr_ray.config import load_pool
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.errors import RouterError
from rtr_ray.router import RouterFolder
from rtr_ray.run_folder import RunFolder
from rtr_ray.storage import open_store
from tests.test_cli import JOB, POOL, write_outcomes

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "from rtr_ray.cli import main; main()"
# root without any of root's powers: where Python lies stays within reach, what is another user's does not
POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
SOMEBODY = 65534
RUN = ("run", "--config", "job.yaml")
COLLECT = ("collect", "--pool", "pool.yaml", "--queries", "corpus.jsonl", "--output", "run")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pool, a router for it, a corpus and a job that could run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "pool.yaml").write_text(POOL)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "corpus.jsonl").write_text('{"query": "2+2?"}\n{"query": "3+3?"}\n')
    write_outcomes(
        tmp_path / "outcomes.parquet", *((m, s) for m in ("small", "large") for s in ("vanilla", "cot"))
    )
    found = CliRunner().invoke(
        app,
        ["train", "--outcomes", "outcomes.parquet", "--output", "router", "--encoder", "hash",
         "--estimator", "prior"],
        catch_exceptions=False,
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    return tmp_path


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def said(*arguments: str) -> str:
    """The one sentence of a command that fails before anything heavy is imported, and leaves all as is."""
    before = files_of(Path())
    found = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert found.exit_code == 1, found.output
    assert files_of(Path()) == before
    (line,) = [line for line in found.stderr.splitlines() if line]
    return line.removeprefix("error: ")


def said_outside(*arguments: str, by: tuple[str, ...] = (), **variables: str) -> str:
    """The same of a command that comes further, in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"} | variables
    done = subprocess.run(
        [*by, sys.executable, "-c", COMMAND, *arguments],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line]
    return line.removeprefix("error: ")


# --- the router -----------------------------------------------------------------------------------------


def listed_without_large(pool: str) -> str:
    return pool.replace("  large: {deployment: engine, profile: large and slow}\n", "")


def with_another_model(pool: str) -> str:
    return pool.replace("strategies:", "  huge: {deployment: engine, profile: huge}\nstrategies:")


def with_another_source(pool: str) -> str:
    return pool.replace("hub/small", "hub/other")


def with_another_length(pool: str) -> str:
    return pool.replace("[vanilla, cot]", "{vanilla: {builtin: vanilla, max_tokens: 7}, cot: {builtin: cot}}")


CHANGED = (
    "small:vanilla is not what the router was trained on: its source, prompt, sampling, max_tokens or "
    "reading of the answer has changed. Undo the change, or collect and train again."
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            listed_without_large,
            "The router knows the model 'large', which the pool does not list (it has small). List it (and "
            "exclude it, if it is not to be used), or train again.",
        ),
        (
            with_another_model,
            "The router has no outcomes of huge:vanilla, huge:cot. Collect some and train again, exclude "
            "them in the pool, or set router.untrained: by_profile.",
        ),
        (with_another_source, CHANGED),
        (with_another_length, CHANGED),
    ],
)
def test_a_router_of_another_pool_is_refused_and_the_difference_named(
    here: Path, change: Callable[[str], str], message: str
):
    assert change(POOL) != POOL
    (here / "pool.yaml").write_text(change(POOL))
    assert said(*RUN) == message


def test_a_strategy_that_the_router_knows_and_the_pool_does_not_is_named(here: Path):
    (here / "pool.yaml").write_text(POOL.replace("[vanilla, cot]", "[vanilla]"))
    assert said(*RUN) == (
        "The router knows the strategy 'cot', which the pool does not list (it has vanilla). List it (and "
        "exclude it, if it is not to be used), or train again."
    )


def test_any_estimator_takes_in_a_new_model_where_that_is_asked_for(here: Path):
    (here / "pool.yaml").write_text(with_another_model(POOL))
    found = RouterFolder.load("router").check(load_pool("pool.yaml"), "by_profile")
    assert [str(candidate) for candidate in found] == ["huge:vanilla", "huge:cot"]


def test_prices_may_change_without_training_again(here: Path):
    (here / "pool.yaml").write_text(POOL.replace("input_usd_per_mtok: 1", "input_usd_per_mtok: 0"))
    router = RouterFolder.load("router")
    assert router.check(load_pool("pool.yaml")) == []


def test_a_router_of_another_encoder_is_refused_with_both_names():
    with pytest.raises(RouterError) as refused:
        RouterFolder.load("router").bind(load_pool("pool.yaml"), HashEncoder(64))
    assert refused.value.message == (
        "The router was trained with the encoder 'hash:256'; the configuration has 'hash:64'. "
        "Use the same encoder, or train again."
    )


DAMAGED = "The router folder router is damaged ("


def changed_head(**changes: object) -> bytes:
    head = json.loads(Path("router/router.json").read_bytes())
    return json.dumps({k: v for k, v in (head | changes).items() if v is not None}).encode()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "router.json",
            lambda: b"{oops",
            "The router folder router is damaged (JSONDecodeError: Expecting property name",
        ),
        ("router.json", lambda: b"[]", f"{DAMAGED}AttributeError: "),
        (
            "router.json",
            lambda: changed_head(candidates=None),
            f"{DAMAGED}KeyError: 'candidates'). Train it again.",
        ),
        ("router.json", lambda: changed_head(input_tokens=[]), f"{DAMAGED}TypeError: "),
        ("estimator.safetensors", lambda: b"cut", f"{DAMAGED}SafetensorError: "),
        ("estimator.safetensors", lambda: save({}), f"{DAMAGED}TypeError: "),  # of another estimator
        (
            "router.json",
            lambda: changed_head(schema_version=99),
            "The router folder router has schema version 99; this rtr-ray reads version 1. Train it again.",
        ),
        (
            "router.json",
            lambda: changed_head(estimator="crystal-ball"),
            "Unknown estimator kind 'crystal-ball'. Known kinds: ",
        ),
    ],
)
def test_a_damaged_router_is_told(here: Path, file: str, content: Callable[[], bytes], message: str):
    (here / "router" / file).write_bytes(content())
    assert said(*RUN).startswith(message)


# --- prices ---------------------------------------------------------------------------------------------


def test_a_price_that_is_missing_is_refused_and_a_price_of_zero_is_not(here: Path):
    (here / "pool.yaml").write_text(POOL.replace(", output_usd_per_mtok: 4", ""))
    for command in (RUN, COLLECT):
        assert said(*command) == (
            "pool.yaml: deployments.engine.prices.output_usd_per_mtok is missing. Expected: dollars per "
            "million tokens, 0 for free, at most 6 decimals."
        )
    (here / "pool.yaml").write_text(POOL.replace("_mtok: 1", "_mtok: 0").replace("_mtok: 4", "_mtok: 0"))
    assert CliRunner().invoke(app, ["validate", "pool.yaml"]).exit_code == 0


# --- the output -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "folder"), [(RUN, "run"), (COLLECT, "run/_run")], ids=["run", "collect"])
def test_an_output_that_holds_another_run_is_left_as_it_is(here: Path, command: tuple[str, ...], folder: str):
    names = ("config", "queries", "corpus", "router", "pool")
    RunFolder.open(folder, dict.fromkeys(names, "another"), "mine: true")
    (here / folder / "results").mkdir()
    (here / folder / "results" / "part-1.parquet").write_bytes(b"paid for")
    before = files_of(here)
    differs = "config" if command is RUN else "queries"
    message = said_outside(*command)
    assert message.startswith(f"{folder} holds another run: its {differs} differs (it was another, now ")
    assert message.endswith("). Take another output, or --fresh to move it aside.")
    assert files_of(here) == before


@pytest.mark.parametrize(("command", "folder"), [(RUN, "run"), (COLLECT, "run/_run")], ids=["run", "collect"])
def test_an_output_below_a_file_is_told(here: Path, command: tuple[str, ...], folder: str):
    before = files_of(here)
    message = said_outside(*command, "--output", "pool.yaml/run")
    assert message == (
        f"Cannot write {here}/pool.yaml/{folder}/run.json: Not a directory. "
        "Give an output folder that can be written to."
    )
    assert files_of(here) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not there")
@pytest.mark.parametrize(("command", "folder"), [(RUN, "run"), (COLLECT, "run/_run")], ids=["run", "collect"])
def test_an_output_without_permission_is_told(here: Path, command: tuple[str, ...], folder: str):
    (here / "closed").mkdir(mode=0o700)
    here.chmod(0o755)
    for place in (here, here / "closed"):
        os.chown(place, SOMEBODY, SOMEBODY)
    before = files_of(here)
    for place in ("closed/", ""):  # in a folder that is somebody else's alone; beside files that all may read
        message = said_outside(*command, "--output", f"{place}run", by=POWERLESS)
        assert message == (
            f"Cannot write {here}/{place}{folder}/run.json: Permission denied. "
            "Give an output folder that can be written to."
        )
    assert files_of(here) == before
    assert not (here / "run").exists()
    assert list((here / "closed").iterdir()) == []


@pytest.mark.parametrize(("command", "folder"), [(RUN, "run"), (COLLECT, "run/_run")], ids=["run", "collect"])
def test_a_bucket_that_one_may_only_read_is_told_before_anything_is_asked(
    here: Path, command: tuple[str, ...], folder: str, s3_bucket: str, s3_environment: str
):
    before = files_of(here)
    with S3(upstream=s3_environment) as s3:
        s3.kinds, s3.strength = ("403 to writes",), 1.0
        message = said_outside(*command, "--output", f"{s3_bucket}/run", **s3.variables())
        assert s3.injected["403 to writes"] > 0
    assert message.startswith(f"Cannot write {s3_bucket}/{folder}/")
    assert "Access Denied" in message
    assert message.endswith("the region and the credentials.")
    assert files_of(here) == before
    assert open_store(s3_bucket).keys() == []


def test_a_cluster_that_does_not_answer_is_told_and_the_same_command_may_go_on(here: Path):
    message = said_outside(*RUN, "--address", "127.0.0.1:1")
    assert message == (
        "No Ray cluster answers at 127.0.0.1:1 (Connection refused). Start one with ray start --head, or "
        "leave the address (and RAY_ADDRESS) out to start one here."
    )
    # from the first minute the folder says what became of it, and nothing else is in it
    assert set(files_of(here / "run")) == {"run.json", "config.yaml"}
    head = json.loads((here / "run" / "run.json").read_text())
    assert (head["status"], head["error"]) == ("failed", message)
