"""What people wrap around a model: each is traced and certified."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from gradtrace import record

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def normalised() -> nn.Module:
    torch.manual_seed(0)
    layers = parametrizations.weight_norm(nn.Linear(3, 4)), parametrizations.spectral_norm(nn.Linear(4, 2))
    return nn.Sequential(*layers).double()


def hooked() -> nn.Module:
    model = plain()
    for module in model:  # type: ignore[attr-defined]
        module.register_forward_hook(lambda module, inputs, output: output * 2)
        module.register_full_backward_hook(lambda module, before, after: None)
    return model


def functional(model: nn.Module) -> Tensor:
    twins = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    return torch.func.functional_call(model, twins, (X,))


def checkpointed(model: nn.Module) -> Tensor:
    return checkpoint(model, X.clone().requires_grad_(), use_reentrant=False)  # type: ignore[return-value]


def cast(model: nn.Module) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model.float()(X.float()).float()


def compiled(model: nn.Module) -> Tensor:
    return torch.compile(model, backend="aot_eager")(X)


WRAPPED: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "plain": (plain, lambda model: model(X)),
    "parametrized": (normalised, lambda model: model(X)),
    "hooked": (hooked, lambda model: model(X)),
    "data parallel": (lambda: nn.DataParallel(plain()), lambda model: model(X)),
    "functional_call": (plain, functional),
    "checkpointed": (plain, checkpointed),
    "autocast": (plain, cast),
    "compiled": (plain, compiled),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_traced_and_certified(name):
    make, call = WRAPPED[name]
    model = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own wrappers
        with record(model) as tape:
            loss = (call(model) * torch.tensor([1.0, -2.0])).sum()
        trace = tape.trace(loss, check=True)
    assert trace.certificate is not None
    reached = [n for n in trace.strength if bool((trace.strength[n] > -torch.inf).any())]
    assert len(reached) >= 4
    name = reached[0]
    assert trace.path(name, tuple(0 for _ in trace.strength[name].shape)).steps
