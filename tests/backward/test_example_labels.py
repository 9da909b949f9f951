"""Per-example results of a batch against each example traced alone, which is a batch of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import F64, leaf, some_scalars
from torch import Tensor, nn

from gradtrace import GradtraceError, Path, Tape, Trace, component, record
from gradtrace.backward import example_labels
from gradtrace.backward.example_labels import propagate
from gradtrace.backward.label_pushes import MIXED
from gradtrace.experiments.competition import Competition, next_word_loss
from gradtrace.kernels import native
from gradtrace.queries.forest import plant
from gradtrace.queries.influence import influence
from gradtrace.queries.tables import InfluenceRow

WORDS, HIDDEN = 11, 4
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A model, a loss of a batch of examples, and the examples.

    Attributes:
        share: the weight of example b's own loss in the batch's; 1 where the loss is a sum.
        of: parameters; those whose gradient vanishes analytically are left out, since noise has no trace.
    """

    model: nn.Module
    loss: Loss
    examples: tuple[Tensor, ...]
    components: tuple[str, ...] | None = None
    share: Callable[[int], float] = lambda b: 1.0
    of: tuple[str, ...] = ("*",)
    kinds: tuple[str, ...] = ("best", "greedy")
    precision: float = 1e-9

    def trace(self, examples: Sequence[Tensor]) -> Trace:
        with record(self.model, examples=examples) as tape:
            loss = self.loss(self.model, *examples)
        return tape.trace(loss)

    def alone(self, b: int) -> Trace:
        return self.trace([t[b : b + 1] for t in self.examples])


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _words(batch: int = 3, time: int = 5) -> Tensor:
    return torch.randint(WORDS, (batch, time), generator=_generator())


def _x(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator(), **F64)


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double()


def _competition(*names: str) -> nn.Module:
    return Competition(names, WORDS, HIDDEN, 0).double()


