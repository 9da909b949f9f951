"""Competitors: certified, each example as alone, none looks ahead; memories beside the equations of their papers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradtrace
from gradtrace.errors import OptionError, UnknownName
from gradtrace.experiments.components import COMPONENTS, build, check, find, first, inner_width, label
from gradtrace.experiments.memories import NeuralList, StackRNN, TuringMachine
from gradtrace.experiments.options import Options
from gradtrace.experiments.sequences import IGNORED, Batch
from gradtrace.experiments.tasks import TASKS

HIDDEN, TIME = 4, 6


def made(name, hidden=HIDDEN):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build(name, hidden).double()


def inputs(rows=3, time=TIME, hidden=HIDDEN):
    return torch.randn(rows, time, hidden, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_batch_is_certified_and_gives_for_every_example_what_it_gives_alone(name):
    """Strengths of all parameters and of the embedding, best and greedy; sequences of different lengths."""
    task = TASKS["reversal"]
    model, batch = task.model((name,), HIDDEN, 1).double(), task.training(2, 0, 3)
    trace = traced(model, task, batch, check=True)
    assert trace.fallbacks == {}
    assert trace.certificate is not None
    asked = (batch.targets != IGNORED).sum(1)
    for b in range(len(batch)):
        alone = traced(model, task, batch[b : b + 1])
        share = math.log2(int(asked[b]) / int(asked.sum()))
        for kind in ("best", "greedy"):
            for parameter in trace.tape.leaves:
                if (kind, parameter) == ("greedy", f"{name}.qkv.bias"):  # the keys' has no gradient but rounding
                    continue
                ours = trace.forest(kind, per_example=True).log2[trace.tape.leaves[parameter].id][b]
                expected = alone.forest(kind).log2[alone.tape.leaves[parameter].id][0] + share
                torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9, msg=lambda m, at=parameter: f"{at}: {m}")


def traced(model, task, batch: Batch, **how):
    with gradtrace.record(model, examples=(batch.inputs, batch.targets)) as tape:
        loss = task.loss(model(batch.inputs), batch)
    return tape.trace(loss, **how)


@pytest.mark.parametrize("name", COMPONENTS)
def test_none_looks_ahead_and_every_one_says_something_else_after_another_input(name):
    module, x = made(name), inputs()
    changed = x.clone()
    changed[:, 3] += 1
    before, after = first(module(x)), first(module(changed))
    assert before.shape == x.shape
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


@pytest.mark.parametrize("name", COMPONENTS)
def test_one_step_is_enough_and_a_row_does_not_know_of_another(name):
    module, x = made(name), inputs()
    assert first(module(x[:, :1])).shape == (3, 1, HIDDEN)
    torch.testing.assert_close(first(module(x))[1:2], first(module(x[1:2])))


def test_a_skip_is_what_tells_two_attentions_apart():
    plain, skipping, x = made("attention"), made("attention_skip"), inputs()
    skipping.load_state_dict(plain.state_dict())
    torch.testing.assert_close(skipping(x), x + plain(x))


def test_a_convolution_sees_sixteen_steps():
    module, x = made("convolution"), inputs(time=20)
    for back, sees in ((15, True), (16, False)):
        changed = x.clone()
        changed[:, 19 - back] += 1
        assert torch.allclose(module(x)[:, 19], module(changed)[:, 19]) != sees


def test_a_perceptron_knows_one_step_only():
    module, x = made("mlp"), inputs()
    torch.testing.assert_close(module(x)[:, 2:3], module(x[:, 2:3]))


# ---------------------------------------------------------------- memories, by their papers' equations


def slowly(module, x, remember):
    """Run one sequence, time × hidden; `remember(orders)` carries out a step and gives what is read."""
    h = read = torch.zeros(module.hidden, dtype=x.dtype)
    results = []
    for step in x:
        h = torch.tanh(module.enter(step) + module.again(torch.cat((h, read))))
        read = remember(module.orders(h))
        results.append(module.out(torch.cat((h, read))))
    return torch.stack(results)


@torch.no_grad()
def assert_equals(module, remembers):
    x = inputs(time=9)
    for row, result in zip(x, module(x), strict=True):
        torch.testing.assert_close(result, slowly(module, row, remembers()))


def test_a_superposition_stack_is_that_of_joulin_and_mikolov():
    """s_t[0] = push σ(D h) + pop s[1] + stay s[0]; s_t[i] = push s[i-1] + pop s[i+1] + stay s[i]."""

    def remembers():
        cells = [torch.zeros(HIDDEN, dtype=torch.float64)] * 20

        def remember(orders):
            push, stay, pop = orders[:3].softmax(0)
            value = torch.sigmoid(orders[3:])
            above = [value, *cells[:-1]]
            below = [*cells[1:], torch.zeros(HIDDEN, dtype=torch.float64)]
            cells[:] = [push * a + stay * s + pop * b for a, s, b in zip(above, cells, below, strict=True)]
            return cells[0]

        return remember

    assert_equals(made("stack_rnn"), remembers)
    assert type(made("stack_rnn")) is StackRNN


@pytest.mark.parametrize("stack", [True, False])
def test_neural_stacks_and_queues_are_those_of_grefenstette(stack):
    """Their equations 1 to 3, and 4 and 5 for the queue, over values in the order in which they were pushed."""

    def remembers():
        values, strengths = [], []

        def before(i):
            return sum(strengths[i + 1 :] if stack else strengths[:i])

        def remember(orders):
            push, pop = torch.sigmoid(orders[:2])
            strengths[:] = [
                max(0.0, float(s) - max(0.0, float(pop) - float(before(i)))) for i, s in enumerate(strengths)
            ]
            values.append(torch.tanh(orders[2:]))
            strengths.append(float(push))
            weights = [min(s, max(0.0, 1 - float(before(i)))) for i, s in enumerate(strengths)]
            return sum(w * v for w, v in zip(weights, values, strict=True))

        return remember

    module = made("neural_stack" if stack else "neural_queue")
    assert isinstance(module, NeuralList)
    assert module.stack == stack
    assert_equals(module, remembers)


def test_a_turing_machine_is_that_of_graves_wayne_and_danihelka():
    """Their equations 5 to 9 for each head, then 3 and 4 to write and 2 to read."""
    module = made("ntm")
    assert isinstance(module, TuringMachine)
    slots = len(module.slots)

    def remembers():
        memory = module.slots.detach().clone()
        weights = [torch.eye(slots, dtype=torch.float64)[0], torch.eye(slots, dtype=torch.float64)[0]]

        def address(head, key, beta, gate, gamma, shift):
            alike = torch.stack([F.cosine_similarity(key, row, dim=0) for row in memory])
            content = (F.softplus(beta) * alike).softmax(0)
            mixed = torch.sigmoid(gate) * content + (1 - torch.sigmoid(gate)) * weights[head]
            back, stay, on = shift.softmax(0)
            moved = [
                on * mixed[(i - 1) % slots] + stay * mixed[i] + back * mixed[(i + 1) % slots] for i in range(slots)
            ]
            sharp = torch.stack(moved) ** (1 + F.softplus(gamma))
            weights[head] = sharp / sharp.sum()
            return weights[head]

        def remember(orders):
            nonlocal memory
            keys, beta, gate, gamma, shift, erase, add = orders.split(module.sizes)
            heads = [
                address(i, keys.reshape(2, -1)[i], beta[i], gate[i], gamma[i], shift.reshape(2, 3)[i]) for i in (0, 1)
            ]
            rows = [
                row * (1 - w * torch.sigmoid(erase)) + w * torch.tanh(add)
                for row, w in zip(memory, heads[0], strict=True)
            ]
            memory = torch.stack(rows)
            return heads[1] @ memory

        return remember

    assert_equals(module, remembers)


# ---------------------------------------------------------------- equal sizes


@pytest.mark.parametrize("parameters", [600, 5000])
def test_components_of_one_size_have_nearly_as_many_parameters(parameters):
    for name in COMPONENTS:
        module = build(name, 16, parameters)
        assert abs(sum(p.numel() for p in module.parameters()) - parameters) < parameters / 5
        nearer = [abs(sum(p.numel() for p in build_inner(name, w)) - parameters) for w in neighbours(name, parameters)]
        assert abs(sum(p.numel() for p in module.parameters()) - parameters) == min(nearer)
        assert first(module(torch.randn(2, 3, 16))).shape == (2, 3, 16)


def neighbours(name, parameters):
    at = inner_width(name, 16, parameters)
    return [w for w in (at - 1, at, at + 1) if w > 0]


def build_inner(name, width):
    inner = COMPONENTS[name].make(width)
    return [*inner.parameters(), *nn.Linear(16, width).parameters(), *nn.Linear(width, 16).parameters()]


def test_a_size_that_cannot_be_had_is_refused():
    with pytest.raises(OptionError, match="rnn cannot have about 9 parameters: the nearest is 53"):
        build("rnn", 16, 9)


# ---------------------------------------------------------------- one's own

MINE = """
import torch
from torch import nn

