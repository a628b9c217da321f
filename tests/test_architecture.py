"""Imports point one way, heavy packages stay where they belong, no file tells where it was written.

Each rule is a function from files to breaches of it: so it is tried on a tree that breaks it, too.
"""

from __future__ import annotations

import ast
import gc
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from rtr_ray.embedded.traces import SYSTEM_PROMPTS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rtr_ray"
LONGEST_FILE = 450

LAYERS = (
    {"errors"},
    {"types", "schemas", "storage", "lease", "yaml_door", "sandbox", "thrift"},
    {"strategies", "pool", "answers", "registry", "run_folder", "held_out"} | {"familiarity", "plainly"},
    {"encoders", "estimators", "policies", "executors"},
    {"grading", "ledger", "books", "corpus", "formats", "reading", "outcomes", "router", "dispatch"}
    | {"held_rows", "forecast", "makespan", "gate"},
    {"keys", "openai_batch", "share_cap"},
    {"cells", "corrections", "slices", "parts", "summary", "comparison", "screen", "training", "folds"}
    | {"terms", "extension", "acquisition"},
    {"versions", "explanation", "plan_screen", "labels", "verdict", "quality", "reports"} | {"importers"},
    {"pool_file", "routing_keys"},
    {"config", "job", "collection", "labelling"},
    {"embedded", "online"},
    {"distributed"},
    {"cli"},
)
"""From the ground up; a module imports from layers below, and from its own as long as there is no circle."""

PLUGINS = LAYERS[3]  # never import each other
ONLY_IN = {
    "ray": {"distributed"},
    "vllm": set(),  # by way of Ray Serve LLM alone
    "torch": {"encoders.packed", "encoders.sentence", "estimators.rtr", "embedded.train_models"},
    "transformers": {"encoders.sentence", "embedded.train_models"},
    "sentence_transformers": {"encoders.sentence"},
    "numba": {"estimators.rtr_table"},
    "openai": {"executors.openai", "executors.openai_stream"},
    "boto3": {"storage"},
    "matplotlib": {"reports.png"},
    "opentelemetry": {"distributed"},
}
"""package -> modules, or folders of modules, that may import it."""

HEAVY = ("ray", "vllm", "torch", "transformers", "sentence_transformers", "openai", "boto3", "pandas")
NEEDS_HEAVY = {
    "encoders.packed",
    "encoders.sentence",
    "estimators.rtr",
    "embedded.train_models",
    "executors.openai",
    "executors.openai_stream",
}


def name_of(file: Path, package: Path) -> str:
    """`estimators.rtr` for rtr_ray/estimators/rtr.py; a folder's __init__ has the folder's name."""
    parts = file.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parsed(source: str) -> ast.Module:
    """The syntax tree of a file.

    CPython 3.11 counts the depth of a tree in a place that all threads share (its issue 106905): where the
    collector runs something while a tree is built, another thread may build one as well, and either fails.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if collecting:
            gc.enable()


def imports_of(source: str, inside: str = "") -> set[str]:
    """Full names of all that is imported anywhere in a file, functions and `if TYPE_CHECKING` included.

    `from a import b` counts as a and as a.b, since b may be a module.

    Args:
        source: The file's text.
        inside: The package that the file lies in, for imports that begin with a dot.
    """
    found: set[str] = set()
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return found


def modules(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Each module of the package, and what it imports."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        inside = ".".join((package.name, *file.relative_to(package).parent.parts))
        found[name_of(file, package)] = imports_of(file.read_text(), inside)
    return found


def own(imports: Iterable[str], known: Iterable[str], package: str = "rtr_ray") -> set[str]:
    """Those of the imports that are modules of the package."""
    return {name.removeprefix(f"{package}.") for name in imports if name.startswith(f"{package}.")} & set(
        known
    )


def upward(found: Mapping[str, set[str]]) -> Iterator[str]:
    """Imports from a layer above, of one kind of plugin by another, and modules without a layer."""
    rank = {top: number for number, layer in enumerate(LAYERS) for top in layer}
    for module, imports in found.items():
        here = module.partition(".")[0]
        if here and here not in rank:
            yield f"{module} has no layer"
        for other in own(imports, found):
            there = other.partition(".")[0]
            if rank.get(there, -1) > rank.get(here, -1) or (there != here and {there, here} <= PLUGINS):
                yield f"{module} imports {other}"


def circles(found: Mapping[str, set[str]]) -> Iterator[str]:
    """Modules that import themselves by way of others; a folder's own __init__ does not count."""
    below = {
        module: {other for other in own(imports, found) if not module.startswith(f"{other}.")}
        for module, imports in found.items()
    }
    for module in below:
        seen: set[str] = set()
        ahead = set(below[module])
        while ahead:
            one = ahead.pop()
            seen.add(one)
            ahead |= below[one] - seen
        if module in seen:
            yield module


