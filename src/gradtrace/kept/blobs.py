"""The file: safetensors with one array for each kind of number, and a JSON text that says what is where.

Arrays are put end to end, so that the header stays small however many there are; whole numbers are as short as they
can be, and numbers that are all the same are one. Equal arrays are kept once. What is read is checked before it is
believed: the file's own sum, every kind, every length.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import BadArgument, BadTrace

FAMILY = "gradtrace.trace/"
SCHEMA = f"{FAMILY}1"
ABOUT = "about"
KINDS = {"u1": np.uint8, "i2": np.int16, "i4": np.int32, "i8": np.int64, "f4": np.float32, "f8": np.float64}
SAME = "="  # instead of a kind: one number, and how many of it there are
DENSE = 8  # positions are bits where more than one in so many bytes' bits are meant
FREE, EACH = 1 << 29, 1 << 15  # bytes that any file may take when it is laid out, and that each of its own may beside

Ref = list[Any]  # [kind, begin, count], or [SAME, number, count]


def replaced(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, then move it there in one step; if that fails, what was there before still is.

    Raises:
        OSError: it cannot be written: the disk is full, say.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


class Packer:
    """Arrays on their way into a file."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
        self._ends = dict.fromkeys(KINDS, 0)
        self._known: dict[tuple[str, int, bytes], Ref] = {}

    def put(self, given: np.ndarray | torch.Tensor) -> Ref:
        """Take an array, flat; give what finds it again."""
        flat = np.ascontiguousarray(given.numpy() if isinstance(given, torch.Tensor) else given).reshape(-1)
        flat = _short(flat)
        bits = flat.view(f"u{flat.itemsize}")  # -0.0 is not 0.0 here
        if len(flat) and bool((bits == bits[0]).all()):
            return [SAME, flat[0].item(), len(flat)]
        kind = f"{flat.dtype.kind}{flat.itemsize}"
        key = kind, len(flat), hashlib.blake2b(flat.data, digest_size=16).digest()
        if key not in self._known:
            self._known[key] = [kind, self._ends[kind], len(flat)]
            self._parts[kind].append(flat)
            self._ends[kind] += len(flat)
        return self._known[key]

    def some(self, positions: np.ndarray, total: int) -> Ref | None:
        """Take rising positions among `total`; None stands for all of them."""
        if len(positions) == total:
            return None
        if len(positions) * DENSE * positions.astype(np.int32).itemsize < total:
            return ["places", self.put(positions)]
        bits = np.zeros(total, np.uint8)
        bits[positions] = 1
        return ["bits", self.put(np.packbits(bits))]

    def write(self, path: Path, about: dict[str, Any]) -> None:
        """Write the file.

        Raises:
            BadArgument: it cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        text = json.dumps(about, separators=(",", ":")).encode()
        arrays = {ABOUT: np.frombuffer(text, np.uint8)}
        arrays |= {kind: np.concatenate(parts) for kind, parts in self._parts.items() if parts}
        header = {SCHEMA: _sum(arrays)}  # one entry: safetensors writes several in any order

        def save(beside: Path) -> None:
            try:
                save_file(arrays, beside, metadata=header)
            except SafetensorError as error:  # what it makes of an error of the system
                raise OSError(str(error)) from None

        try:
            replaced(path, save)
        except OSError as error:
            raise BadArgument(f"cannot write {path}: {error.strerror or error}") from None


def _short(flat: np.ndarray) -> np.ndarray:
    """Give the shortest numbers that are these."""
    if flat.dtype.kind in "bu":
        return flat.astype(np.uint8)
    if flat.dtype.kind == "i":
        low, high = (int(flat.min()), int(flat.max())) if len(flat) else (0, 0)
        kinds = (np.uint8, np.int16, np.int32)
        fits = (k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
        return flat.astype(next(fits, np.int64))
    if flat.dtype == np.float64:
        with np.errstate(over="ignore", invalid="ignore"):
            single = flat.astype(np.float32)
        if (single.astype(np.float64).view(np.int64) == flat.view(np.int64)).all():
            return single
    return flat


def _sum(arrays: dict[str, np.ndarray]) -> str:
    """Sum a file's arrays up, in order of their names."""
    out = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        out.update(f"{name}:{len(arrays[name])};".encode())
        out.update(np.ascontiguousarray(arrays[name]).data)
    return out.hexdigest()


