"""The cut of the code, read from its imports: who may know whom, which door each library has, what may suspend.

A failure here says that a change reached into another room. Move it, or argue for a new rule in docs/architecture.md.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "simdist").rglob("*.py"))
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix() for folder in ("scenarios", "analysis") for path in (ROOT / folder).rglob("*.py")
)

#: what everybody may import, and what those modules may import themselves
BASE = {"errors", "units", "settings", "registry"}

#: package -> what it may import of ours, besides itself and BASE
MAY_IMPORT: dict[str, set[str]] = {
    "program": set(),
    "linalg": set(),
    "codecs": set(),
    # the algorithm side
    "exchange": {"program", "codecs"},
    "optimizers": {"program", "linalg", "codecs", "exchange"},
    "compression": {"program", "linalg", "codecs", "exchange"},
    "workloads": {"program"},
    "parallelism": {"program", "linalg", "optimizers", "compression"},
    "schedules": {"program", "linalg", "optimizers", "compression", "parallelism"},
    # the world side
    "communication": {"program"},
    "network": {"yaml_text"},
    "execution": {"program", "codecs", "communication", "network"},
    # what is left of a run
    "results": {"communication", "execution.clock", "execution.tasks"},
    # where the axes meet: settings only, no engine
    "devices": {"choosing", "profiles", "stragglers"},
    "profiles": {"execution.compute_model", "yaml_text"},
    "stragglers": set(),
    "choosing": set(),
    "yaml_text": set(),
    "scenario": {
        "choosing",
        "codecs",
        "communication",
        "compression",
        "devices",
        "execution.overlap",
        "execution.settings",
        "loading",
        "network",
        "optimizers",
        "schedules",
        "workloads",
        "yaml_text",
    },
}
#: for annotations only (``if TYPE_CHECKING``), on top of MAY_IMPORT
MAY_NAME: dict[str, set[str]] = {"parallelism": {"workloads"}, "schedules": {"workloads"}}

#: library -> the only files that may import it
DOORS: dict[str, tuple[str, ...]] = {
    "ray": ("simdist/execution/ray_*.py",),
    "networkx": ("simdist/network/*.py",),
    "matplotlib": ("simdist/results/plots*.py", "analysis/*.py"),
    "pyarrow": ("simdist/results/*.py",),
    "fsspec": ("simdist/results/remote.py",),
    "jinja2": ("simdist/results/report*.py",),
    "sklearn": ("simdist/workloads/digits.py",),
    "yaml": ("simdist/yaml_text.py", "simdist/results/*.py"),
    "typer": ("simdist/cli.py",),
    "torch.distributed": ("simdist/execution/gloo.py", "simdist/execution/ray_*.py"),
}

#: scripts that hold simdist against something else: they use its parts, and real torch.distributed
JUDGES = ("analysis/fidelity/*.py", "analysis/benchmarks/*.py")

#: seconds and bytes know no tensors
NO_TORCH = (
    "simdist/network/*.py",
    "simdist/communication/plans/*.py",
    "simdist/communication/trace.py",
    "simdist/communication/ledger.py",
    "simdist/execution/events.py",
    "simdist/execution/timeline.py",
    "simdist/execution/collective_times.py",
    "simdist/execution/compute_model.py",
    "simdist/execution/course.py",
    "simdist/execution/evaluation.py",
    "simdist/execution/overlap/*.py",
    "simdist/execution/planning.py",
    "simdist/execution/pricing.py",
    "simdist/execution/replay.py",
    "simdist/execution/segments.py",
    "simdist/execution/tasks.py",
    "simdist/execution/clock.py",
    "simdist/execution/pacing.py",
    "simdist/results/[!r]*.py",  # recorder.py writes a hash of the parameters
    "simdist/results/report*.py",
    "analysis/*.py",
)

#: the clock is simulated: only the driver of a run and what waits for other processes read a real one
WALL_TIME = (
    "simdist/assembly.py",
    "simdist/running.py",
    "simdist/checkpointing.py",
    "simdist/irregular_run.py",
    "simdist/execution/ray_*.py",
    "simdist/execution/gloo.py",
)

#: the only file that suspends, and the files that may call it; everything else asks through its mesh and worker
SUSPENDS = "simdist/program/ask.py"
MAY_ASK = ("simdist/program/mesh.py", "simdist/program/worker.py")

#: puts the global streams, which third-party optimizers draw from, under keyed seeds
SEEDS = "simdist/optimizers/torch_stepping.py"

LONGEST = 400


@dataclass(frozen=True)
class Import:
    """One imported module, as ``package.module`` or ``package.module.name``, and whether it is for annotations only."""

    module: str
    line: int
    typing_only: bool


@cache
def tree_of(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text("utf-8"), file)


@cache
def imports_of(file: str) -> tuple[Import, ...]:
    def walk(node: ast.AST, typing_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from simdist import scenario` names a module, `from simdist.units import Rate` does not
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "simdist" else [module]
            yield from (Import(name, node.lineno, typing_only) for name in names)
        guarded = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for field, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, typing_only or (guarded and field == "body"))

    return tuple(walk(tree_of(file), False))


def matches(file: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(file, pattern) for pattern in patterns)


def room_of(file: str) -> str:
    """The package of ours that a file is in, or the name of a module that is in none."""
    return Path(file).parts[1].removesuffix(".py")


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in allowed)


def test_the_tables_speak_of_files_that_exist() -> None:
    rooms = {room_of(file) for file in FILES}
    assert rooms >= MAY_IMPORT.keys() | MAY_NAME.keys() | BASE
    packages = {room_of(file) for file in FILES if len(Path(file).parts) > 2}
    assert packages <= MAY_IMPORT.keys(), "a new package needs a line in MAY_IMPORT"
    patterns = [pattern for door in DOORS.values() for pattern in door]
    for pattern in (*patterns, *NO_TORCH, *WALL_TIME, SUSPENDS, *MAY_ASK):
        assert any(fnmatch(file, pattern) for file in FILES + SCRIPTS), pattern


def test_who_imports_whom() -> None:
    wrong = []
    for file in FILES:
        room = room_of(file)
        for found in imports_of(file):
            if found.module.startswith("."):
                wrong.append(f"{file}:{found.line}: relative import")
            if found.module.split(".")[0] != "simdist":
                continue
            module = found.module.removeprefix("simdist").removeprefix(".")
            if within(module, {"cli"}):
                wrong.append(f"{file}:{found.line}: nobody imports the command line")
            if room in BASE:
                allowed = BASE
            elif room in MAY_IMPORT:
                allowed = BASE | {room} | MAY_IMPORT[room] | (MAY_NAME.get(room, set()) if found.typing_only else set())
            else:
                continue  # the driving modules at the top of the package bring everything together
            if not within(module, allowed):
                wrong.append(f"{file}:{found.line}: {room} may not import {found.module}")
    assert not wrong, "\n".join(wrong)


def test_analysis_knows_results_only() -> None:
    """Scripts from run folders to figures never train; scenarios that live beside their results are scenarios."""

    def is_scenario(file: str) -> bool:
        functions = {node.name for node in tree_of(file).body if isinstance(node, ast.FunctionDef)}
        return bool(functions & {"scenario", "sweep"})

    scripts = [
        file for file in SCRIPTS if file.startswith("analysis/") and not matches(file, JUDGES) and not is_scenario(file)
    ]
    wrong = [
        f"{file}:{found.line}: {found.module}"
        for file in scripts
        for found in imports_of(file)
        if within(found.module, {"simdist"}) and not within(found.module, {"simdist.results"})
    ]
    assert not wrong, "\n".join(wrong)


def test_each_library_has_one_door() -> None:
    wrong = []
    for file in FILES + SCRIPTS:
        for found in imports_of(file):
            if found.typing_only or matches(file, JUDGES):
                continue
            for library, door in DOORS.items():
                if within(found.module, {library}) and not matches(file, door):
                    wrong.append(f"{file}:{found.line}: {library} is imported in {', '.join(door)} only")
            if within(found.module, {"torch"}) and matches(file, NO_TORCH):
                wrong.append(f"{file}:{found.line}: no torch here")
    assert not wrong, "\n".join(wrong)


def test_libraries_are_declared() -> None:
    """What simdist imports is in pyproject.toml, not merely pulled in by something else that is."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    project = text[: text.index("dev = [")]
    declared = {name.lower() for name in re.findall(r'^ *(?:\w+ = \[)?"([A-Za-z0-9_-]+)>=', project, re.MULTILINE)}
    distribution = {"yaml": "pyyaml", "sklearn": "scikit-learn", "pydantic_core": "pydantic"}
    known = {"simdist", "analysis", *sys.stdlib_module_names}
    roots = {found.module.split(".")[0]: file for file in FILES + SCRIPTS for found in imports_of(file)}
    missing = {
        root: file
        for root, file in roots.items()
        if root not in known and distribution.get(root, root.replace("_", "-")) not in declared
    }
    assert not missing


def test_one_file_suspends() -> None:
    """``await`` means communication or time, because every suspension comes from one function."""
    wrong = []
    for file in FILES:
        for found in imports_of(file):
            if found.module == SUSPENDS.removesuffix(".py").replace("/", ".") and not matches(file, MAY_ASK):
                wrong.append(f"{file}:{found.line}: ask through the mesh or the worker")
            if within(found.module, {"asyncio", "trio", "anyio"}):
                wrong.append(f"{file}:{found.line}: {found.module} is another event loop")
        for node in ast.walk(tree_of(file)):
            line = f"{file}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.AsyncFunctionDef) and any(isinstance(x, ast.Yield) for x in ast.walk(node)):
                wrong.append(f"{line}: asynchronous generator")
            if isinstance(node, (ast.AsyncFor, ast.AsyncWith)):
                wrong.append(f"{line}: only await suspends")
            coroutine = isinstance(node, ast.Attribute) and ast.unparse(node) == "types.coroutine"
            awaitable = isinstance(node, ast.FunctionDef) and node.name == "__await__"
            if (coroutine or awaitable) and file != SUSPENDS:
                wrong.append(f"{line}: only {SUSPENDS} suspends")
    assert not wrong, "\n".join(wrong)
    assert sum(isinstance(node, ast.Yield) for node in ast.walk(tree_of(SUSPENDS))) == 1


def test_real_clocks_and_global_randomness_stay_out() -> None:
    wrong = []
    for file in FILES:
        for found in imports_of(file):
            if found.module in ("time", "datetime") and not matches(file, WALL_TIME):
                wrong.append(f"{file}:{found.line}: simulated time only; have a clock passed in")
            if found.module in ("random", "numpy.random") and file != SEEDS:
                wrong.append(f"{file}:{found.line}: draw from simdist.program.random, keyed by purpose")
    assert not wrong, "\n".join(wrong)


def test_kernels_take_leading_worker_axes() -> None:
    """The same text runs for one worker and for a stacked cohort: no fixed dims, no branch on a tensor's value."""
    instead = {"T": "write .mT", "item": "a cohort has one value per worker", "tolist": "a cohort has many values"}
    wrong = [
        f"{file}:{node.lineno}: .{node.attr}: {instead[node.attr]}"
        for file in FILES
        if room_of(file) in ("optimizers", "linalg")
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Attribute) and node.attr in instead
    ]
    assert not wrong, "\n".join(wrong)


def test_files_are_short_and_public_things_documented() -> None:
    wrong = []
    for file in FILES:
        tree = tree_of(file)
        length = len((ROOT / file).read_text("utf-8").splitlines())
        if length > LONGEST:
            wrong.append(f"{file}: {length} lines; more than {LONGEST} hold more than one idea")
        if not ast.get_docstring(tree):
            wrong.append(f"{file}: no docstring")
        wrong += [
            f"{file}:{node.lineno}: {node.name} has no docstring"
            for node in tree.body
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", ["simdist", "simdist.cli"])
def test_light_imports(module: str) -> None:
    """``simdist --help`` does not wait for torch."""
    code = f"import sys, {module}; print(*sorted({{'torch', 'ray', 'matplotlib', 'pyarrow'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []
