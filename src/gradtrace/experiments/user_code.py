"""Functions and classes of a user's own, by "MODULE:NAME", and what they raise on one line."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import OptionError
from ..recording.scopes import is_internal
from ..report.snapshot import short_source


def load(target: str, *, classes: bool = False) -> Callable[..., Any]:
    """Import what "MODULE:NAME" names: a dotted module name or the path of a .py file, a colon, a function in it.

    Args:
        classes: whether classes are meant, too.

    Raises:
        OptionError: it is not there, or importing it raised an exception.
    """
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name:
        raise OptionError(f"{target!r} is not MODULE:FUNCTION, as in my_package.models:build or train.py:build")
    module = imported(where)
    found = getattr(module, name, None)
    if not callable(found):
        there = [n for n, f in vars(module).items() if n[:1] != "_" and callable(f) and _meant(f, module, classes)]
        what = "function or class" if classes else "function"
        raise OptionError(f"{where} has no {what} {name!r}; there are {', '.join(there) or 'none'}")
    return found


def _meant(found: Any, module: ModuleType, classes: bool) -> bool:
    return not isinstance(found, type) or (classes and found.__module__ == module.__name__)


def called(target: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it.

    Raises:
        OptionError: it raised an exception.
    """
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        raise OptionError(f"{target} raised {describe(error)}") from error


def imported(where: str) -> ModuleType:
    """Import a dotted module, or the .py file at a path.

    Raises:
        OptionError: it is not there, or raised an exception.
    """
    path = Path(where)
    if path.suffix != ".py":
        return _imported_by_name(where)
    if not path.is_file():
        raise OptionError(f"there is no file {where}")
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise OptionError(f"{where} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise OptionError(f"importing {where} raised {describe(error)}") from error
    return module


def _imported_by_name(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise OptionError(f"there is no module {error.name!r}, in this folder or installed") from None
        raise OptionError(f"importing {name} raised {describe(error)}") from error
    except (Exception, SystemExit) as error:
        raise OptionError(f"importing {name} raised {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Put an exception of a user's code on one line, with the line of that code."""
    said = " ".join(str(error).split())
    if isinstance(error, SyntaxError):  # says where it is itself
        return f"{type(error).__name__}: {said}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_internal(f.filename)]
    frames = [f for f in frames if not _is_installed(f.filename)] or frames  # others' hooks, such as a logger's on exit
    where = f" ({short_source(f'{frames[-1].filename}:{frames[-1].lineno}')})" if frames else ""
    return f"{type(error).__name__}: {said}{where}"


def _is_installed(file: str) -> bool:
    return file.startswith((sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