def _sum_over_words(m: nn.Module, words: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(m(words).flatten(0, 1), targets.flatten(), reduction="sum")


def _mean_over_words(m: nn.Module, words: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(m(words).flatten(0, 1), targets.flatten())


def _ignoring() -> Tensor:
    targets = _words().flip(0).clone()
    targets[0, 3:] = targets[2, 1:] = -100
    return targets


def _encoder(**options: object) -> nn.Module:
    return _seeded(lambda: nn.TransformerEncoderLayer(HIDDEN, 2, 8, 0.0, **{"batch_first": True, **options}))  # type: ignore[arg-type]


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(vocab_size=WORDS, n_positions=8, n_embd=8, n_layer=1, n_head=2, **none)
    return _seeded(lambda: GPT2LMHeadModel(config))


class _Experts(nn.Module):
    """Tokens go to the expert that a gate chooses, and are added where they came from."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(HIDDEN, 3), nn.Tanh(), nn.Linear(3, HIDDEN)) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.gate(x).softmax(-1).max(-1)
        for number, expert in enumerate(self.experts):
            at = (chosen == number).nonzero(as_tuple=True)
            x = x.index_put(at, expert(x[at]) * weight[at].unsqueeze(-1), accumulate=True)
        return x


def _decayed(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    # the decay is no example's own: every example has it in full
    return F.cross_entropy(m(x), y, reduction="sum") + 0.01 * sum(p.square().sum() for p in m.parameters())


class _Squares(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y.square().sum()


PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
NO_BIAS = ("*weight*", "linear*", "norm*", "*out_proj*")
SUM = _Squares()
CASES: dict[str, Callable[[], Case]] = {
    "competition-mean": lambda: Case(
        _competition("rnn", "lstm", "gru"), next_word_loss, (_words(), _words().flip(0)), share=lambda b: 1 / 3
    ),
    "competition-sum": lambda: Case(
        _competition("rnn", "lstm", "gru"), _sum_over_words, (_words(), _words().flip(0)), of=("embedding*", "*hh*")
    ),
    "competition-attention": lambda: Case(
        _competition("gru", "attention"), _sum_over_words, (_words(), _words().flip(0)), of=("embedding*", "*weight*")
    ),
    "unequal-tokens-sum": lambda: Case(
        _competition("rnn", "gru"), _sum_over_words, (_words(), _ignoring()), of=("embedding*", "rnn*", "gru*")
    ),
    "unequal-tokens-mean": lambda: Case(
        _competition("rnn", "gru"), _mean_over_words, (_words(), _ignoring()), share=lambda b: (3 / 9, 5 / 9, 1 / 9)[b]
    ),
    "batch-of-one": lambda: Case(_competition("rnn", "lstm"), next_word_loss, (_words(1), _words(1).flip(1))),
    "one-word": lambda: Case(
        _competition("rnn", "gru"), _sum_over_words, (_words(4, 1), _words(4, 1).flip(0)), of=("embedding*", "output*")
    ),
    "as-many-words-as-examples": lambda: Case(
        _competition("lstm"), _sum_over_words, (_words(5, 5), _words(5, 5).flip(0)), of=("embedding*",), kinds=("best",)
    ),
    "encoder": lambda: Case(
        _encoder(), lambda m, x: m(x).pow(3).sum(), (_x(3, 5, HIDDEN),), ("self_attn",), of=NO_BIAS
    ),
    "encoder-pre-norm-mean": lambda: Case(
        _encoder(norm_first=True, activation="gelu"),
        lambda m, x: m(x).pow(3).mean(),
        (_x(3, 5, HIDDEN),),
        ("self_attn", "linear1"),
        lambda b: 1 / 3,
        of=NO_BIAS,
    ),
    "encoder-padding-mask": lambda: Case(
        _encoder(),
        lambda m, x, mask: m(x, src_key_padding_mask=mask).pow(3).sum(),
        (_x(3, 5, HIDDEN), PADDED),
        ("self_attn",),
        of=NO_BIAS,
    ),
    "encoder-causal-sequence-first": lambda: Case(
        _encoder(batch_first=False),
        lambda m, x: m(x.transpose(0, 1), torch.full((5, 5), -torch.inf, **F64).triu(1)).pow(3).sum(),
        (_x(3, 5, HIDDEN),),
        ("self_attn",),
        of=NO_BIAS,
        kinds=("best",),  # a softmax over two ties p(1 - p) with itself
    ),
    "lstm-sequence-first": lambda: Case(
        _seeded(lambda: nn.LSTM(HIDDEN, 3, 2, bidirectional=True)),
        lambda m, x: SUM(m(x.transpose(0, 1))[0]),
        (_x(3, 5, HIDDEN),),
    ),
    "gru-last-state": lambda: Case(
        _seeded(lambda: nn.GRU(HIDDEN, 3, batch_first=True)), lambda m, x: SUM(m(x)[1]), (_x(3, 5, HIDDEN),)
    ),
    "weight-decay": lambda: Case(
        _seeded(lambda: nn.Sequential(nn.Linear(HIDDEN, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 3))),
        _decayed,
        (_x(4, HIDDEN), torch.tensor([0, 2, 1, 1])),
    ),
    "regression-mean": lambda: Case(
        _seeded(lambda: nn.Sequential(nn.Linear(HIDDEN, 6), nn.ReLU(), nn.Linear(6, 1))),
        lambda m, x, y: F.mse_loss(m(x).squeeze(1), y),
        (_x(4, HIDDEN), _x(4)),
        share=lambda b: 1 / 4,
    ),
    "one-example-after-another": lambda: Case(
        _seeded(lambda: nn.Sequential(nn.Linear(HIDDEN, 6), nn.Tanh(), nn.Linear(6, 2))),
        lambda m, x: torch.stack([m(row).square().sum() for row in x]).sum(),
        (_x(3, HIDDEN),),
    ),
    "terms-added-in-a-loop": lambda: Case(
        _seeded(lambda: nn.Sequential(nn.Linear(HIDDEN, 6), nn.Tanh(), nn.Linear(6, 2))),
        lambda m, x: sum((SUM(m(row)) for row in x), start=torch.zeros((), **F64)),
        (_x(3, HIDDEN),),
    ),
    "rows-written-into-a-buffer": lambda: Case(
        _seeded(lambda: nn.Sequential(nn.Linear(HIDDEN, 6), nn.Tanh(), nn.Linear(6, 2))), _buffered, (_x(3, HIDDEN),)
    ),
    "convolution": lambda: Case(
        _seeded(lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(6, 2))),
        lambda m, x: SUM(m(x)),
        (_x(3, 2, 5),),
    ),
    "batch-norm-in-evaluation": lambda: Case(
        _seeded(lambda: nn.Sequential(nn.Linear(HIDDEN, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()),
        lambda m, x: SUM(m(x)),
        (_x(3, HIDDEN),),
    ),
    "two-inputs-concatenated": lambda: Case(
        _seeded(lambda: nn.Sequential(nn.Linear(HIDDEN, 6), nn.Tanh(), nn.Linear(6, 2))),
        lambda m, a, b: torch.mul(*m(torch.cat([a, b])).chunk(2)).sum(),
        (_x(3, HIDDEN), _x(3, HIDDEN).flip(0)),
    ),
    "selected-words": lambda: Case(
        _seeded(lambda: nn.Sequential(nn.Embedding(WORDS, HIDDEN), nn.Linear(HIDDEN, 3))),
        lambda m, words: SUM(m(words)[words > 3]),
        (_words(),),
    ),
    "experts": lambda: Case(_seeded(_Experts), lambda m, x: SUM(m(x)), (_x(3, 5, HIDDEN),), of=("experts*",)),
    "gpt2": lambda: Case(
        _gpt2(),
        lambda m, words: m(words, labels=words).loss,
        (_words(),),
        ("transformer.h.0.attn", "transformer.h.0.mlp"),
        lambda b: 1 / 3,
        of=("*weight",),
        kinds=("best",),  # a softmax over two ties p(1 - p) with itself
        precision=1e-5,  # it casts to float32 inside
    ),
}


def _buffered(m: nn.Module, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 2, **F64)
    for i, row in enumerate(x):
        out[i] = m(row)
    return SUM(out)


@cache
def traced(name: str) -> tuple[Case, Trace, list[Trace]]:
    """Trace a batch, and each of its examples alone."""
    case = CASES[name]()
    return case, case.trace(case.examples), [case.alone(b) for b in range(len(case.examples[0]))]


def assert_same_row(ours: InfluenceRow, share: float, weighted: float, dead: float, precision: float) -> None:
    assert ours.dead_share == pytest.approx(dead, abs=1e-12)
    assert ours.share == pytest.approx(share, abs=1e-12, nan_ok=True)
    assert ours.weighted_share == pytest.approx(weighted, abs=precision, nan_ok=True)


@pytest.mark.parametrize("name", CASES)
def test_shares_of_a_batch_are_those_of_each_example_alone(name):
    case, trace, alone = traced(name)
    for kind in case.kinds:
        table = trace.influence(case.components, case.of, kind=kind)
        assert table.connected == ()
        own = [t.influence(case.components, case.of, kind=kind, per_example=False) for t in alone]
        for b, rows in enumerate(table.by_example or (table.rows,)):
            assert [r.component for r in rows] == [r.component for r in own[b].rows]
            for row, expected in zip(rows, own[b].rows, strict=True):
                assert_same_row(row, expected.share, expected.weighted_share, expected.dead_share, case.precision)
                assert row.examples == 1


@pytest.mark.parametrize("name", CASES)
def test_labels_of_calls_that_are_alike_are_those_that_each_alone_would_get(name, monkeypatch):
    _, trace, _ = traced(name)
    ours = propagate(trace.tape.record, trace.root)
    again = propagate(trace.tape.record, trace.root)
    monkeypatch.setattr(example_labels, "_by_shape", lambda *_: False)
    monkeypatch.setattr(example_labels, "_KNOWN", {})
    expected = propagate(trace.tape.record, trace.root)
    assert ours.of.keys() == expected.of.keys()
    for number, label in expected.of.items():
        assert ours.of[number] is again.of[number]
        assert ours.of[number] is label if label is MIXED else torch.equal(ours.of[number], label)
    assert ours.together == expected.together
    assert ours.connected == expected.connected


@pytest.mark.parametrize("name", CASES)
def test_a_group_that_is_asked_about_alone_has_the_traces_that_it_has_among_all(name):
    case, trace, _ = traced(name)
    leaves, labels = list(trace.tape.leaves.values())[::2], propagate(trace.tape.record, trace.root)
    for kind in case.kinds:
        alone, whole = (
            plant(trace.tape.record, trace.root, kind, labels, leaves=leaves),
            trace.forest(kind, per_example=True),
        )
        if native.available():
            assert alone.compact is not None
            assert set(alone.compact.planes) <= {trace.root.id, *(v.id for v in leaves)}
        for value in leaves:
            assert torch.equal(alone.log2[value.id], whole.log2[value.id])
            assert torch.equal(alone.winners[value.id], whole.winners[value.id])
        names = [str(v.name) for v in leaves]
        few, all_of_them = (influence(forest, case.components, names) for forest in (alone, whole))
        assert repr(few.by_example) == repr(all_of_them.by_example)


@pytest.mark.parametrize("name", CASES)
def test_pooled_shares_count_pairs_of_example_and_scalar(name):
    case, trace, alone = traced(name)
    for kind in case.kinds:
        own = [t.influence(case.components, case.of, kind=kind, per_example=False) for t in alone]
        scalars = sum(t.numel() for n, t in case.model.named_parameters() if n in own[0].of)
        weights = [case.share(b) * _total_weight(t, kind, own[0].of) for b, t in enumerate(alone)]
        for i, row in enumerate(trace.influence(case.components, case.of, kind=kind).rows):
            rows = [table.rows[i] for table in own]
            live = [scalars * (1 - r.dead_share) for r in rows]
            crossing = sum(r.share * n for r, n in zip(rows, live, strict=True) if n)
            weighted = sum(r.weighted_share * w for r, w in zip(rows, weights, strict=True) if w)
            dead = 1 - sum(live) / (scalars * len(rows))
            assert_same_row(row, crossing / sum(live), weighted / sum(weights), dead, case.precision)
            assert row.examples == len(rows)


def _total_weight(trace: Trace, kind: str, names: Sequence[str]) -> float:
    forest = trace.forest(kind)
    return sum(float(torch.exp2(forest.log2[trace.tape.leaves[n].id]).sum()) for n in names)


@pytest.mark.parametrize("name", CASES)
def test_strengths_and_paths_of_an_example_are_its_own(name):
    case, trace, alone = traced(name)
    for b, own in enumerate(alone):
        scale = math.log2(case.share(b))
        for kind in case.kinds:
            names = own.influence(case.components, case.of, kind=kind, per_example=False).of
            for parameter in names:
                ours = trace.forest(kind, per_example=True).log2[trace.tape.leaves[parameter].id][b]
                expected = own.forest(kind).log2[own.tape.leaves[parameter].id][0] + scale
                torch.testing.assert_close(ours, expected, rtol=0, atol=case.precision)
            for parameter in names[b :: max(1, len(names) // 3)]:
                index = some_scalars(own.strength[parameter], 1, seed=b)[0]
                if own.strength[parameter][index] > -torch.inf:
                    path = trace.path(parameter, index, kind=kind, example=b)
                    alike = own.path(parameter, index, kind=kind)
                    assert path.log2_weight == pytest.approx(alike.log2_weight + scale, abs=case.precision)
                    assert _visits(path) == _visits(alike, case.precision)


def _visits(path: Path, precision: float = 0.0) -> list[tuple[str, Any]]:
    """Give a path without what differs between batch sizes: views, copies, which call of a module, and a mean's 1/n."""
    steps = [s for s in path.steps[:-1] if abs(s.derivative - 1) > 1e-12]
    return [(s.module.split(":")[0], pytest.approx(s.derivative, rel=precision)) for s in steps]


# ---------------------------------------------------------------- connected examples

linear = nn.Sequential(nn.Linear(3, 3)).double()
CONNECTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "centred": lambda y, x: (y - y.mean(0)).square().sum(),
    "centred-input": lambda y, x: (linear(x - x.mean(0))).square().sum(),
    "standard-deviation": lambda y, x: y.std(0).sum(),
    "batch-norm": lambda y, x: F.batch_norm(y, None, None, training=True).pow(3).sum(),
    "softmax-over-the-batch": lambda y, x: y.softmax(0).square().sum(),
    "cumulative-over-the-batch": lambda y, x: y.cumsum(0).square().sum(),
    "linear-mixture-of-rows": lambda y, x: (y + y[torch.tensor([0, 0, 1, 1])]).sum(),
    "cumulative-and-linear": lambda y, x: (y.cumsum(0) * torch.linspace(-1, 1, 3, **F64)).sum(),
    "contrastive": lambda y, x: F.cross_entropy(y @ y.t(), torch.arange(len(y))),
    "contrastive-with-the-inputs": lambda y, x: F.cross_entropy(y @ x.t(), torch.arange(len(y))),
    "all-pairs": lambda y, x: (y[:, None] * y[None]).sum(),
    "distances": lambda y, x: torch.cdist(y, y).square().sum(),
    "neighbours": lambda y, x: (y * y.roll(1, 0)).sum(),
    "normalised-by-the-total": lambda y, x: (y / y.sum()).square().sum(),
    "product-of-two-examples": lambda y, x: y[0].sum() * y[1].sum(),
    "squared-sum": lambda y, x: y.sum() ** 2,
    "root-mean-square": lambda y, x: y.square().mean().sqrt(),
    "row-overwritten": lambda y, x: _mixed_rows(y),
    "weights-from-the-batch": lambda y, x: (y * x.sum(0)).sum(),
}
APART: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda y, x: y.square().sum(),
    "mean-scaled-and-shifted": lambda y, x: y.square().mean() * 2 / 3 + 1,
    "two-terms": lambda y, x: y.square().mean() - 0.1 * y.abs().sum(),
    "softmax-over-features": lambda y, x: y.softmax(1).square().sum(),
    "cumulative-over-features": lambda y, x: y.cumsum(1).square().sum(),
    "layer-norm": lambda y, x: F.layer_norm(y, (3,)).pow(3).sum(),
    "normalised": lambda y, x: F.normalize(y).pow(3).sum(),
    "instance-norm": lambda y, x: F.instance_norm(y[:, :, None] * x[:, None, :]).pow(3).sum(),
    "shuffled": lambda y, x: y[torch.tensor([2, 0, 3, 1])].square().sum(),
    "repeated-and-dropped": lambda y, x: y[torch.tensor([0, 0, 3])].square().sum(),
    "inner-products": lambda y, x: torch.einsum("bi,bi->b", y, x).square().sum(),
    "outer-products": lambda y, x: torch.bmm(y[:, :, None], y[:, None, :]).square().sum(),
    "concatenated": lambda y, x: torch.cat([y, y * 2]).square().sum() + torch.cat([y, x], 1).square().sum(),
    "largest-feature": lambda y, x: y.max(1).values.sum() + y.topk(2, 1).values.square().sum(),
    "gated-by-its-own-input": lambda y, x: torch.where(x > 0, y, 2 * y).sum(),
    "rows-selected-and-written-back": lambda y, x: linear(_written_back(y, x)).square().sum(),
    "rows-added-up": lambda y, x: sum((row.square().sum() for row in y), start=torch.zeros((), **F64)),
}


