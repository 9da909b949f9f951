"""`gradtrace study`: does what a trace says of a component foretell what training without it does?

A unit of work is one architecture under one seed: all sets of its components are trained side by side, the full network
is traced as it learns, and one line is appended to the results. A kill loses the unit it hits and no other. Processes
that share the work write a file each; `study.jsonl` is what they have done, in order. docs/study.md has the design.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import OptionError
from ..report.document import versions
from .checkpoint import write_whole
from .components import COMPONENTS
from .folder import prepare_folder
from .memories import TuringMachine
from .options import check_components, require
from .plugged import SENSES, Plugged, draw
from .predictors import predictors
from .seeds import derived_seed
from .side_by_side import SideBySide
from .statistics import shapley
from .tasks import TASKS

if TYPE_CHECKING:
    import pandas

SCHEMA = "gradtrace.study/1"
MERGED = "study.jsonl"
MEASURES = ("area", "samples", "final", "score")
DAMAGES = ("area", "samples", "final", "shapley_area", "shapley_samples", "shapley_final")
HOW_FAR = ("architectures", "seeds", "compile")  # and how fast: options that change no unit, but for rounding


@dataclass(frozen=True)
class StudyOptions:
    """What decides the numbers of a study.

    Attributes:
        architectures: how many, half of each sense.
        seeds: of each architecture, from 1 on.
        components: names to draw from.
        tasks: names to draw from.
        count: components in an architecture; 2^count - 1 networks are trained.
        traces: how often the full network is traced, evenly spaced, the first time before the first step.
        held_out: examples on which networks are evaluated.
        compile: whether `torch.compile` makes one call of the steps of the component that has most of them.
    """

    architectures: int = 4
    seeds: int = 2
    components: tuple[str, ...] = tuple(COMPONENTS)
    tasks: tuple[str, ...] = tuple(name for name in TASKS if name != "text")
    count: int = 4
    hidden: int = 16
    steps: int = 512
    batch: int = 32
    lr: float = 0.005
    eval_every: int = 16
    held_out: int = 128
    traces: int = 5
    trace_examples: int = 8
    seed: int = 1
    compile: bool = False

    def __post_init__(self) -> None:
        check_components(self.components)
        unknown = [name for name in self.tasks if name not in TASKS]
        require(bool(self.tasks) and not unknown, "tasks", f"of {', '.join(TASKS)}", ", ".join(unknown) or "none")
        for name in ("architectures", "seeds", "hidden", "steps", "batch", "eval_every", "held_out", "trace_examples"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(1 <= self.traces <= self.steps, "traces", f"from 1 to --steps ({self.steps})", self.traces)
        require(2 <= self.count <= 6, "count", "from 2 to 6", self.count)
        listed = len(self.components)
        require(self.count <= listed, "count", f"at most the {listed} components there are", self.count)
        require(0 < self.lr <= 1, "lr", "above 0 and at most 1", self.lr)
        require(0 <= self.seed < 2**63, "seed", "from 0 to 2^63 - 1", self.seed)
        there = not self.compile or any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
        require(there, "compile", "left out where there is no C++ compiler", "given")

    @property
    def header(self) -> dict[str, Any]:
        """Give the first line of a file of results."""
        said = {name: value for name, value in asdict(self).items() if name not in HOW_FAR}
        return {"schema": SCHEMA, "versions": versions(), "options": json.loads(json.dumps(said))}


@dataclass(frozen=True)
class Share:
    """Which of the architectures a process does: number `index` of `of`, from 1."""

    index: int = 1
    of: int = 1

    @classmethod
    def named(cls, text: str | None) -> Share:
        """Read "1/2"; without a text, a rank of torchrun's.

        Raises:
            OptionError: it is no share.
        """
        if text is None:
            return cls(int(os.environ.get("RANK", 0)) + 1, int(os.environ.get("WORLD_SIZE", 1)))
        index, _, of = text.partition("/")
        require(index.isdecimal() and of.isdecimal() and 1 <= int(index) <= int(of), "share", "like 1/2", text)
        return cls(int(index), int(of))

    @property
    def file(self) -> str:
        """Name its file."""
        return f"share-{self.index}-of-{self.of}.jsonl"

    def units(self, options: StudyOptions) -> list[tuple[int, int]]:
        """List its (architecture, seed), as many of each sense as can be."""
        mine = [n for n in range(options.architectures) if n // len(SENSES) % self.of == self.index - 1]
        return [(n, seed) for n in mine for seed in range(1, options.seeds + 1)]


@dataclass(frozen=True)
class Progress:
    """Something to show: so many of a share's units are done, and so many steps of the one that is being trained."""

    done: int
    units: int
    unit: str
    step: int
    steps: int


