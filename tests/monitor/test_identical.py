"""Training with a monitor is training without it: to the last bit, in random state, buffers, gradients and flags."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from monitor.training import OPTIMIZERS, PROGRAMS, Program, rows

from gradtrace.monitor import Monitor

STEPS = 60


def flags() -> tuple[object, ...]:
    cuda, mha = torch.backends.cuda, torch.backends.mha
    attention = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()
    return (*attention, mha.get_fastpath_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"))


def train(program: Program, optimizer: str, monitor: dict | None) -> tuple[list[torch.Tensor], Monitor | None]:
    """Give every loss and gradient on the way, what the model has in the end, and the random state."""
    torch.manual_seed(0)
    model = program.build().train()
    steps = OPTIMIZERS[optimizer](model.parameters())
    watching = Monitor(model, folder=None, **monitor) if monitor is not None else None
    seen = []
    for number in range(STEPS):
        for _ in range(program.accumulate):
            x = program.batch()
            if watching is None:
                loss = program.loss(model, x)
            else:
                with watching.step(examples=x, number=number):
                    loss = program.loss(model, x)
            loss.backward()
            seen.append(loss.detach())
        seen += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        steps.step()
        steps.zero_grad()
    seen += [t.detach().clone() for t in model.state_dict().values()]
    return [*seen, torch.get_rng_state()], watching


@pytest.mark.filterwarnings("ignore:.*Was not able to add assertion.*")
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("name", list(PROGRAMS))
def test_training_is_the_same_to_the_last_bit(name, optimizer):
    program, before = PROGRAMS[name], flags()
    plain, _ = train(program, optimizer, None)
    watched, monitor = train(program, optimizer, {"every": 15, "kinds": ["best", "greedy"]})
    assert flags() == before
    assert not monitor.failures
    assert [t["step"] for t in monitor.history().traces] == [0, 15, 30, 45]
    assert len(plain) == len(watched)
    for number, (a, b) in enumerate(zip(plain, watched, strict=True)):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), number


def test_another_training_is_another_one():
    """The comparison can fail: an input that differs in its last bits, and it does."""
    plain, _ = train(PROGRAMS["dropout"], "sgd", None)
    other, _ = train(replace(PROGRAMS["dropout"], batch=lambda: rows() + 1e-7), "sgd", None)
    assert not all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
