"""What all threads share is as before when the last recording ends, and no thread sees another's modules."""

from __future__ import annotations

import gc
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module
from torch.utils import _python_dispatch as modes

from gradtrace import component, record
from gradtrace.recording.process_state import Held

SECONDS = float(os.environ.get("GRADTRACE_THREADS", "3"))


def state() -> dict[str, Any]:
    """Give everything outside a program that recording touches, and what it must not."""
    cuda = torch.backends.cuda
    return {
        "modes": modes._get_current_dispatch_mode_stack(),
        "notes": [getattr(modes, n) for n in sorted(vars(modes)) if n.startswith("_is_in_")],
        "hooks": [
            dict(getattr(module, n)) for n in sorted(vars(module)) if n.startswith("_global_") and n.endswith("hooks")
        ],
        "attention": (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()),
        "math": (cuda.math_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()),
        "backends": (torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "collector": gc.isenabled(),
        "filters": list(warnings.filters),
        "threads": {t.name for t in threading.enumerate()},
    }


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    answers(mlp(), torch.ones(3, 4))  # imports are not what this is about
    before = state()
    yield
    gc.collect()
    assert state() == before


def mlp(width: int = 4) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))


def test_blocks_that_are_left_in_the_wrong_order():
    model, other, x = mlp(), mlp(5), torch.ones(3, 4)
    first, second = record(model), record(other)
    with second if False else first as one:
        two = second.__enter__()
        model(x).sum()
        assert state()["attention"] == (False, False, False)
    y = other(x).sum()  # the second block is open still
    second.__exit__(None, None, None)
    assert two.trace(y, check=True).strength["0.weight"].shape == (5, 4)
    assert {s.name for call in one.calls for s in call.scopes} == {"0", "1", "2"}
    assert "Linear" in {s.name for call in two.calls for s in call.scopes}  # of a model that is not its own


def test_a_generator_suspended_inside_a_block():
    def steps() -> Iterator[Any]:
        with record(mlp()) as tape, component("inside"):
            yield tape

    suspended = steps()
    next(suspended)
    with record(model := mlp(6)) as tape:
        loss = model(torch.ones(2, 4)).sum()
    tape.trace(loss, check=True)
    thread = threading.Thread(target=suspended.close)  # as a collector may, in another thread
    thread.start()
    thread.join()
    again = mlp(7)(torch.ones(2, 4)).sum()  # its mode is on this thread's stack still, and does nothing
    again.backward()
    while modes._get_current_dispatch_mode_stack():
        modes._pop_mode()


def test_an_error_inside_two_blocks():
    with pytest.raises(ValueError, match="mine"), record(), record():
        raise ValueError("mine")


def test_users_are_counted():
    told: list[str] = []
    held = Held(lambda: told.append("on"), lambda was: told.append("off"))
    first, second = held(), held()
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert told == ["on"]
    with held():
        second.__exit__(None, None, None)
        assert told == ["on"]
    assert told == ["on", "off"]


def test_modules_of_other_threads_are_not_in_the_table():
    class Slow(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            running.set()
            time.sleep(0.2)
            return z

    running, slow, model, x = threading.Event(), nn.Sequential(Slow()), mlp(), torch.randn(2, 4)
    thread = threading.Thread(target=slow, args=(x,))
    with record(model, examples=x) as tape:
        thread.start()
        running.wait()
        loss = model(x).sum()
    thread.join()
    assert {s.name for call in tape.calls for s in call.scopes} == {"0", "1", "2"}
    assert [r.share for r in tape.trace(loss).influence(["0", "2"], "0.*").rows] == [1, 1]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(len(x), 2, 8)).flatten(1)


class Recurring(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x.reshape(len(x), 4, 4))[0].flatten(1)


MODELS: list[Callable[[], nn.Module]] = [
    lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)),
    Attending,
    Recurring,
    lambda: nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten()),
    lambda: nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)),
    lambda: nn.Sequential(nn.Unflatten(1, (4, 4)), nn.GRU(4, 5, batch_first=True)),
    lambda: nn.Sequential(nn.Linear(16, 8), nn.Softmax(1)),
    lambda: nn.Sequential(nn.Linear(16, 16), nn.Unflatten(1, (4, 4)), nn.Conv1d(4, 2, 3), nn.Flatten()),
]


def answers(model: nn.Module, x: Tensor) -> tuple[Any, ...]:
    """Record and trace a model; give what does not depend on when."""
    with record(model, examples=x) as tape:
        out = model(x)
        loss = F.softplus(out[0] if isinstance(out, tuple) else out).sum()
    trace = tape.trace(loss, check=True)
    table = trace.influence()
    strength = [s for n in tape.leaves for s in trace.strength[n].flatten().tolist()]
    return [(r.component, r.share) for r in table.rows], table.connected != (), len(tape.calls), strength


def test_eight_threads_record_while_others_train():
    torch.manual_seed(0)
    subjects = [(make(), torch.randn(3, 16)) for make in MODELS]
    alone = [answers(*subject) for subject in subjects]
    end, rounds, wrong = time.monotonic() + SECONDS, [0] * len(MODELS), []

    def trace(number: int) -> None:
        try:
            while time.monotonic() < end:
                found = answers(*subjects[number])
                expected = (
                    *alone[number][:-1],
                    pytest.approx(alone[number][-1], rel=1e-6),
                )  # BLAS may round otherwise here
                differs = [(a, b) for a, b in zip(found, expected, strict=True) if a != b]
                wrong.extend(f"model {number}, round {rounds[number]}: {a} instead of {b}" for a, b in differs)
                rounds[number] += 1
        except Exception as error:
            wrong.append(f"model {number}: {type(error).__name__}: {error}")

    def train() -> None:
        model = mlp(8)
        optimizer = torch.optim.Adam(model.parameters())
        while time.monotonic() < end:
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().sum().backward()
            optimizer.step()

    threads = [threading.Thread(target=trace, args=(n,)) for n in range(len(MODELS))]
    threads += [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    assert all(rounds), rounds


def test_a_default_device_changes_no_answer():
    model, x = mlp(), torch.ones(3, 4)
    expected = [answers(model, x), _asked(model, x)]
    torch.set_default_device("meta")  # whatever is made there by mistake has no numbers
    try:
        found = [answers(model, x), _asked(model, x)]
    finally:
        torch.set_default_device(None)
    assert str(found) == str(expected)


def _asked(model: nn.Module, x: Tensor) -> list[Any]:
    with record(model, examples=x) as tape:
        loss = model(x).square().sum()
    trace = tape.trace(loss, check=True)
    greedy = trace.influence(of="*", kind="greedy")
    return [
        trace.strongest(2),
        trace.flow().edges,
        str(greedy),
        trace.paths("0.bias", k=2),
        trace.bound("0.bias", (0,)),
    ]