Watch = Callable[[Progress], None]


def study(
    options: StudyOptions, folder: Path, share: Share | None = None, watch: Watch = lambda progress: None
) -> Path:
    """Do a share of a study, or what is left of it.

    Args:
        folder: where the results go; what is there is not done again.

    Returns:
        the file that holds all that is done so far, of all shares.

    Raises:
        OptionError: the folder holds results of other options or versions, or another process does the same share.
    """
    share = share or Share()
    prepare_folder(folder)
    torch.set_num_threads(1)
    with _own(folder / share.file) as file:
        if not file.stat().st_size:
            _append(file, options.header)
        done = {(unit["architecture"], unit["seed"]) for unit in read_units(folder, options.header)}
        units = share.units(options)
        left = [unit for unit in units if unit not in done]
        for at, (number, seed) in enumerate(left, len(units) - len(left)):
            report = _reporter(watch, at, len(units), f"architecture {number}, seed {seed}", options.steps)
            _append(file, run_unit(options, number, seed, report))
    return merge(folder, options.header)


def _reporter(watch: Watch, done: int, units: int, unit: str, steps: int) -> Callable[[int], None]:
    return lambda step: watch(Progress(done, units, unit, step, steps))


@contextmanager
def _own(path: Path) -> Iterator[Path]:
    """Keep other processes from a file inside the block, and cut off what a kill left half written."""
    with path.open("ab+") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # not on this platform
            pass
        except BlockingIOError:
            raise OptionError(f"another gradtrace is writing {path}: wait for it, or take another --share") from None
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        yield path


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, separators=(",", ":")) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_units(path: Path, header: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Read the units in a file, or in all shares of a folder, by architecture and seed.

    Args:
        header: what the files have to begin with; by default any one.

    Raises:
        OptionError: there are none, or they belong to different studies.
    """
    files = sorted(path.glob("share-*.jsonl")) if path.is_dir() else [path]
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for file in files:
        for number, line in enumerate(_lines(file)):
            if number:
                found[line["architecture"], line["seed"]] = line
            else:
                header = header or line
                _same(file, line, header)
    if header is None:
        raise OptionError(f"{path} holds no results of gradtrace study")
    return [found[key] for key in sorted(found)]


def read_header(path: Path) -> dict[str, Any]:
    """Read the first line of a file, or of a folder's first share."""
    files = sorted(path.glob("share-*.jsonl")) if path.is_dir() else [path]
    for file in files:
        for line in _lines(file):
            _same(file, line, line)
            return line
    raise OptionError(f"{path} holds no results of gradtrace study")


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """Read whole lines; another process may be writing the last."""
    try:
        text = file.read_text(encoding="utf-8")
        yield from map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot read {file} as results of gradtrace study: {error}") from None


def _same(file: Path, line: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    if line.get("schema") != SCHEMA:
        raise OptionError(f"{file} does not begin as results of gradtrace study do ({SCHEMA})")
    for part in ("options", "versions"):
        differing = [name for name, value in header[part].items() if line[part].get(name) != value]
        if differing:
            name = differing[0]
            was, now = line[part].get(name), header[part][name]
            raise OptionError(f"{file} is of another study: {name} was {was}, not {now}; choose another --out")


def merge(folder: Path, header: Mapping[str, Any]) -> Path:
    """Write what all shares have done into one file, in order."""
    lines = [json.dumps(line, separators=(",", ":")) for line in (header, *read_units(folder, header))]
    path = folder / MERGED
    write_whole(path, lambda beside: beside.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return path


# ---------------------------------------------------------------- one unit


def run_unit(options: StudyOptions, number: int, seed: int, watch: Callable[[int], None]) -> dict[str, Any]:
    """Train all sets of components of one architecture under one seed, tracing the full network."""
    root = draw(options.seed, number, options.components, options.count)
    task_name = task_of(options.seed, number, options.tasks)
    task = TASKS[task_name]
    model = Plugged(root, task, options.hidden, seed)
    side = SideBySide(_compiled(model) if options.compile else model, task, range(1, 2**options.count), options.lr)
    held_out = task.held_out()[: options.held_out]
    traced = task.held_out()[: options.trace_examples]
    at = {round(n * options.steps / max(options.traces - 1, 1)) for n in range(options.traces)}
    taken, curve = [], []
    for step in range(options.steps + 1):
        if step:
            side.step(task.training(seed, step - 1, options.batch))
        if step in at:
            side.write(len(side.versions) - 1, model)
            taken.append(predictors(model, task, traced, held_out))
        if step % options.eval_every == 0 or step == options.steps:
            with torch.no_grad():
                curve.append((step, *side.losses(held_out)))
        watch(step)
    return {
        "architecture": number,
        "seed": seed,
        "sense": SENSES[number % len(SENSES)],
        "task": task_name,
        "solved": task.solved,
        "plan": root.plain(),
        "components": root.components,
        "runs": _outcomes(curve, task.solved, options.batch),
        "predictors": {
            name: [_short(sum(t[name][i] for t in taken) / len(taken)) for i in range(options.count)]
            for name in taken[0]
        },
    }


def _compiled(model: Plugged) -> Plugged:
    """Copy a network, to be trained with compiled steps; the one that is traced keeps its own."""
    copy = deepcopy(model)
    for module in copy.modules():
        if isinstance(module, TuringMachine):
            module.step = _compiled_step()  # type: ignore[method-assign]
    return copy


@cache
def _compiled_step() -> Any:
    return torch.compile(TuringMachine.step, dynamic=False)


def task_of(seed: int, number: int, tasks: Sequence[str]) -> str:
    """Draw an architecture's task."""
    return random.Random(derived_seed(seed, f"task {number}")).choice(tasks)


def _outcomes(curve: Sequence[tuple[Any, ...]], solved: float, batch: int) -> dict[str, list[float | None]]:
    """Give what became of each set of components, in the order of their bits."""
    losses, scores = (torch.stack([row[i] for row in curve], 1).double() for i in (1, 2))  # sets × evaluations
    reached = [[step for (step, *_), score in zip(curve, row, strict=True) if score >= solved] for row in scores]
    return {
        "area": [_short(x) for x in losses.mean(1).tolist()],
        "samples": [steps[0] * batch if steps else None for steps in reached],
        "final": [_short(x) for x in losses[:, -1].tolist()],
        "score": [_short(x) for x in scores[:, -1].tolist()],
    }


def _short(number: float) -> float | None:
    """Keep six digits: a file of many; None for what is not finite."""
    return float(f"{number:.6g}") if abs(number) < float("inf") else None


# ---------------------------------------------------------------- what was found


def damages(unit: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, list[float]]:
    """Say what is worse without each component (docs/study.md); ∞ samples where a run did not solve its task."""
    count = len(unit["components"])
    full = 2**count - 1
    runs = unit["runs"]
    area, final = ([_number(x, float("nan")) for x in runs[name]] for name in ("area", "final"))
    samples = [_number(x, float("inf")) for x in runs["samples"]]
    restricted = (options["steps"] + options["eval_every"]) * options["batch"]
    log = [float(torch.tensor(min(x, restricted) + 1.0, dtype=torch.float64).log()) for x in samples]
    without = [(full ^ 1 << bit) - 1 for bit in range(count)]  # sets are listed from 1
    found = {
        "area": [area[i] - area[-1] for i in without],
        "samples": [samples[i] for i in without],
        "final": [final[i] - final[-1] for i in without],
    }
    for name, values in ("area", area), ("samples", log), ("final", final):
        found[f"shapley_{name}"] = shapley(lambda bits, of=values: -of[bits - 1] if bits else 0.0, count)
    return found


def _number(x: float | None, missing: float) -> float:
    return missing if x is None else float(x)


def load_study(path: str | Path) -> pandas.DataFrame:
    """Load results into pandas: a row for each architecture, seed and component, a column for each measure.

    Args:
        path: a file, or the folder of a study, whose shares are read together.

    Raises:
        OptionError: there are no results of a study there.
    """
    import pandas

    place = Path(path)
    options = read_header(place)["options"]
    rows = []
    for unit in read_units(place):
        numbers = {**unit["predictors"], **damages(unit, options)}
        for i, component in enumerate(unit["components"]):
            row = {name: unit[name] for name in ("architecture", "seed", "sense", "task")} | {"component": component}
            rows.append(row | {name: _number(values[i], float("nan")) for name, values in numbers.items()})
    return pandas.DataFrame(rows)
