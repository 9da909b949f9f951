"""Versions trained side by side against each of them trained alone, by PyTorch's own modules and its own clipping."""

import pytest
import torch
from torch import nn

from gradtrace.errors import OptionError
from gradtrace.experiments.components import COMPONENTS, build, first
from gradtrace.experiments.plugged import Diamond, Plugged, draw
from gradtrace.experiments.side_by_side import SideBySide, run_copies
from gradtrace.experiments.tasks import TASKS

NESTED = Diamond((Diamond(("gru", Diamond(("attention", None))), "rnn"), Diamond(("mlp", None)), "lstm"))


@pytest.fixture(autouse=True)
def double():
    TASKS["digits"].training(0, 0, 1)  # the images are kept, as float32
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", COMPONENTS)
def test_copies_give_what_each_gives_alone(name):
    torch.manual_seed(0)
    modules = [build(name, 8) for _ in range(3)]
    stack = {k: torch.stack([dict(m.named_parameters())[k].detach() for m in modules]).requires_grad_()
             for k, _ in modules[0].named_parameters()}  # fmt: skip
    x, weight = torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8)
    together = run_copies(modules[0], stack, x)
    alone = torch.stack([first(m(row)) for m, row in zip(modules, x, strict=True)])
    torch.testing.assert_close(together, alone)
    found = torch.autograd.grad((together * weight).sum(), list(stack.values()), materialize_grads=True)
    for m, i in zip(modules, range(3), strict=True):
        own = torch.autograd.grad((alone[i] * weight[i]).sum(), list(m.parameters()), retain_graph=True,
                                  materialize_grads=True)  # fmt: skip
        for a, b in zip(found, own, strict=True):
            torch.testing.assert_close(a[i], b)


def test_what_looks_at_its_numbers_is_named():
    class Deciding(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    module = Deciding(4, 4)
    stack = {k: p.detach().expand(2, *p.shape) for k, p in module.named_parameters()}
    with pytest.raises(OptionError, match=r"Deciding does not run under torch\.func\.vmap"):
        run_copies(module, stack, torch.randn(2, 3, 5, 4))


def trained_alone(model, task, present, steps, rate):
    """Train one version by hand: what is not present takes no part."""
    used = [p for name in ("embedding", "output", *present) for p in model.get_submodule(name).parameters()]
    optimizer = torch.optim.Adam(used, lr=rate)
    for step in range(steps):
        batch = task.training(3, step, 6)
        optimizer.zero_grad()
        task.loss(model(batch.inputs, present), batch).backward()
        nn.utils.clip_grad_norm_(used, 1.0)
        optimizer.step()
    held_out = task.held_out()[:20]
    return float(task.loss(model(held_out.inputs, present), held_out).detach())


@pytest.mark.parametrize(("root", "task_name"), [
    (Diamond(("rnn", "stack_rnn", "attention_skip")), "copy"),
    (NESTED, "recall"),
    (Diamond(("gru", Diamond((None, "convolution"), "rnn"))), "digits"),
])  # fmt: skip
def test_all_sets_learn_as_each_does_alone(root, task_name):
    task = TASKS[task_name]
    names = root.components
    if task_name == "digits":
        torch.set_default_dtype(torch.float32)
    rate = 0.05  # large: an error would grow
    side = SideBySide(Plugged(root, task, 4, 1), task, range(1, 2 ** len(names)), rate)
    for step in range(4):
        side.step(task.training(3, step, 6))
    losses, scores = (found.tolist() for found in side.losses(task.held_out()[:20]))
    close = {"rtol": 1e-9, "atol": 1e-9} if torch.get_default_dtype() == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    for number, bits in enumerate(side.versions):
        present = [name for bit, name in enumerate(names) if bits >> bit & 1]
        alone = trained_alone(Plugged(root, task, 4, 1), task, present, 4, rate)
        torch.testing.assert_close(losses[number], alone, **close)
    model = Plugged(root, task, 4, 99)
    side.write(len(side.versions) - 1, model)
    evaluated = task.evaluate(model, task.held_out()[:20])
    torch.testing.assert_close(evaluated.loss, losses[-1], **close)
    assert evaluated.score == pytest.approx(scores[-1])


def test_what_is_left_out_and_what_is_bypassed():
    task = TASKS["copy"]
    model = Plugged(Diamond(("rnn", Diamond(("mlp", None), "convolution"))), task, 4, 1)
    x = torch.randn(2, 5, 4)
    rnn, mlp, convolution = (lambda y, n=n: first(model.get_submodule(n)(y)) for n in ("rnn", "mlp", "convolution"))
    expected = {
        ("rnn",): rnn(x),
        ("mlp",): (mlp(x) + x) / 2,
        ("rnn", "convolution"): (rnn(x) + convolution(x)) / 2,
        ("rnn", "mlp"): (rnn(x) + (mlp(x) + x) / 2) / 2,
        ("rnn", "mlp", "convolution"): (rnn(x) + convolution((mlp(x) + x) / 2)) / 2,
    }
    for present, value in expected.items():
        torch.testing.assert_close(model.after(x, present), model.output(value))


def test_drawn_architectures():
    names = list(COMPONENTS)
    found = [draw(5, n, names, 4) for n in range(60)]
    assert found == [draw(5, n, names, 4) for n in range(60)]
    assert all(len(set(root.components)) == 4 for root in found)
    assert all(root.join is None for root in found)  # nothing that all must pass through
    assert all(len(root.sides) == 4 for root in found[::2])
    assert all(len(root.sides) == 2 for root in found[1::2])
    shapes = {str(root.plain()).translate({ord(c): "" for c in "abcdefghijklmnopqrstuvwxyz_"}) for root in found[1::2]}
    assert len(shapes) > 5
    assert {n for root in found for n in root.components} == set(names)