def _mixed_rows(y: Tensor) -> Tensor:
    h = y * 1
    h[0] = h[1] * h[0].clone()
    return h.square().sum()


def _written_back(y: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros_like(y)
    out[x > -0.5] = y[x > -0.5] * 2
    return out


def _connected(program: Callable[[Tensor, Tensor], Tensor]) -> tuple[str, ...]:
    x = _x(4, 3)
    with record(linear, examples=x) as tape:
        loss = program(linear(x), x)
    return tape.trace(loss).influence(["0"], per_example=True).connected


@pytest.mark.parametrize("name", CONNECTED)
def test_what_connects_examples_is_reported_with_its_source_line(name):
    connected = _connected(CONNECTED[name])
    assert connected
    assert all("test_example_labels.py:" in where for where in connected)


@pytest.mark.parametrize("name", APART)
def test_what_keeps_examples_apart_is_not_reported(name):
    assert _connected(APART[name]) == ()


def test_a_table_of_connected_examples_says_so():
    x = _x(4, 3)
    with record(linear, examples=x) as tape:
        loss = (linear(x) - linear(x).mean(0)).square().sum()
    assert "connected" in str(tape.trace(loss).influence(["0"]))
    assert "connected" not in str(tape.trace(loss).influence(["0"], per_example=False))


# ---------------------------------------------------------------- how examples are given


def _table(examples: object, x: Tensor, y: Tensor) -> list[tuple[float, ...]]:
    model = _seeded(lambda: nn.Sequential(nn.Linear(HIDDEN, 6), nn.ReLU(), nn.Linear(6, 3)))
    with record(model, examples=examples) as tape:  # type: ignore[arg-type]
        loss = F.cross_entropy(model(x), y)
    rows = tape.trace(loss).influence(["1"], "0.*").by_example
    return [(r.share, r.weighted_share, r.dead_share) for (r,) in rows]


def test_examples_may_be_a_tensor_a_sequence_or_a_mapping():
    x, y = _x(4, HIDDEN), torch.tensor([0, 2, 1, 1])
    expected = _table(x, x, y)
    assert len(expected) == 4
    assert _table([x], x, y) == _table((x, y), x, y) == _table({"x": x, "y": y}, x, y) == expected


def test_examples_that_disagree_on_their_number_are_refused():
    with pytest.raises(GradtraceError, match=r"\[4, 3\]"), record(examples=[_x(4, 2), _x(3, 2)]):
        pass


def test_a_scalar_is_no_batch_of_examples():
    with pytest.raises(GradtraceError, match="first dimension"), record(examples=torch.tensor(1.0)):
        pass


def _tape(examples: Tensor | None, x: Tensor) -> tuple[Tape, Tensor]:
    with record(linear, examples=examples) as tape:
        loss = linear(x).square().sum()
    return tape, loss


def test_per_example_results_without_examples_say_what_is_missing():
    tape, loss = _tape(None, _x(4, 3))
    with pytest.raises(GradtraceError, match="examples=x"):
        tape.trace(loss).influence(per_example=True)
    with pytest.raises(GradtraceError, match="examples=x"):
        tape.trace(loss).path("0.bias", (0,), example=1)


def test_examples_that_the_loss_does_not_depend_on_are_an_error():
    tape, loss = _tape(_x(4, 2), _x(4, 3))
    with pytest.raises(GradtraceError, match="does not depend on the tensors given as examples"):
        tape.trace(loss).influence(per_example=True)


def test_examples_that_get_lost_on_the_way_say_what_to_give():
    model, words = nn.Sequential(nn.Linear(WORDS, 2)).double(), _words()
    hot = torch.tensor(F.one_hot(words, WORDS).tolist(), **F64)  # made by Python: nobody saw what of
    with record(model, examples=words) as tape:
        loss = model(hot).square().sum()
    with pytest.raises(GradtraceError, match="give the tensors made from them"):
        tape.trace(loss).influence()
    with record(model, examples=hot) as tape:
        loss = model(hot).square().sum()
    assert len(tape.trace(loss).influence().by_example) == 3


def test_a_loss_whose_derivatives_are_all_zero_is_dead_for_every_example():
    x = _x(4, 3)
    with torch.no_grad():
        target = linear(x)
    with record(linear, examples=x) as tape:
        loss = F.mse_loss(linear(x), target)
    rows = tape.trace(loss).influence(["0"]).by_example
    assert [r.dead_share for (r,) in rows] == [1.0] * 4
    assert all(math.isnan(r.share) for (r,) in rows)


@pytest.mark.parametrize("b", [-1, 4])
def test_an_example_that_does_not_exist_is_named(b):
    tape, loss = _tape(x := _x(4, 3), x)
    with pytest.raises(GradtraceError, match=f"example {b} .*4"):
        tape.trace(loss).path("0.bias", (0,), example=b)


def test_scalars_of_examples_that_are_leaves_count_for_their_own_example():
    model = _seeded(lambda: nn.Sequential(nn.Linear(HIDDEN, 6), nn.ReLU(), nn.Linear(6, 3)))
    x = _x(4, HIDDEN).requires_grad_()

    def table(x: Tensor) -> object:
        with record(model, examples=x, names={"x": x}) as tape, component("square"):
            loss = model(x).square().sum()
        return tape.trace(loss).influence(["1", "0"], ["x", "0.weight"])

    rows = table(x).by_example  # type: ignore[attr-defined]
    for b in range(4):
        for ours, own in zip(rows[b], table(x.detach()[b : b + 1].requires_grad_()).rows, strict=True):  # type: ignore[attr-defined]
            assert_same_row(ours, own.share, own.weighted_share, own.dead_share, 1e-9)


# ---------------------------------------------------------------- what carries labels, and what they must not change


class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def _each(program: Callable[..., Tensor], leaves: dict[str, Tensor], examples: Any, name: str) -> Tensor:
    """Give log2 of each example's best paths from one leaf."""
    with record(names=leaves, examples=examples) as tape:
        loss = program(**leaves)
    return tape.trace(loss, check=True).forest("best", per_example=True).log2[tape.find(name).id]


UNCHANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "custom function after constants": lambda h: Same.apply(h.tanh()).sum(),
    "custom function after integers": lambda h: (h.argmax(), Same.apply(h.sin()))[1].sum(),
    "detached and joined": lambda h: (h.detach().round() * Same.apply(h)).sum(),
    "a buffer written in parts": lambda h: _in_parts(h).square().sum(),
    "statistics under no_grad": lambda h: (h - _mean_of(h)).pow(2).sum(),
}


