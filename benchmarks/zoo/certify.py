"""One architecture, in a process of its own: certified in training and in evaluation, or why not."""

from __future__ import annotations

import faulthandler
import json
import os
import random
import re
import resource
import statistics
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rows import Build, Subject
from torch import Tensor

import gradtrace
from gradtrace.errors import CertificateError, GradtraceError

SEED = 1
REPEATS = 3
MODES = ("train", "eval")
WORST = ("crashed", "wrong", "broken", "refused", "passed")  # what a row is, is the first that a part of it is


def child(name: str, catalogue: str, out: Path, memory: int, double: bool) -> None:
    """Examine a row and write what is found: JSON beside a log of how far it came.

    Args:
        catalogue: the module whose ROWS has the row.
        memory: bytes that this process may use.
        double: in float64.
    """
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    out.write_text(json.dumps(examine(import_module(catalogue).ROWS[name], double)), encoding="utf-8")


def step(text: str) -> None:
    """Leave a line in the log, so that a killed process tells where it was."""
    print("step:", text, file=sys.stderr, flush=True)


def examine(build: Build, double: bool = False) -> dict[str, Any]:
    """Certify a row in both modes; time its trace next to its backward pass."""
    step("building the model")
    seed()
    built: list[Subject] = []
    found: dict[str, Any] = attempt(lambda: built.append(build()) or {}, model=True)
    if not built:
        return found
    subject = built[0]
    if double:
        subject.model.double()
    found["parameters"] = sum(p.numel() for p in subject.model.parameters())
    found["modes"] = {mode: examine_mode(subject, mode) for mode in MODES}
    parts = [part for m in found["modes"].values() for part in (m, m.get("by_example", m))]
    worst = min(parts, key=lambda part: WORST.index(part["status"]))
    found |= {key: worst[key] for key in ("status", "reason") if key in worst}
    if all(m["status"] == "passed" for m in found["modes"].values()):
        step("timing")
        found["seconds"] = timed(subject)
    return found


def seed() -> None:
    """Begin all generators of random numbers again."""
    random.seed(SEED)
    torch.manual_seed(SEED)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(SEED)


def attempt(run: Callable[[], dict[str, Any]], *, model: bool = False) -> dict[str, Any]:
    """Run a part; say whether it passed, was refused, came out wrong or crashed, and why.

    Args:
        model: whether gradtrace has no part in it, so that a failure is the row's own.
    """
    try:
        return {"status": "passed", **run()}
    except CertificateError as error:
        return {"status": "wrong", "reason": str(error)}
    except GradtraceError as error:
        return {"status": "refused", "reason": f"{type(error).__name__}: {error}"}
    except Exception as error:
        trail = traceback.format_exc()
        print(trail, file=sys.stderr, flush=True)
        where = f" ({Path(last.filename).name}:{last.lineno})" if (last := _last_frame(error)) else ""
        reason = f"{type(error).__name__}: {error}{where}"
        return {"status": "broken" if model else "crashed", "reason": reason, "traceback": trail}


def _last_frame(error: BaseException) -> traceback.FrameSummary | None:
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1] if frames else None


class Repeated:
    """The same forward pass as often as one likes: the same random numbers, the same buffers."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.buffers = [(b, b.clone()) for b in subject.model.buffers()]

    def __call__(self) -> Tensor:
        """Put everything back, and run forward."""
        with torch.no_grad():
            for buffer, kept in self.buffers:
                buffer.copy_(kept)
        seed()
        return self.subject.loss()


def examine_mode(subject: Subject, mode: str) -> dict[str, Any]:
    """Certify the whole batch's trace, then its examples'."""
    subject.model.train(mode == "train")
    forward = Repeated(subject)
    step(f"{mode}: the model alone")
    plain = attempt(lambda: {"loss": alone(forward)}, model=True)
    if plain["status"] != "passed":
        return plain
    step(f"{mode}: certifying")
    kept: dict[str, Tensor] = {}
    found = attempt(lambda: certified(forward, kept))
    if subject.examples and found["status"] == "passed":
        step(f"{mode}: certifying with examples")
        found["by_example"] = attempt(lambda: by_example(forward, kept))
    return found


def alone(forward: Repeated) -> float:
    """Run forward and backward without gradtrace; give the loss."""
    loss = forward()
    if loss.isnan().any():
        raise ArithmeticError("the loss is NaN")
    loss.backward()
    forward.subject.model.zero_grad()
    return float(loss.detach())


def certified(forward: Repeated, kept: dict[str, Tensor]) -> dict[str, Any]:
    """Record, certify and trace the batch; keep its strengths."""
    with gradtrace.record(forward.subject.model) as tape:
        loss = forward()
    trace = tape.trace(loss, check=True)
    assert trace.certificate is not None
    kept |= {name: trace.strength[name] for name in tape.leaves}
    return {
        "calls": len(tape.calls),
        "difference": trace.certificate.difference,
        "fallbacks": trace.fallbacks,
    }


def by_example(forward: Repeated, kept: dict[str, Tensor]) -> dict[str, Any]:
    """Certify once more with examples, which must change nothing; tabulate by example, and say what connects them."""
    with gradtrace.record(forward.subject.model, examples=forward.subject.examples) as tape:
        loss = forward()
    trace = tape.trace(loss, check=True)
    changed = [name for name, was in kept.items() if not torch.equal(was, trace.strength[name])]
    if changed:
        raise CertificateError(f"with examples, the batch's strengths of {', '.join(changed[:3])} are others")
    table = trace.influence()
    return {"connected": dict(Counter(map(operator, table.connected)))}


def operator(where: str) -> str:
    """Give the operator's name in a phrase that says where a call is."""
    found = re.match(r"([\w:]+(?:\.\w+)*)", where)
    return found.group(1) if found else where


def timed(subject: Subject) -> dict[str, float]:
    """Time backward and trace in turn; give the medians, in seconds."""
    forward, taken = Repeated(subject), {"backward": [], "trace": []}
    for _ in range(REPEATS):
        loss = forward()
        started = time.perf_counter()
        loss.backward()
        taken["backward"].append(time.perf_counter() - started)
        subject.model.zero_grad()
        with gradtrace.record(subject.model) as tape:
            loss = forward()
        started = time.perf_counter()
        tape.trace(loss)
        taken["trace"].append(time.perf_counter() - started)
    return {what: statistics.median(seconds) for what, seconds in taken.items()}
