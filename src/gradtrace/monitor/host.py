"""What the callbacks of trainers share: where their monitor keeps its history, and that they are one of its sinks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..ranks import is_first
from .book import HISTORY
from .monitor import Monitor, several

FOLDER = "gradtrace"


class Host:
    """A callback that has a monitor, and tells a trainer what it finds: a sink that has no place for a page."""

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a trace."""
        raise NotImplementedError

    def page(self, path: Path) -> None:
        """Leave the page where it is."""

    def close(self) -> None:
        """Do nothing."""

    def watching(self, model: nn.Module, beside: str | Path, options: Mapping[str, Any], *, anew: bool) -> Monitor:
        """Make a monitor that tells this callback its numbers too.

        Args:
            beside: the folder in which its own is, where `options` name none.
            anew: forget the history that is there; else go on with it.
        """
        folder = Path(options.get("folder", Path(beside) / FOLDER))
        if anew and is_first(options.get("group")):
            (folder / HISTORY).unlink(missing_ok=True)
        sinks = [*several(options.get("sinks", ())), self]
        return Monitor(model, **{**options, "folder": folder, "sinks": sinks}, resume=True)