def _in_parts(h: Tensor) -> Tensor:
    out = torch.empty_like(h)
    out[1:], out[:1] = h[:-1], h[:1]
    return out


@torch.no_grad()
def _mean_of(h: Tensor) -> Tensor:
    return h.mean(0)


@pytest.mark.parametrize("name", UNCHANGED)
def test_giving_examples_changes_nothing_about_the_batch(name):
    a, x, found = torch.tensor([0.3, 0.7], **F64).requires_grad_(), _x(4, 2), []
    for examples in (None, x):
        with record(names={"a": a}, examples=examples) as tape:
            loss = UNCHANGED[name](a * x)
        trace = tape.trace(loss, check=True)
        found.append((trace.strength["a"].tolist(), trace.forest().winners[tape.find("a").id].tolist(), repr(trace)))
        found[-1] += (tape.grad(loss, "a")[0].tolist(), [c.name for c in tape.calls])
    assert found[0] == found[1]


def test_a_module_with_a_full_backward_hook_is_the_same_with_examples():
    model, x, found = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(5, 4), []
    model[2].register_full_backward_hook(lambda *_: None)
    for examples in (None, x):
        with record(model, examples=examples) as tape:
            loss = model(x).pow(2).mean()
        found.append(tape.trace(loss).strength["0.weight"])
    assert torch.equal(*found)


