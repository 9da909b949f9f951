"""Each predictor against its own library or its closed form."""

import pytest
import torch
from captum.attr import LayerConductance

from gradtrace import record
from gradtrace.experiments.plugged import Diamond, Plugged
from gradtrace.experiments.predictors import BASELINES, TRACES, conductance, losses, outputs, predictors
from gradtrace.experiments.tasks import TASKS
from gradtrace.semirings import Entropy

ROOT = Diamond(("mlp", Diamond(("attention", "convolution"), "rnn")))


@pytest.fixture(scope="module")
def setting():
    task = TASKS["copy"]
    return Plugged(ROOT, task, 8, 3), task, task.held_out()[:6], task.held_out()[:40]


@pytest.fixture(scope="module")
def found(setting):
    return predictors(*setting)


def test_there_is_a_number_for_each(found):
    assert set(found) == {*TRACES, *BASELINES}
    assert all(len(values) == 4 for values in found.values())


def test_conductance_is_captums(setting):
    model, task, batch, _ = setting

    class Losses(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            targets = batch.targets.repeat(len(x) // len(batch), 1)
            each = torch.nn.functional.cross_entropy(
                self.model.after(x).flatten(0, 1), targets.flatten(), reduction="none"
            )
            return each.view(len(x), -1).sum(1) / (batch.targets != -100).sum()

    x, forward = model.embedding(batch.inputs).detach(), Losses()
    ours = conductance(model, task, batch, steps=12)
    for name, value in zip(model.components, ours, strict=True):
        if name == "rnn":
            continue  # gives a tuple, whose second part captum would want a gradient of
        layer = LayerConductance(forward, model.get_submodule(name))
        theirs = layer.attribute(x, n_steps=12, method="riemann_trapezoid", attribute_to_layer_input=False)
        assert value == pytest.approx(float(theirs.detach().flatten(1).sum(1).abs().mean()), rel=1e-4)


def test_conductance_of_all_in_parallel_is_the_whole_difference():
    # A cut of the network: what its components conduct adds up to the rise of the loss from the baseline on.
    task = TASKS["copy"]
    model = Plugged(Diamond(("mlp", "attention")), task, 8, 3)
    batch = task.held_out()[:1]
    x = model.embedding(batch.inputs).detach()
    rise = losses(model.after(x), task, batch) - losses(model.after(x * 0), task, batch)
    torch.manual_seed(0)
    with outputs(model) as kept:
        model.after(x)
    assert set(kept) == {"mlp", "attention"}
    a, b = conductance(model, task, batch, steps=2000)
    assert min(abs(a + b - abs(float(rise.detach()))), abs(abs(a - b) - abs(float(rise.detach())))) < 1e-3


def test_gradients_by_autograd(setting, found):
    model, task, batch, _ = setting
    model.zero_grad()
    with outputs(model) as kept:
        loss = task.loss(model(batch.inputs), batch)
    for y in kept.values():
        y.retain_grad()
    loss.backward()
    for i, name in enumerate(model.components):
        grads = torch.cat([p.grad.flatten() for p in model.get_submodule(name).parameters() if p.grad is not None])
        assert found["parameter_gradient"][i] == pytest.approx(float(grads.norm()), rel=1e-4)
        assert found["output_gradient"][i] == pytest.approx(float(kept[name].grad.norm()), rel=1e-4)
        each = [abs(float((y * g).sum())) for y, g in zip(kept[name].detach(), kept[name].grad, strict=True)]
        assert found["activation_gradient"][i] == pytest.approx(sum(each) / len(each), rel=1e-4)
        assert found["parameters"][i] == sum(p.numel() for p in model.get_submodule(name).parameters())
    model.zero_grad()


def test_switching_off_is_the_other_forward_pass(setting, found):
    model, task, _, held_out = setting
    full = task.evaluate(model, held_out).loss
    for i, name in enumerate(model.components):
        rest = set(model.components) - {name}
        off = task.evaluate(lambda x, rest=rest: model(x, rest), held_out).loss
        assert found["switch_off"][i] == pytest.approx(off - full, abs=1e-5)


def test_traces_are_the_public_calls(setting, found):
    model, task, batch, _ = setting
    with record(model, examples=(batch.inputs, batch.targets)) as tape:
        loss = task.loss(model(batch.inputs), batch)
    trace = tape.trace(loss, check=True)
    for kind in ("best", "greedy"):
        rows = trace.influence(model.components, of="embedding*", kind=kind).rows
        assert found[kind] == [r.share for r in rows]
        assert found[f"{kind}_weighted"] == [r.weighted_share for r in rows]
    (gradient,) = torch.autograd.grad(loss, [model.embedding.weight], retain_graph=True)
    inner = model.components.index(
        "rnn"
    )  # what goes through the join of the inner diamond is what does not go by the mlp
    mlp = model.components.index("mlp")
    y = model.embedding(batch.inputs)
    (part,) = torch.autograd.grad(task.loss(_only(model, y, "rnn"), batch), [model.embedding.weight])
    assert found["through"][inner] == pytest.approx(float(part.norm()), rel=1e-4)
    assert found["through_abs"][inner] == pytest.approx(float(part.abs().sum()), rel=1e-4)
    assert found["through"][mlp] == pytest.approx(float((gradient - part).norm()), rel=1e-4)
    bits = tape.grad(loss, ["mlp.0.weight"] if "mlp.0.weight" in tape.leaves else ["mlp.up.weight"], Entropy)
    assert 0 < float(bits[0].mean()) < 60


def _only(model, y, name):
    """The forward pass in which the gradient goes back by one side only: the same numbers."""
    side = model._run(ROOT.sides[1], y, frozenset(model.components))
    other = model._run(ROOT.sides[0], y, frozenset(model.components)).detach()
    return model.output((side + other) / 2)
