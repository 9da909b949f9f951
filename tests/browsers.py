"""The browsers in which reports are tested: Debian's own, headless. Firefox is spoken to in WebDriver BiDi."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PROGRAMS = {"chromium": ("chromium", "chromium-browser"), "firefox": ("firefox-esr", "firefox")}
OPTIONS: dict[str, dict[str, Any]] = {"chromium": {"args": list(QUIET)}, "firefox": {"channel": "moz-firefox"}}

in_both = pytest.mark.parametrize("browser", list(PROGRAMS), indirect=True)


def program(name: str) -> str | None:
    """Find a browser."""
    return next(filter(None, map(shutil.which, PROGRAMS[name])), None)