def test_rows_that_no_example_wrote_are_those_of_their_places():
    leaves = {"b": torch.zeros(2, **F64).requires_grad_(), "w": torch.eye(2, **F64).requires_grad_()}
    x = torch.ones(3, 2, **F64)

    def program(b: Tensor, w: Tensor) -> Tensor:
        h = torch.zeros(3, 2, **F64)
        h[:1] = x[:1] @ w
        return ((h + b) * torch.tensor([[1.0], [2.0], [4.0]])).sum()

    assert _each(program, leaves, x, "b").tolist() == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize(
    "x", [torch.ones(4, 3, **F64), torch.ones(1, 3, **F64).expand(4, 3), torch.ones(6, **F64).unfold(0, 3, 1)]
)
def test_examples_may_share_memory(x):
    def program(w: Tensor) -> Tensor:
        return sum(((x[i] * w).sum() * 2.0**i for i in range(4)), start=torch.zeros((), **F64))

    assert _each(program, {"w": _x(3).requires_grad_()}, x, "w").tolist() == [[i] * 3 for i in range(4)]


WORDS_, TARGETS = torch.randint(5, (4, 6), generator=_generator()), torch.randint(3, (4, 6), generator=_generator())
INDEXED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "indexing": lambda e, w: e[w],
    "index_select": lambda e, w: e.index_select(0, w.flatten()).view(*w.shape, -1),
    "one-hot": lambda e, w: F.one_hot(w, 5).double() @ e,
    "gather": lambda e, w: e.gather(0, w.reshape(-1, 1).expand(-1, 3)).view(*w.shape, 3),
    "take_along_dim": lambda e, w: torch.take_along_dim(e, w.reshape(-1, 1), 0).view(*w.shape, 3),
    "embedding": lambda e, w: F.embedding(w, e),
    "embedding_bag": lambda e, w: F.embedding_bag(w, e, mode="mean")[:, None].expand(-1, w.shape[1], -1),
    "masked": lambda e, w: torch.where((w > 2)[..., None], e[0], e[1]),
    "compared": lambda e, w: (w[..., None] == torch.arange(5)).double() @ e,
    "through integers": lambda e, w: e[(w * 2 + 1) % 5],
}


