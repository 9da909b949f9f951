"""Calls that are run again to be differentiated: all arguments at once, laid out plainly, in any grad mode."""

from __future__ import annotations

import pytest
import torch
from checks import leaf, recorded
from torch import Tensor, nn

from gradtrace import record
from gradtrace.recording.replay import replay


def test_every_followed_argument_has_its_gradient_and_a_repeated_one_two():
    x = leaf(3)
    tape, _ = recorded(lambda x: (x * x).sum(), {"x": x})
    again = replay(tape.calls[0])
    y = again.results[0]
    assert y is not None
    assert {p: g.tolist() for p, g in again.gradients(0, torch.ones_like(y)).items()} == {0: x.tolist(), 1: x.tolist()}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_grad_mode_of_the_caller_does_not_matter(mode):
    x = leaf(2)
    tape, loss = recorded(lambda x: x.logsumexp(0).exp().sum(), {"x": x})
    trace = tape.trace(loss)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        slope = replay(tape.calls[1]).gradients(0, torch.ones(()).double())[0]
        assert trace.path("x", 1).weight == pytest.approx(x.exp()[1].item())
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert slope.item() == pytest.approx(x.exp().sum().item())


def test_what_reads_memory_by_strides_keeps_its_layout():
    x = leaf(2, 3)
    tape, _ = recorded(lambda x: x.t().as_strided((3,), (1,), 0).sum(), {"x": x})
    call = next(c for c in tape.calls if c.base == "as_strided")
    assert replay(call).gradients(0, torch.ones(3).double())[0].t().flatten().tolist() == [1, 1, 1, 0, 0, 0]


def normalised_in_channels_last(follow: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 3, 1))
    if follow == "norm":  # its input is a constant then
        model[0].requires_grad_(False)
    return model, torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("follow", ["all", "norm"])
def test_a_group_norm_in_channels_last_can_be_asked_for_its_scale_alone(follow):
    model, x = normalised_in_channels_last(follow)
    with record(model, examples=x) as tape:
        loss = model(x).square().mean()
    call = next(c for c in tape.calls if c.base == "native_group_norm")
    value = call.outputs[0]
    assert value is not None
    assert 1 in replay(call).gradients(0, torch.ones(value.shape))
    path = tape.trace(loss).path("1.weight", (0,))
    assert path.log2_weight == pytest.approx(float(tape.trace(loss).strength["1.weight"][0]), abs=1e-4)
