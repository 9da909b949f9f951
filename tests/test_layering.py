"""Layers import downward only: every import in the source, checked against one table."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gradtrace

ROOT = Path(gradtrace.__file__).parent

# The rooms, from the bottom up (docs/architecture.md). A module may import from rows above its own in this table, and
# from its own room.
LAYERS = [
    {"errors"},
    {"recording"},
    {"semirings", "jacobians"},
    {"kernels"},
    {"backward"},
    {"queries"},
    {"kept"},
    {"report"},
    {"api", "ranks"},
    {"saved"},
    {"components", "rules"},  # doors to rooms further down, under the names that programs use
    {"gradtrace"},  # the package's own __init__: the public names
    {"scalar", "gallery"},
    {"monitor"},
    {"experiments"},
    {"cli"},
    {"__main__"},
]
# What would be downward, and is still not wanted: kernels know what a carrier is, and none of the semirings.
FORBIDDEN = {("kernels", name) for name in ("axioms", "entropy", "folding", "graded", "power", "ranked", "together")}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below it."""
    found = {}
    for path in ROOT.rglob("*.py"):
        if ROOT / "examples" in path.parents:  # which a wheel carries along
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts) or "gradtrace"] = path
    return found


MODULES = modules()


def imports(name: str, path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in the file."""
    package = [] if name == "gradtrace" else name.split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {module_of(a.name.split(".")[1:]) for a in node.names if a.name.split(".")[0] == "gradtrace"}
        elif isinstance(node, ast.ImportFrom):
            source = (node.module or "").split(".") if node.module else []
            if node.level:
                source = package[: len(package) - node.level + 1] + source
            elif source[:1] == ["gradtrace"]:
                source = source[1:]
            else:
                continue
            found |= {module_of([*source, a.name]) for a in node.names}
    return found - {name}


def module_of(parts: list[str]) -> str:
    """The longest prefix of a dotted name that is a module; the rest is a name inside it."""
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in MODULES:
            return ".".join(parts[:end])
    return "gradtrace"


def top(name: str) -> str:
    return name.split(".")[0]


def layer(name: str) -> int:
    return next(i for i, row in enumerate(LAYERS) if top(name) in row)


def test_the_table_places_every_module_once_and_nothing_else():
    placed = [name for row in LAYERS for name in row]
    assert sorted(placed) == sorted({top(name) for name in MODULES})


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_downward(name):
    for imported in imports(name, MODULES[name]):
        if top(imported) == top(name):
            continue
        assert layer(imported) < layer(name), f"{name} imports {imported}, which is not below it"
        assert (top(name), imported.removeprefix("semirings.")) not in FORBIDDEN, f"{name} must not import {imported}"


def test_no_cycles():
    graph = {name: imports(name, path) for name, path in MODULES.items()}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError with the cycle


def test_imports_are_seen():
    assert {"api", "experiments.results"} <= imports("experiments.compete", MODULES["experiments.compete"])
    assert {"gradtrace"} <= imports("cli", MODULES["cli"])
    rule = "jacobians.rules.pointwise"
    assert {"jacobians.rules.table", "recording.record"} <= imports(rule, MODULES[rule])


def test_importing_gradtrace_needs_no_optional_package():
    optional = {"pandas", "transformers", "hypothesis", "pytest", "triton", "matplotlib", "lightning", "tensorboard"}
    optional |= {"wandb", "mlflow", "trackio"}
    for name, path in MODULES.items():
        # what is imported only once a kernel runs, and callbacks that are classes of the library that calls them
        if name in ("kernels.triton_source", "monitor.trainer", "monitor.lightning"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not optional & {n.split(".")[0] for n in names}, name
