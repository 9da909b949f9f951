"""The folder that a command writes to: made, found writable, and its own while the command runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OptionError
from ..report.document import MEASURED, SCHEMA_OF_RESULTS, BadResults, read_results
from .checkpoint import CHECKPOINT, RESULTS, write_whole

PAGE = "report.html"


def prepare_folder(folder: Path) -> None:
    """Make a folder and see that files can be written there.

    Raises:
        OptionError: they cannot, or what is there already would be lost.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / ".writable", lambda path: path.write_bytes(b""))
        (folder / ".writable").unlink()
    except OSError as error:
        raise OptionError(f"cannot write to the folder {folder}: {error.strerror or error}") from None
    except OptionError as error:
        raise OptionError(f"cannot write to the folder {folder}: {error.said}") from None
    for name in (RESULTS, CHECKPOINT, MEASURED, PAGE):
        if (folder / name).is_dir():
            raise OptionError(f"cannot write {folder / name}: it is a folder; choose another --out")
    _respect(folder / RESULTS)


def _respect(path: Path) -> None:
    """Refuse to write over results that this version cannot read."""
    if not path.exists():
        return
    try:
        results, _ = read_results(path)
    except BadResults as error:
        raise OptionError(f"{error.said}; it is left as it is: choose another --out, or remove it") from None
    if results.get("schema") != SCHEMA_OF_RESULTS:
        raise OptionError(f"{path} is of another version: it is left as it is; choose another --out, or remove it")


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keep other gradtrace processes from writing to a folder inside the block. The lock dies with the process.

    Raises:
        OptionError: one is writing there.
    """
    prepare_folder(folder)
    try:
        import fcntl
    except ImportError:  # not on this platform
        yield
        return
    handle = os.open(folder, os.O_RDONLY)  # the folder itself: no file is left behind
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise OptionError(f"another gradtrace is writing to {folder}: wait for it, or choose another --out") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)
