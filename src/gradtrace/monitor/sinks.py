"""Where a trace's few numbers go, and the page at the end: other programs' dashboards.

Each sink's library is an extra of its own, imported when the sink is made. Names of numbers are those of `scalars`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from ..errors import BadArgument

PAGE_NAME = "gradtrace-report"


class Sink(Protocol):
    """What a monitor tells its numbers to."""

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a trace."""
        ...

    def page(self, path: Path) -> None:
        """Take the page, once, at the end."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


def _library(module: str, extra: str) -> Any:
    """Import what a sink needs.

    Raises:
        BadArgument: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise BadArgument(f"this sink needs {error.name or module}: pip install 'gradtrace[{extra}]'") from None


class Lines:
    """Plain JSON, a line a trace: {"step": 200, "gradtrace/rnn/share": 0.25, …}.

    Args:
        path: of the file, to which lines are added.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = Path(path)

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | dict(numbers)) + "\n")

    def page(self, path: Path) -> None:
        """Leave the page where it is."""

    def close(self) -> None:
        """Do nothing: every line is written."""


class TensorBoard:
    """TensorBoard's event files, through `torch.utils.tensorboard`. They have no place for a page.

    Args:
        where: a folder, or a `SummaryWriter` of the program, which stays open.
    """

    def __init__(self, where: Any) -> None:
        self._own = isinstance(where, (str, PathLike))
        library = _library("torch.utils.tensorboard", "tensorboard")
        self._writer = library.SummaryWriter(str(where)) if self._own else where

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def page(self, path: Path) -> None:
        """Do without."""

    def close(self) -> None:
        if self._own:
            self._writer.close()


class WandB:
    """Weights & Biases; the page is an artifact of the run.

    The program's own steps are left alone: the numbers are drawn over gradtrace/step.

    Args:
        run: of the program, which stays open; None to begin one.
        init: arguments of `wandb.init`, such as mode="offline".
    """

    def __init__(self, run: Any = None, **init: Any) -> None:
        self._library = _library("wandb", "wandb")
        self._own = run is None
        self._run = self._library.init(**init) if run is None else run
        self._run.define_metric("gradtrace/*", step_metric="gradtrace/step")

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"gradtrace/step": step} | dict(numbers))

    def page(self, path: Path) -> None:
        artifact = self._library.Artifact(PAGE_NAME, type="report")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        if self._own:
            self._run.finish()


class MLflow:
    """MLflow, through a client of its own; the page is an artifact of the run.

    Args:
        uri: of the tracking store; by default what the program has set.
        run_id: of a run of the program, which stays open; None to begin one.
        experiment: the name of its experiment.
    """

    def __init__(self, uri: str | None = None, *, run_id: str | None = None, experiment: str = "gradtrace") -> None:
        self._client = _library("mlflow", "mlflow").MlflowClient(tracking_uri=uri)
        self._own = run_id is None
        self.run_id = run_id or self._begin(experiment)

    def _begin(self, experiment: str) -> str:
        known = self._client.get_experiment_by_name(experiment)
        number = known.experiment_id if known is not None else self._client.create_experiment(experiment)
        return self._client.create_run(number).info.run_id

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._client.log_metric(self.run_id, mlflow_name(name), value, step=step)

    def page(self, path: Path) -> None:
        self._client.log_artifact(self.run_id, str(path))

    def close(self) -> None:
        if self._own:
            self._client.set_terminated(self.run_id)


def mlflow_name(name: str) -> str:
    """Write a name with the characters that MLflow allows.

    >>> mlflow_name("gradtrace/h.*.attn/share")
    'gradtrace/h._.attn/share'
    """
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


class Trackio:
    """trackio, in its local store.

    Args:
        project: its name.
        init: further arguments of `trackio.init`.
    """

    def __init__(self, project: str, **init: Any) -> None:
        self._library = _library("trackio", "trackio")
        self._run = self._library.init(project=project, **init)

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def page(self, path: Path) -> None:
        """Do without."""

    def close(self) -> None:
        self._run.finish()