class Unpacker:
    """Arrays that have been read from a file.

    Attributes:
        about: the JSON text's content.
    """

    def __init__(self, path: Path) -> None:
        """Read a file.

        Raises:
            BadTrace: it isn't there, or is none of this version, or damaged.
        """
        self.path = path
        self._arrays, header = _read(path)
        said = next((key for key in header if key.startswith(FAMILY)), None)
        if said is None:
            raise BadTrace(f"{path} is not a saved trace")
        if said != SCHEMA:
            raise BadTrace(f"{path} is of schema {said!r}, and this version reads {SCHEMA!r} only")
        if header[SCHEMA] != _sum(self._arrays):
            raise BadTrace(f"{path} is damaged: its sum is another than when it was written")
        try:
            self.about = json.loads(self._arrays.pop(ABOUT).tobytes())
        except (KeyError, ValueError, RecursionError) as error:
            raise BadTrace(f"{path} is damaged: {type(error).__name__}: {error}") from None
        self.size = path.stat().st_size
        self._left = min(FREE + EACH * self.size, _memory() // 2)

    def room(self, number: int, size: int = 8) -> int:
        """Take notice that so many numbers of some bytes each will be laid out."""
        self._left -= self.fits(number, size) * size
        return number

    def fits(self, number: int, size: int = 1) -> int:
        """See that so many numbers of some bytes each fit into memory, beside what has been laid out."""
        if number < 0 or number * size > self._left:
            raise ValueError("it speaks of more scalars than a file of its size can hold, or than fit into memory")
        return number

    def get(self, ref: Ref, count: int | None = None) -> np.ndarray:
        """Give an array; with `count`, one that has to have this length."""
        kind, begin, length = ref
        if type(length) is not int or length < 0 or (count is not None and length != count):
            raise ValueError(f"{length} numbers where {count} were expected")
        if kind == SAME:
            if type(begin) not in (int, float):
                raise ValueError(f"{begin!r} is not a number")
            return np.full(self.room(length), begin)
        array = self._arrays[kind]
        if type(begin) is not int or not 0 <= begin <= begin + length <= len(array):
            raise ValueError(f"numbers {begin} to {length} of {len(array)}")
        return array[begin : begin + length]

    def whole(self, ref: Ref, count: int | None = None, below: int | None = None) -> np.ndarray:
        """Give whole numbers from 0 on, and below a bound where one is given, in 64 bits."""
        found = self.get(ref, count)
        if found.dtype.kind not in "iu":
            raise ValueError("fractions where whole numbers were expected")
        found = found.astype(np.int64)
        if len(found) and (found.min() < 0 or (below is not None and found.max() >= below)):
            raise ValueError(f"a number that is not from 0 to {below}")
        return found

    def some(self, ref: Ref | None, total: int) -> Some:
        """Give positions among `total`."""
        if ref is None:
            return Some(self.fits(total, 8))
        form, inner = ref
        if form == "places":
            places = self.whole(inner, None, total)
            if (np.diff(places) <= 0).any():
                raise ValueError("positions that do not rise")
            return Some(total, places=places.astype(np.int32 if total <= 1 << 31 else np.int64))
        if form != "bits":
            raise ValueError(f"positions of the form {form!r}")
        return Some(total, bits=self.whole(inner, -(-total // 8), 256).astype(np.uint8))


def _memory() -> int:
    """Give the bytes of memory that this machine has; where that is not known, what a large one has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 36


class Some:
    """Some positions among `total`, in rising order; without places or bits all of them."""

    def __init__(self, total: int, *, places: np.ndarray | None = None, bits: np.ndarray | None = None) -> None:
        self.total, self._places, self._bits = total, places, bits
        self.count = total if places is bits is None else len(self.positions())

    @property
    def whole(self) -> bool:
        """Whether they are all."""
        return self.count == self.total

    def positions(self) -> np.ndarray:
        """Give them."""
        if self._places is not None:
            return self._places
        if self._bits is not None:
            return np.flatnonzero(np.unpackbits(self._bits, count=self.total))
        return np.arange(self.total)

    def rank(self, asked: np.ndarray) -> np.ndarray:
        """Give the number of each of some positions among these.

        Raises:
            ValueError: one is none of them.
        """
        if not len(asked):
            return asked
        if asked.min() < 0 or asked.max() >= self.total:
            raise ValueError("a position that there is not")
        if self.whole:
            return asked
        known = self.positions()
        found = np.searchsorted(known, asked).clip(max=max(len(known) - 1, 0))
        if not len(known) or (known[found] != asked).any():
            raise ValueError("a scalar that nothing is known of")
        return found


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():  # nor a pipe, which might never end
        raise BadTrace(f"cannot read {path}: {'Is a directory' if path.is_dir() else 'there is no such file'}")
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            names: Sequence[str] = file.keys()
            if not {*names} <= {ABOUT, *KINDS}:
                raise BadTrace(f"{path} is not a saved trace")
            arrays = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise BadTrace(f"{path} is not a saved trace: {error}") from None
    for name, array in arrays.items():
        if array.dtype != KINDS.get(name, np.uint8) or array.ndim != 1:
            raise BadTrace(f"{path} is not a saved trace: {name} holds {array.dtype} of shape {array.shape}")
    return arrays, header