def misplaced(found: Mapping[str, set[str]]) -> Iterator[str]:
    """Packages imported where they do not belong."""
    for module, imports in found.items():
        for package, allowed in ONLY_IN.items():
            uses = any(name.split(".")[0] == package for name in imports)
            if uses and not {module, module.partition(".")[0]} & allowed:
                yield f"{module} imports {package}"


def internals(imports: Iterable[str]) -> list[str]:
    """Imports of what Ray and vLLM keep to themselves."""
    return [
        name
        for name in imports
        if name.split(".")[0] in ("ray", "vllm") and any(part.startswith("_") for part in name.split("."))
    ]


def without_docstring(source: str) -> list[str]:
    """Public functions and classes of a module that say nothing of themselves."""
    public = [
        node
        for node in parsed(source).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name[0] != "_"
    ]
    return [node.name for node in public if not ast.get_docstring(node)]


# in brackets, so that this file does not find itself
PLACES = re.compile(r"(?<![\w.])(/wor[k]/|/tm[p]/venv|/roo[t]/|/hom[e]/\w|/Use[r]s/\w|/op[t]/(pypi|wheels))")
"""Absolute paths of one machine."""
REGISTRIES = re.compile(
    r"artif[a]ctory|jfr[o]g|codeart[i]fact|devp[i]|\bnex[u]s[.\d-]|pkg[.]d[e]v\b|/simpl[e]/?(\s|[\"']|$)"
    r"|files[.]pythonhost[e]d|pypi[.]o[r]g|\w[.](interna[l]|cor[p]|intrane[t])\b|[\w]+:[\w]+@[\w.-]+/simpl[e]"
)
"""Where packages come from is the business of who installs; PyTorch's own index, in .ci/setup, is meant."""


def tells_of_a_machine(text: str) -> list[str]:
    """The lines that name a place or a registry of one machine."""
    return [line for line in text.splitlines() if PLACES.search(line) or REGISTRIES.search(line)]


def written_files() -> list[Path]:
    """Every file that git tracks or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def test_imports_point_one_way():
    found = modules()
    assert len(found) > 50
    assert list(upward(found)) == []
    assert {module.partition(".")[0] for module in found} - {""} == set.union(*LAYERS)


def test_no_module_imports_itself_by_way_of_others():
    assert list(circles(modules())) == []


def test_an_import_of_a_layer_above_or_of_another_plugin_is_seen():
    known = {name: set() for name in ("types", "pool", "router", "cli", "policies.score", "policies.base")}
    known |= {"distributed.batch": set(), "encoders.base": set(), "": set()}
    for module, name in [
        ("types", "pool"),
        ("router", "cli"),
        ("router", "distributed.batch"),
        ("policies.score", "encoders.base"),
        ("", "router"),
    ]:
        broken = known | {module: imports_of(f"def later():\n    from rtr_ray import {name.split('.')[0]}")}
        broken[module] |= imports_of(f"import rtr_ray.{name}")
        assert f"{module} imports {name}" in list(upward(broken))
    fine = known | {"policies.score": imports_of("from rtr_ray.policies.base import Policy")}
    assert list(upward(fine)) == []
    assert list(upward(known | {"newcomer": set()})) == ["newcomer has no layer"]


def test_a_circle_and_an_import_that_begins_with_a_dot_are_seen(tmp_path: Path):
    package = tmp_path / "rtr_ray"
    (package / "policies").mkdir(parents=True)
    (package / "policies/base.py").write_text("from .score import Score")
    (package / "policies/score.py").write_text("from ..policies import base")
    (package / "types.py").write_text("if TYPE_CHECKING:\n    from .cli import app")
    (package / "cli.py").write_text("import importlib\nimportlib.import_module('ray.data')")
    found = modules(package)
    assert set(circles(found)) == {"policies.base", "policies.score"}
    assert list(upward(found)) == ["types imports cli"]
    assert list(misplaced(found)) == ["cli imports ray"]


def test_heavy_packages_are_imported_only_where_they_belong():
    found = modules()
    assert list(misplaced(found)) == []
    # each of the places that may, does: else it may no longer
    assert {"encoders.sentence", "estimators.rtr"} <= {m for m in found if "torch" in found[m]}
    assert list(misplaced({"router": {"ray.data"}, "distributed.batch": {"ray.data"}})) == [
        "router imports ray"
    ]
    assert list(misplaced({"distributed.batch": {"vllm"}})) == ["distributed.batch imports vllm"]
    assert list(misplaced({"estimators.rtr_table": {"torch"}})) == ["estimators.rtr_table imports torch"]
    assert list(misplaced({"raylike": {"rays"}})) == []


_FORBID = """
import importlib, sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy!r}:
            raise AssertionError("imports " + name)