@pytest.mark.parametrize("name", INDEXED)
def test_integer_examples_that_index_a_parameter(name):
    e = _x(5, 3).requires_grad_()

    def program(e: Tensor, w: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(INDEXED[name](e, w).flatten(0, 1), t.flatten(), reduction="sum")

    ours = _each(lambda e: program(e, WORDS_, TARGETS), {"e": e}, WORDS_, "e")
    for b in range(4):
        with record(names={"e": e}) as tape:
            loss = program(e, WORDS_[b : b + 1], TARGETS[b : b + 1])
        torch.testing.assert_close(ours[b], tape.trace(loss).strength["e"], rtol=0, atol=1e-9)


class _Drawn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


@torch.library.custom_op("gradtrace_tests::scaled_rows", mutates_args=())
def scaled_rows(x: Tensor, scale: Tensor) -> Tensor:
    return x * scale[:, None]


scaled_rows.register_autograd(
    lambda ctx, g: (g * ctx.saved_tensors[0][:, None], None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]),
)


def _pixels(h: Tensor) -> Tensor:
    return h.repeat(1, 4)[:, :12].view(-1, 3, 2, 2)


THROUGH: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a custom operator's constant": lambda m, x: scaled_rows(m(x), x[:, 0]),
    "a product with a constant": lambda m, x: torch.linalg.cross(m(x), x[:, :3]),
    "a system with a constant side": lambda m, x: torch.linalg.solve(torch.diag_embed(m(x).exp()), x[:, :3]),
    "masked_select": lambda m, x: m(x).masked_select(x[:, :3] > 0),
    "masked_select of a broadcast mask": lambda m, x: m(x).masked_select(x[:, :1] > -9),
    "unpooling": lambda m, x: F.max_unpool2d(*F.max_pool2d(_pixels(m(x)), 2, return_indices=True), 2),
    "quantised": lambda m, x: m(torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8).dequantize().double()),
    "alignments": lambda m, x: F.ctc_loss(
        m(x).log_softmax(-1).expand(4, -1, -1),
        (x[:, :2] > 0).long() + 1,
        torch.full((len(x),), 4),
        (x[:, 0] > 0).long() + 1,
        reduction="none",
    ),
    "alignments of targets end to end": lambda m, x: F.ctc_loss(
        m(x).log_softmax(-1).expand(4, -1, -1),
        (x[:, :2] > 0).long().flatten() + 1,
        (4,) * len(x),
        (2,) * len(x),
        reduction="none",
    ),
    "a Fourier transform of constants": lambda m, x: m(torch.fft.rfft(x.repeat(1, 2))[:, :4].abs()),
    "complex numbers": lambda m, x: m(torch.view_as_real(torch.polar(x, x))[..., 0]),
    "a custom function of constants": lambda m, x: m(Same.apply(x)),
    "a computed leaf": lambda m, x: m(x.clone().requires_grad_()),
    "a decomposition of constants": lambda m, x: m(torch.linalg.svdvals(x[:, :, None] * x[:, None, :])),
    "sorting within examples": lambda m, x: m(x.sort(1).values),
    "counting": lambda m, x: m((x > 0).sum(1, keepdim=True).double().expand(-1, 4)),
    "an empty part": lambda m, x: torch.cat([m(x), m(x)[:, 3:]], 1),
    "cumulated": lambda m, x: m(x.cumsum(1)),
    "missing values": lambda m, x: m(torch.where(x > 1, torch.nan, x).nan_to_num(0.5)),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", THROUGH)