class Conv(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3)
    def forward(self, x):
        return self.conv(nn.functional.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)

class Ahead(Conv):
    def forward(self, x):
        return self.conv(nn.functional.pad(x.transpose(1, 2), (1, 1))).transpose(1, 2)

class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.out = nn.Linear(width, 2 * width)
    def forward(self, x):
        return self.out(x)

def recurrent(width):
    return nn.GRU(width, width, batch_first=True)

def broken(width):
    raise ValueError(f"no {width}")

def nothing(width):
    return width

train = recurrent
constant = 3
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return str(path)


@pytest.mark.parametrize("name", ["Conv", "recurrent"])
def test_ones_own_takes_part_under_its_own_name(mine, name):
    Options(components=("rnn", f"{mine}:{name}"))
    check(f"{mine}:{name}", 8)
    model = TASKS["copy"].model(("rnn", f"{mine}:{name}"), 8, 1)
    assert model.components == ("rnn", name)
    assert isinstance(getattr(model, name), nn.Module)
    assert label(f"{mine}:{name}") == name
    assert find(f"{mine}:{name}").kind == "own"
    assert model(TASKS["copy"].training(1, 0, 2).inputs).shape[2] == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Ahead", "looks ahead"),
        ("Wide", r"must map batch × time × width to the same shape: of \(2, 5, 8\) it makes \(2, 5, 16\)"),
        ("broken", r"broken raised ValueError: no 8 \(mine.py:27\)"),
        ("nothing", r"nothing\(8\) must give a torch.nn.Module, not int"),
        ("constant", "has no function or class 'constant'; there are Conv, Ahead, Wide, recurrent, broken, nothing"),
    ],
)
def test_ones_own_that_does_not_fit_is_one_clear_error(mine, name, said):
    with pytest.raises(OptionError, match=said):
        check(f"{mine}:{name}", 8)


def test_names_that_a_model_has_for_itself_are_refused(mine):
    with pytest.raises(OptionError, match="cannot have the name train"):
        Options(components=(f"{mine}:train",))
    with pytest.raises(OptionError, match="Conv more than once"):
        Options(components=(f"{mine}:Conv", f"{mine}:Conv"))
    with pytest.raises(UnknownName, match="CLASS of your own"):
        find("convolutions")
