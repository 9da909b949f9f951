"""Files that are there whole or not at all: results as JSON, and checkpoints as safetensors.

A checkpoint is one file, weights, optimizer and random state beside the results so far in the header, so that
a kill at any moment leaves either the old state or the new one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..kept.blobs import replaced

RESULTS, CHECKPOINT = "results.json", "checkpoint.safetensors"
LEVELS = 4  # runs, one run, its measurements, one of them


@dataclass(frozen=True)
class Checkpoint:
    """What is read back: tensors by name, and the JSON that went with them."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, then move it there in one step; if that fails, what was there before still is.

    Raises:
        OptionError: it cannot be written: the disk is full, say.
    """
    try:
        replaced(path, write)
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error.strerror or error}") from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON that any reader takes: numbers that are not finite become null."""
    try:
        text = laid_out(content) + "\n"
    except ValueError:  # a number that is not finite: seldom, and looking for it takes longer than writing
        text = laid_out(finite(content)) + "\n"
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def laid_out(content: Any, depth: int = 0) -> str:
    """Write JSON with a line for each thing down to `LEVELS`: each measurement is a line, and big files stay fast.

    >>> print(laid_out({"step": 1, "rows": [{"a": 1}, {"a": 2}]}, LEVELS - 2))
    {
       "step": 1,
       "rows": [
        {"a": 1},
        {"a": 2}
       ]
      }
    """
    if depth == LEVELS or not content or not isinstance(content, (dict, list, tuple)):
        return json.dumps(content, allow_nan=False, ensure_ascii=False)
    keys = [f"{json.dumps(key, ensure_ascii=False)}: " for key in content] if isinstance(content, dict) else None
    items = [laid_out(item, depth + 1) for item in (content.values() if isinstance(content, dict) else content)]
    items = [key + item for key, item in zip(keys, items, strict=True)] if keys else items
    plain = not keys and not any(isinstance(item, (dict, list, tuple)) for item in content)
    if plain:
        return f"[{', '.join(items)}]"
    pad, (start, end) = "\n" + " " * (depth + 1), "{}" if keys else "[]"
    return f"{start}{pad}{f',{pad}'.join(items)}\n{' ' * depth}{end}"


def finite(content: Any) -> Any:
    """Replace nan and inf by None, at any depth."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Save a model in training, the random state, and anything else that JSON can hold."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"model.{name}": p.detach().contiguous() for name, p in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = value.contiguous()
    tensors["random"] = torch.get_rng_state()
    header = {"state": json.dumps(state)}

    def write(beside: Path) -> None:
        try:
            save_file(tensors, beside, metadata=header)
        except SafetensorError as error:  # what it makes of an error of the system
            raise OSError(str(error)) from None

    write_whole(path, write)


def load(path: Path) -> Checkpoint | None:
    """Read a checkpoint; None where there is none.

    Raises:
        OptionError: the file is there, but is not a checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # A copy: what is mapped from the file has no alignment to count on, and sums may depend on it.
            names = file.keys()
            tensors = {name: file.get_tensor(name).clone() for name in names}
        return Checkpoint(tensors, json.loads(header["state"]))
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise OptionError(f"{path} is not a checkpoint of gradtrace compete: {error}") from None


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a model, its optimizer and the random state back to where they were saved."""
    tensors = checkpoint.tensors
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if found:
            optimizer.state[parameter] = found
    torch.set_rng_state(tensors["random"])