def test_labels_go_through(name):
    model, x = _seeded(_Drawn), _x(5, 4)
    case = Case(model, lambda m, x: THROUGH[name](m, x).pow(2).sum(), (x,))
    trace = case.trace((x,))
    assert trace.influence().connected == ()
    for b in range(5):
        own = case.alone(b)
        for n in dict(model.named_parameters()):
            ours = trace.forest("best", per_example=True).log2[trace.tape.leaves[n].id][b]
            torch.testing.assert_close(ours, own.strength[n], rtol=0, atol=1e-9)


def test_packed_sequences_keep_examples_apart():
    cells, x, lengths = (
        _seeded(lambda: nn.GRU(4, 3, batch_first=True, bidirectional=True)),
        _x(5, 7, 4),
        [7, 3, 6, 2, 2],
    )

    def loss_of(m: nn.Module, x: Tensor, lengths: Sequence[int]) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        out, _ = nn.utils.rnn.pad_packed_sequence(m(packed)[0], batch_first=True)
        return out.pow(2).sum()

    with record(cells, examples=x) as tape:
        loss = loss_of(cells, x, lengths)
    trace = tape.trace(loss, check=True)
    forest = trace.forest("best", per_example=True)
    for b in range(5):
        with record(cells) as alone:
            own = loss_of(cells, x[b : b + 1], lengths[b : b + 1])
        for n, value in alone.leaves.items():
            expected = alone.trace(own).forest("best").log2[value.id][0]
            torch.testing.assert_close(forest.log2[tape.leaves[n].id][b], expected, rtol=0, atol=1e-9)


def test_actions_that_are_drawn_keep_examples_apart():
    policy, seen, rewards = _seeded(_Drawn), _x(6, 4), _x(6)
    with record(policy, examples=[seen, rewards]) as tape:
        chosen = torch.distributions.Categorical(logits=policy(seen))
        loss = -(chosen.log_prob(chosen.sample()) * rewards).mean()
    table = tape.trace(loss, check=True).influence(of="body*")
    assert table.rows[0].examples == 6
    assert table.connected == ()


def test_a_gradient_penalty_keeps_examples_apart():
    """The kernel is as large as the image: its winners are told apart by a table of one entry."""
    critic, x = _seeded(lambda: nn.Conv2d(2, 3, 4)), _x(3, 2, 4, 4)

    def loss_of(m: nn.Module, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        y = F.softplus(m(x)).sum()
        return torch.autograd.grad(y, x, create_graph=True)[0].square().sum() + y

    case = Case(critic, loss_of, (x,))
    trace = case.trace((x,))
    assert trace.influence(of="*").connected == ()
    assert trace.fallbacks == {}
    for b in range(3):
        own = case.alone(b)
        for n in dict(critic.named_parameters()):
            ours = trace.forest("best", per_example=True).log2[trace.tape.leaves[n].id][b]
            torch.testing.assert_close(ours, own.strength[n], rtol=0, atol=1e-9)


@pytest.mark.parametrize("draw", [lambda h: torch.bernoulli(h.sigmoid()), lambda h: torch.normal(h, 1.0)])
def test_what_is_drawn_belongs_to_the_example_that_it_was_drawn_for(draw):
    model, x, w = _seeded(lambda: nn.Linear(4, 3)), _x(5, 4), _x(3, 2).requires_grad_()
    with record(model, names={"w": w}, examples=x) as tape:
        drawn = draw(model(x))
        loss = (drawn @ w).sum() + model(x).sum()
    ours = tape.trace(loss, check=True).forest("best", per_example=True).log2[tape.find("w").id]
    expected = drawn.detach().abs().log2()[:, :, None].expand(5, 3, 2)
    torch.testing.assert_close(ours.reshape(5, 3, 2), expected, rtol=0, atol=1e-9)


def test_a_constant_that_mixes_examples_beside_what_is_followed_is_still_noticed():
    model, x = _seeded(lambda: nn.Linear(4, 3)), _x(5, 4)
    with record(model, examples=x) as tape:
        loss = scaled_rows(model(x), x[:, 0] - x[:, 0].mean()).sum()
    assert tape.trace(loss).influence(of="*").connected


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantising_what_is_followed_is_no_crash():
    model, x = _seeded(lambda: nn.Linear(4, 3)), _x(5, 4)
    with record(model, examples=x) as tape:
        h = model(x)
        loss = (torch.quantize_per_tensor(h.float(), 0.1, 0, torch.qint8).dequantize() * h).sum()
    assert tape.trace(loss, check=True).influence(of="*").connected == ()


CHOSEN: dict[str, Callable[[Tensor], Tensor]] = {
    "amax": lambda h: h.amax(0),
    "max": lambda h: h.max(0).values,
    "max of all": lambda h: h.max(),
    "topk": lambda h: h.topk(1, 0).values,
    "sort": lambda h: h.sort(0).values[0],
    "median": lambda h: h.median(0).values,
    "kthvalue": lambda h: h.kthvalue(2, 0).values,
    "cummax": lambda h: h.cummax(0).values,
    "argmax as an index": lambda h: h[h.argmax(0), [0, 1]],
    "argsort as an index": lambda h: h[h[:, 0].argsort()][0],
    "a batch's number as an index": lambda h: h[:, (h.sum() > 0).long().reshape(1)],
}


@pytest.mark.parametrize("name", CHOSEN)
def test_selecting_over_the_batch_connects_examples(name):
    model, x = _seeded(lambda: nn.Linear(3, 2)), _x(4, 3)
    with record(model, examples=x) as tape:
        loss = CHOSEN[name](model(x)).sum()
    assert tape.trace(loss).influence(of="*").connected


def test_a_number_of_the_batch_is_named_once():
    model, x = _seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))), _x(4, 3)
    with record(model, examples=x) as tape:
        scale, h = x.mean(0), x
        for _ in range(50):
            h = model[1](model[0](h * scale))
            h = (h - h.mean(0)) + h
        loss = model(h / scale).sum()
    table = tape.trace(loss).influence()
    assert len(table.connected) == 2
    assert table.connected[1].endswith("and 49 more calls there")
    assert len(str(table).splitlines()[-1]) < 600


