"""What a caller may ask: each check gives the argument in the form that is worked with, or says what is allowed."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from os import PathLike
from pathlib import Path as File
from typing import Any

from torch import Tensor

from ..errors import BadArgument, UnknownName
from ..recording.components import Component, Slice
from .forest import KINDS
from .paths import Path


def whole(name: str, given: Any, least: int) -> int:
    """Take a whole number from `least` on.

    >>> whole("k", 3, 1)
    3
    """
    number = _integer(given)
    if number is None or number < least:
        raise BadArgument(f"{name} must be a whole number from {least}, not {given!r}")
    return number


def kind_of(given: Any) -> str:
    """Take the kind of a trace."""
    if not isinstance(given, str) or given not in KINDS:
        raise UnknownName(f"unknown kind of trace {given!r}; one of {', '.join(KINDS)}")
    return given


def kinds_of(given: Any) -> tuple[str, ...]:
    """Take several kinds of trace, or one."""
    if isinstance(given, str):
        return (kind_of(given),)
    if not isinstance(given, Sequence) or not given:
        raise BadArgument(f"kinds must name one or more of {', '.join(KINDS)}, not {given!r}")
    return tuple(map(kind_of, given))


def components_of(given: Any) -> Sequence[Component] | None:
    """Take components: None for the default, one, or several."""
    if given is None or isinstance(given, (str, Slice)):
        return given if given is None else [given]
    if not isinstance(given, Sequence) or not given:
        raise BadArgument(
            f"components must be names, globs or Slices, not {given!r}: leave them out for the outermost modules"
        )
    for component in given:
        if not isinstance(component, (str, Slice)):
            raise BadArgument(f"a component is a name, a glob or a Slice, not {component!r}")
    return given


def example_of(given: Any, count: int | None) -> int:
    """Take the number of one of `count` examples; None stands for a recording that does not know them."""
    if count is None:
        raise BadArgument("per-example results need record(model, examples=x): which tensor is the batch?")
    number = _integer(given)
    if number is None:
        raise BadArgument(f"example must be the number of one of {count} examples, not {given!r}")
    if not 0 <= number < count:
        raise UnknownName(f"example {number} does not exist; there are {count}")
    return number


def _integer(given: Any) -> int | None:
    try:
        return None if isinstance(given, bool) else operator.index(given)
    except TypeError:
        return None


def sequence_of(name: str, given: Any, kinds: tuple[type, ...], *, empty: bool = False) -> list[Any]:
    """Take one thing of some kinds, or several, as a list."""
    if isinstance(given, kinds):
        return [given]
    items = list(given) if isinstance(given, Iterable) else None
    if items is None or not (items or empty) or not all(isinstance(i, kinds) for i in items):
        allowed = " or ".join(dict.fromkeys(k.__name__ for k in kinds))
        raise BadArgument(f"{name} must be {allowed}, or a list of them, not {_shown(given)}")
    return items


def examples_of(given: Any) -> list[Tensor]:
    """Take the tensors that enumerate the examples: none, one, a sequence or a mapping of them, of one length."""
    given = list(given.values()) if isinstance(given, Mapping) else [] if given is None else given
    tensors = sequence_of("examples", given, (Tensor,), empty=True)
    if any(t.dim() == 0 for t in tensors):
        raise BadArgument("examples must be tensors with a first dimension that enumerates the examples")
    if len({t.shape[0] for t in tensors}) > 1:
        raise BadArgument(f"examples disagree on their number: {[t.shape[0] for t in tensors]}")
    return tensors


def batch_tensors(batch: Any) -> list[Tensor]:
    """Find a batch's examples: its tensors whose first dimension is that of the first one.

    >>> import torch
    >>> x, y, weights = torch.zeros(8, 3), torch.zeros(8), torch.zeros(3)
    >>> [t.shape[0] for t in batch_tensors({"x": x, "rest": [y, weights]})]
    [8, 8]
    """
    found = [t for t in _tensors(batch) if t.dim() > 0]
    return [t for t in found if t.shape[0] == found[0].shape[0]]


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from _tensors(part)
    elif isinstance(batch, (list, tuple)):
        for part in batch:
            yield from _tensors(part)


def names_of(given: Any) -> dict[str, Tensor]:
    """Take names for leaves of functional code."""
    named = {} if given is None else given
    known = isinstance(named, Mapping) and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in named.items())
    if not known:
        raise BadArgument(f"names must give tensors by name, as in names={{'w': w}}, not {_shown(given)}")
    return dict(named)


def path_in(given: Any) -> Path:
    """Take a path."""
    if not isinstance(given, Path):
        raise BadArgument(f"path must be a Path, as trace.path(…) gives, not {_shown(given)}")
    return given


def file_of(given: Any) -> File:
    """Take the name of a file that can be written to a folder that exists.

    Raises:
        BadArgument: it is a folder, or in none that exists.
    """
    if not isinstance(given, (str, PathLike)):
        raise BadArgument(f"path must be the name of a file, not {_shown(given)}")
    file = File(given)
    if file.is_dir():
        raise BadArgument(f"cannot write {file}: it is a folder")
    if not file.parent.is_dir():
        raise BadArgument(f"cannot write {file}: there is no folder {file.parent}")
    return file


def _shown(given: Any) -> str:
    """Name what came: itself if it is small, else its type."""
    plain = given is None or isinstance(given, (str, int, float))
    return repr(given) if plain or (isinstance(given, Sized) and not len(given)) else type(given).__name__
