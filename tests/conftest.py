"""Markers, and where the tests' own helpers are."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: everything instead of a few of each; runs with -m full only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the full runs out, unless the command line chooses by marker."""
    if config.option.markexpr:
        return
    full = [item for item in items if item.get_closest_marker("full")]
    if full:
        config.hook.pytest_deselected(items=full)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