sys.meta_path.insert(0, Forbid())
for module in {modules!r}:
    importlib.import_module(module)
print(*sorted(set(sys.modules) & set({heavy!r})))
"""


def imported_without(heavy: Iterable[str], names: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """Import modules in a new process in which heavy packages cannot be imported."""
    code = _FORBID.format(heavy=tuple(heavy), modules=tuple(names))
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_everything_outside_of_distributed_is_imported_without_anything_heavy():
    light = [m for m in modules() if m.partition(".")[0] != "distributed" and m not in NEEDS_HEAVY]
    assert {"router", "dispatch", "cli", "job", "estimators.rtr_table", "storage"} <= set(light)
    done = imported_without(HEAVY, [f"rtr_ray.{m}".rstrip(".") for m in light])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == []


def test_what_runs_as_a_task_over_and_over_is_imported_without_serve_and_ray_data():
    code = (
        "import sys; {}; print(*sorted(set(sys.modules) & {{'ray.serve', 'ray.data', 'pandas', 'fastapi'}}))"
    )
    names = ("planning", "rest", "tallies", "cell_tasks", "ledger_actor")
    imports = "; ".join(f"import rtr_ray.distributed.{name}" for name in names)
    done = subprocess.run(
        [sys.executable, "-c", code.format(imports)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_what_trains_and_encodes_is_imported_without_ray_and_vllm():
    done = imported_without(("ray", "vllm"), ["rtr_ray.encoders.sentence", "rtr_ray.estimators.rtr"])
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_heavy_import_is_seen():
    done = imported_without(HEAVY, ["rtr_ray.estimators.rtr"])
    assert done.returncode == 1
    assert "AssertionError: imports torch" in done.stderr


def test_the_package_itself_loads_next_to_nothing():
    code = "import sys, rtr_ray; print(*sorted(set(sys.modules) & {'pyarrow', 'pydantic', 'rich', 'yaml'}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_nothing_of_what_ray_and_vllm_keep_to_themselves_is_imported():
    files = [
        f for folder in ("rtr_ray", "jobs", "tests", "benchmarks") for f in (ROOT / folder).rglob("*.py")
    ]
    found = {str(f.relative_to(ROOT)): internals(imports_of(f.read_text())) for f in files}
    assert {name: names for name, names in found.items() if names} == {}
    assert internals(imports_of("from ray import _private")) == ["ray._private"]
    assert sorted(internals(imports_of("from ray.serve._internal.x import y"))) == [
        "ray.serve._internal.x",
        "ray.serve._internal.x.y",
    ]
    assert internals(imports_of("import ray.data, numpy._core")) == []


def test_no_file_is_too_long_to_be_read_at_once():
    lengths = {str(f.relative_to(ROOT)): f.read_text().count("\n") for f in PACKAGE.rglob("*.py")}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_every_public_function_and_class_says_what_it_is():
    files = [f for f in PACKAGE.rglob("*.py") if "embedded" not in f.parts]
    found = {str(f.relative_to(ROOT)): without_docstring(f.read_text()) for f in files}
    assert {name: names for name, names in found.items() if names} == {}
    assert without_docstring("class A: pass\ndef b(): ...\nasync def c(): 1\ndef _d(): ...") == [
        "A",
        "b",
        "c",
    ]


def test_no_file_tells_of_the_machine_it_was_written_on():
    found = {}
    for file in written_files():
        data = file.read_bytes()
        if b"\0" not in data[:8192] and (lines := tells_of_a_machine(data.decode(errors="replace"))):
            found[str(file.relative_to(ROOT))] = lines[:3]
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "cd /wor" + "k/main",
        "python=/tm" + "p/venv/v/bin/python",
        "--index-url https://someone.jfr" + "og.io/artifacts",
        "index = https://packages.example.cor" + "p/simpl" + "e",
        "url = https://py" + "pi.or" + "g/project/x",
        "host = registry.build.interna" + "l",
        "open('/hom" + "e/me/notes')",
    ],
)
def test_a_line_that_tells_of_a_machine_is_seen(line: str):
    assert tells_of_a_machine(f"first\n{line}\nlast") == [line]


def test_a_line_that_tells_of_none_is_left_alone():
    text = (
        "the work folder\nhttps://download.pytorch.org/whl/cpu\n/tmp/run\nbucket/roo"
        + "t/part\na.simple/way\n"
    )
    assert tells_of_a_machine(text) == []


def test_the_embedded_pool_asks_as_its_models_were_taught():
    strategies = yaml.safe_load((PACKAGE / "embedded/pool.yaml").read_text())["strategies"]
    assert {name: spec.get("system", "") for name, spec in strategies.items()} == SYSTEM_PROMPTS
