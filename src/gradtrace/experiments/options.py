"""The options of `gradtrace compete`: defaults, limits, and the errors of someone who mistypes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import GradtraceError, UnknownName
from .components import COMPONENTS


class OptionError(GradtraceError):
    """An option, file or folder with which an experiment cannot run."""


@dataclass(frozen=True)
class Options:
    """What decides the numbers of a competition: two runs with equal options give equal results.

    Attributes:
        components: which modules compete.
        corpus: path of a UTF-8 text file; None for the text that CPython carries.
        vocabulary: words known to the model, `<unk>` included.
        hidden: width of the embedding and of every component.
        bptt: words in a window, the length of backpropagation through time.
        batch: windows in a training step.
        trace_examples: held-out windows that are traced, every `trace_every` steps.
        threads: CPU threads. The order of sums depends on it, and at the default size more are no faster.
    """

    components: tuple[str, ...] = ("rnn", "lstm", "gru")
    corpus: str | None = None
    seed: int = 1
    steps: int = 1600
    hidden: int = 64
    bptt: int = 20
    batch: int = 16
    vocabulary: int = 10_000
    lr: float = 0.002
    trace_every: int = 200
    trace_examples: int = 8
    eval_every: int = 50
    threads: int = 1

    def __post_init__(self) -> None:
        check_components(self.components)
        for name in ("steps", "hidden", "bptt", "batch", "trace_every", "trace_examples", "eval_every", "threads"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.hidden <= 4096, "hidden", "at most 4096", self.hidden)
        require(self.threads <= 256, "threads", "at most 256", self.threads)
        require(self.vocabulary >= 2, "vocabulary", "at least 2", self.vocabulary)
        require(0 < self.lr <= 1, "lr", "above 0 and at most 1", self.lr)
        require(0 <= self.seed < 2**63, "seed", "from 0 to 2^63 - 1", self.seed)


def require(true: bool, name: str, allowed: str, given: object) -> None:
    """Raise `OptionError` unless `true`."""
    if not true:
        raise OptionError(f"--{flag(name)} must be {allowed}, not {given}")


def flag(name: str) -> str:
    """Spell an option's name as on the command line."""
    return {"vocabulary": "vocab"}.get(name, name.replace("_", "-"))


def check_components(names: Sequence[str]) -> None:
    """Raise unless every name is that of a component, and none comes twice.

    Raises:
        UnknownName: with the components that exist.
        OptionError: a component is named twice, or none is named.
    """
    if not names:
        raise OptionError(f"--components names none; there are {', '.join(COMPONENTS)}")
    for name in names:
        if name not in COMPONENTS:
            raise UnknownName(f"unknown component {name!r}; there are {', '.join(COMPONENTS)}")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise OptionError(f"--components names {', '.join(twice)} more than once")
