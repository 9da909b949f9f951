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
from checks import F64, some_scalars
from torch import Tensor, nn

from gradtrace import GradtraceError, Path, Tape, Trace, component, record
from gradtrace.experiments.competition import Competition, next_word_loss
from gradtrace.queries.influence import InfluenceRow

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
