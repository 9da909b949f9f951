"""The options of `gradtrace compete`: defaults, limits, and the errors of someone who mistypes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..errors import OptionError, UnknownName
from .components import COMPONENTS, find, label
from .tasks import TASKS

ABLATIONS = ("each", "cumulative", "all")  # each has all runs of the one before it
OF_TEXTS = ("corpus", "vocabulary", "bptt")  # what other tasks have not
RESERVED = ("components", "embedding", "output")  # attributes of a `Competition`


@dataclass(frozen=True)
class Options:
    """What decides the numbers of a competition: two runs with equal options give equal results.

    Attributes:
        task: what is learned: a name in `TASKS`; "text" has `corpus`, `vocabulary` and `bptt` beside it.
        components: which modules compete.
        parameters: how many each of them should have; None for what the width makes of them.
        ablate: what is left out in turn: "each" component; also the least influential, then the next as well, and the
            other way round ("cumulative"); also every other set of them ("all").
        seeds: how many times all of it is done, from `seed` on.
        corpus: path of a UTF-8 text file; None for the text that CPython carries.
        vocabulary: words known to the model, `<unk>` included.
        hidden: width of the embedding and of every component.
        bptt: words in a window, the length of backpropagation through time.
        batch: windows in a training step.
        trace_examples: held-out windows that are traced, every `trace_every` steps.
        threads: CPU threads. The order of sums depends on it, and at the default size more are no faster.
    """

    task: str = "text"
    components: tuple[str, ...] = ("rnn", "lstm", "gru")
    parameters: int | None = None
    ablate: str = "each"
    seeds: int = 1
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
        if self.task not in TASKS:
            raise UnknownName(f"unknown task {self.task!r}; there are {', '.join(TASKS)}")
        require(self.ablate in ABLATIONS, "ablate", f"one of {', '.join(ABLATIONS)}", self.ablate)
        most = "at most 6 components, which have 62 sets"
        require(self.ablate != "all" or len(self.components) <= 6, "ablate all", most, len(self.components))
        require(1 <= self.seeds <= 1000, "seeds", "from 1 to 1000", self.seeds)
        require(self.parameters is None or self.parameters >= 1, "parameters", "at least 1", self.parameters)
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
        OptionError: a component is named twice, or none is named; one has a name that is taken.
    """
    if not names:
        raise OptionError(f"--components names none; there are {', '.join(COMPONENTS)}")
    for name in names:
        find(name)
    labels = [label(name) for name in names]
    twice = sorted({n for n in labels if labels.count(n) > 1})
    if twice:
        raise OptionError(f"--components names {', '.join(twice)} more than once")
    for name in set(names) - set(COMPONENTS):
        if hasattr(nn.Module(), label(name)) or label(name) in RESERVED:
            raise OptionError(f"{name}: a component cannot have the name {label(name)}, which a model has for itself")
