"""Markers, where the tests' own helpers are, and which build of the C++ kernels is tested."""

import os
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not


def use_native(folder: Path) -> None:
    """Take gradtrace._native from another folder, such as the sanitized build's."""
    (path,) = folder.glob("_native*.so")
    loader = ExtensionFileLoader("gradtrace._native", str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    sys.modules[loader.name] = module_from_spec(spec)
    loader.exec_module(sys.modules[loader.name])


if "GRADTRACE_NATIVE" in os.environ:
    use_native(Path(os.environ["GRADTRACE_NATIVE"]))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: everything instead of a few of each; runs with -m full only")
    config.addinivalue_line("markers", "matrix: every question × every program; runs with -m matrix only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long runs out, unless the command line chooses by marker."""
    if config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("full") or item.get_closest_marker("matrix")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
