"""Tensors with a history that the tape has not seen: each way to get one has its own sentence."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from gradtrace import record
from gradtrace.errors import NotOnTape, Unsupported

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def _dual(net: nn.Module, x: torch.Tensor) -> None:
    with forward_ad.dual_level():
        net(forward_ad.make_dual(x, torch.ones_like(x)))


FORWARD = {
    "jvp": lambda net, x: torch.func.jvp(net, (x,), (torch.ones_like(x),)),
    "jacfwd": lambda net, x: torch.func.jacfwd(net)(x),
    "hessian": lambda net, x: torch.func.hessian(lambda z: net(z).sum())(x),
    "dual numbers": _dual,
}


@pytest.mark.parametrize("mode", FORWARD)
def test_forward_mode_is_named(mode):
    net = model()
    with pytest.raises(Unsupported, match="forward-mode AD"), record(net):
        FORWARD[mode](net, torch.randn(3, 4))


BACKWARD = {
    "grad": lambda net, x: torch.func.grad(lambda z: net(z).tanh().sum())(x).square().sum(),
    "vmap": lambda net, x: torch.func.vmap(net)(x).square().sum(),
    "grad of each": lambda net, x: torch.func.vmap(torch.func.grad(lambda z: net(z).sum()))(x).square().sum(),
    "jacrev": lambda net, x: torch.func.jacrev(lambda z: net(z).sum(0))(x).square().sum(),
}


@pytest.mark.parametrize("transform", BACKWARD)
def test_other_transforms_are_recorded(transform):
    net = model().double()
    with record(net) as tape:
        loss = BACKWARD[transform](net, torch.randn(3, 4, dtype=torch.float64))
    assert tape.trace(loss, check=True).certificate is not None


def test_a_cast_that_autocast_made_before_the_block():
    net, x = model(), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        net(x)
        with pytest.raises(NotOnTape, match=r"cast to torch\.bfloat16 before the block, by autocast"), record(net):
            net(x)
        torch.clear_autocast_cache()
        with record(net) as tape:
            loss = net(x).float().sum()
    assert len(tape.trace(loss).strength) == 4


@pytest.mark.parametrize("told_apart", [False, True])  # found at the result, or inside TorchScript's interpreter
def test_a_scripted_module_that_torchscript_differentiates_as_one(told_apart):
    net, x = torch.jit.script(model()), torch.randn(3, 4)
    for _ in range(5):
        net(x).sum().backward()
    with pytest.raises(NotOnTape, match="record the model that was scripted"), record(net, x if told_apart else None):
        net(x).sum()


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_what_is_inside_a_transform_is_to_be_traced_outside_it(transform):
    net = model()

    def inside(z: torch.Tensor) -> torch.Tensor:
        with record(net) as tape:
            loss = net(z).sum()
        tape.trace(loss)
        return loss

    with pytest.raises(Unsupported, match=r"inside a transform of torch\.func.*put the transform inside"):
        transform(inside)(torch.randn(4 if transform is torch.func.grad else (3, 4)))


@pytest.mark.parametrize("examples", ["None", "x"])
def test_fake_tensors_are_refused_and_do_not_end_the_process(examples):
    """C++ asks a subclass for its device where it cannot bear an error."""
    program = f"""
        import torch, gradtrace
        from torch._subclasses.fake_tensor import FakeTensorMode
        net, x = torch.nn.Linear(4, 2), torch.randn(3, 4)
        try:
            with gradtrace.record(net, examples={examples}), FakeTensorMode(allow_non_fake_inputs=True):
                net(x).sum()
        except gradtrace.GradtraceError as error:
            assert "FakeTensor" in str(error), error
        else:
            raise AssertionError
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=300)


def test_a_refusal_that_was_dealt_with_is_not_raised_again_for_nothing():
    net, before = model(), model()(torch.randn(3, 4))
    with record(net) as tape:
        with pytest.raises(NotOnTape):
            before.sum()
        loss = net(torch.randn(3, 4)).sum()
    assert tape.trace(loss).loss == loss.item()