@pytest.mark.parametrize("like", [torch.zeros_like, torch.empty_like, lambda h: h.new_zeros(h.shape)])
def test_buffers_that_are_made_like_an_activation(like):
    model, x = _seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh())), _x(3, 4)

    def loss_of(m: nn.Module, x: Tensor) -> Tensor:
        h = m(x)
        out = like(h)
        out[:, 1:], out[:, :1] = h[:, :-1], h[:, :1]
        return (out * torch.arange(1.0, 7)).square().sum()

    case = Case(model, loss_of, (x,))
    trace = case.trace((x,))
    for b in range(3):
        own = case.alone(b)
        ours = trace.forest("best", per_example=True).log2[trace.tape.leaves["0.weight"].id][b]
        torch.testing.assert_close(ours, own.strength["0.weight"], rtol=0, atol=1e-9)


def test_memory_that_holds_an_example_here_and_all_of_them_there():
    """What was written over an example's row is a sum of everybody's: of each its own term."""
    w, x = leaf(4), torch.randn(3, 4, **F64)
    with record(names={"w": w}, examples=[x]) as tape:
        h = x @ w
        rows = -h
        last = rows[-1]
        rows[1:].fill_(h.square().sum())
        loss = last * 1
    trace = tape.trace(loss)
    assert not trace.influence(of="*").connected
    weights = trace.forest("best", per_example=True).log2[tape.leaves["w"].id]
    torch.testing.assert_close(weights.exp2(), (2 * h[:, None] * x).abs().detach(), rtol=1e-9, atol=0)


def test_a_row_of_one_example_is_read_from_beside_rows_of_several():
    """Rows in which examples meet, and of which none leads to the loss, say nothing of the others."""
    w, x = leaf(4, 2), torch.randn(3, 4, **F64)
    with record(names={"w": w}, examples=[x]) as tape:
        beside = x[:1].sum() * torch.ones(3, 1, **F64)  # the first example's
        loss = torch.addmm(beside, x, w)[0].sum()
    weights = tape.trace(loss).forest("best", per_example=True).log2[tape.leaves["w"].id].exp2()
    torch.testing.assert_close(weights[0], x[0, :, None].abs().expand(4, 2), rtol=1e-9, atol=0)
    assert not weights[1:].any()


def test_a_parameter_that_joins_products_of_examples_counts_for_each_its_own():
    bias, x = leaf(), torch.randn(3, 4, **F64)
    with record(names={"bias": bias}, examples=[x]) as tape:
        loss = (torch.nn.functional.linear(x, x, bias).diagonal() * torch.tensor([1.0, 2.0, 3.0], **F64)).sum()
    weights = tape.trace(loss).forest("best", per_example=True).log2[tape.leaves["bias"].id].exp2()
    assert weights.tolist() == pytest.approx([1.0, 2.0, 3.0])


def test_a_mean_that_is_written_into_a_part_of_memory_is_of_several_there_alone():
    w, x = leaf(4), torch.randn(3, 4, **F64)
    with record(names={"w": w}, examples=[x]) as tape:
        rows = torch.stack([x @ w, x @ w])
        rows[1] = x.mean()
        loss = (rows[0] * w[0]).sum()
    trace = tape.trace(loss)
    assert not trace.influence(of="*").connected
    weights = trace.forest("best", per_example=True).log2[tape.leaves["w"].id].exp2()
    direct = (x @ w).abs().detach()
    through = (x * w[0]).abs().detach()
    expected = torch.cat([torch.maximum(through[:, :1], direct[:, None]), through[:, 1:]], 1)
    torch.testing.assert_close(weights, expected, rtol=1e-9, atol=0)
