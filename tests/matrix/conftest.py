"""Say at the end of a run how many cells there were, what became of them, and which were left out and why."""

from __future__ import annotations

import pytest
from matrix.judge import Tally

ALL = pytest.StashKey[Tally]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ALL] = Tally()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    return request.config.stash[ALL]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[ALL]
    if found.programs:
        terminalreporter.section("matrix")
        terminalreporter.write_line("\n".join(found.lines()))
