"""Real models: Sum is autograd's gradient, every trace certifies itself, and best paths have their strength.

Differences are relative to the largest entry of a parameter's gradient. Only gradients that vanish analytically,
named in `VANISHING`, are compared in units of the largest gradient of the model instead: softmax does not
change when a constant is added to all of a query's scores, which is what an attention's key bias does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from checks import assert_paths_have_their_strength, assert_semirings_agree, autograd, parameters, relative, run
from torch import Tensor, nn

from gradtrace import Tape, Trace, record

VANISHING = {"bert.encoder.layer.0.attention.self.key.bias"}
WORDS, BATCH, TIME = 13, 2, 5

Program = Callable[[], tuple[nn.Module, Callable[[], Tensor]]]


class Mean(nn.Module):
    """A head that gives every output of the layer before it a different weight."""

    def forward(self, y: Tensor | tuple[Tensor, ...]) -> Tensor:
        y = y[0] if isinstance(y, tuple) else y
        return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sin().mean()


def _on_random_input(make: Callable[[], nn.Module], *shape: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    model, x = make().double(), torch.randn(*shape, dtype=torch.float64)
    return model, lambda: Mean()(model(x))


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.2), nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3)
    )


def _encoder(norm_first: bool, activation: str) -> nn.Module:
    return nn.TransformerEncoderLayer(
        8, 2, 12, dropout=0.1, activation=activation, norm_first=norm_first, batch_first=True
    )


def _recurrent(kind: type[nn.RNNBase]) -> nn.Module:
    return kind(4, 3, num_layers=2, bidirectional=True, dropout=0.3, batch_first=kind is not nn.GRU)


def _words(model: nn.Module) -> tuple[nn.Module, Callable[[], Tensor]]:
    ids = torch.randint(WORDS, (BATCH, TIME))
    ids[:, 0] = torch.arange(BATCH)
    return model, lambda: model(ids, labels=ids).loss


def _gpt2() -> tuple[nn.Module, Callable[[], Tensor]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=WORDS, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).double()
    assert config.use_cache
    assert model.lm_head.weight is model.transformer.wte.weight
    return _words(model)


def _bert() -> tuple[nn.Module, Callable[[], Tensor]]:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12
    )
    model = BertForMaskedLM(config).double()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    return _words(model)


def _llama() -> tuple[nn.Module, Callable[[], Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=8, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        tie_word_embeddings=True,
    )  # fmt: skip
    return _words(LlamaForCausalLM(config).double())


# (program, tolerance): GPT-2 and Llama cast to float32 inside, and autograd's own rounding in Llama's norm is 2e-7
MODELS: dict[str, tuple[Program, float]] = {
    "mlp": (partial(_on_random_input, _mlp, 5, 4), 1e-10),
    **{
        kind.__name__: (partial(_on_random_input, partial(_recurrent, kind), BATCH, TIME, 4), 1e-10)
        for kind in (nn.RNN, nn.LSTM, nn.GRU)
    },
    **{
        f"encoder-{'pre' if first else 'post'}-{activation}": (
            partial(_on_random_input, partial(_encoder, first, activation), BATCH, TIME, 8),
            1e-10,
        )
        for first in (True, False)
        for activation in ("relu", "gelu")
    },
    "gpt2": (_gpt2, 1e-7),
    "bert": (_bert, 1e-10),
    "llama": (_llama, 3e-7),
}


@dataclass(frozen=True)
class Recorded:
    model: nn.Module
    tape: Tape
    loss: Tensor
    trace: Trace
    tolerance: float


@cache
def traced(name: str) -> Recorded:
    """Record a model in training mode; the trace is certified. One recording serves all tests."""
    build, tolerance = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, program = build()
        with record(model.train()) as tape:
            loss = program()
    return Recorded(model, tape, loss, tape.trace(loss, check=True), tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_sum_is_autograds_gradient_for_every_parameter(name):
    run_ = traced(name)
    leaves = parameters(run_.model)
    ours, expected = run(run_.tape, run_.loss, leaves), autograd(run_.loss, leaves)
    largest = max(float(g.abs().max()) for g in expected.values())
    for parameter in leaves:
        if parameter in VANISHING:
            assert float(expected[parameter].abs().max()) < 1e-13 * largest, f"{parameter} does not vanish"
            assert float((ours[parameter] - expected[parameter]).abs().max()) < 1e-13 * largest
        else:
            assert relative(ours[parameter], expected[parameter]) <= run_.tolerance, parameter


@pytest.mark.parametrize("name", MODELS)
def test_every_trace_certifies_itself(name):
    certificate = traced(name).trace.certificate
    assert certificate is not None
    assert certificate.leaves == len(parameters(traced(name).model))
    assert certificate.difference <= certificate.tolerance


@pytest.mark.parametrize("name", MODELS)
def test_semirings_agree_with_one_another(name):
    run_ = traced(name)
    assert_semirings_agree(run_.tape, run_.loss, parameters(run_.model))


@pytest.mark.parametrize("name", MODELS)
def test_the_best_paths_product_of_local_derivatives_is_the_strength(name):
    run_ = traced(name)
    paths = assert_paths_have_their_strength(run_.trace, parameters(run_.model), 1)
    assert len(paths) > len(parameters(run_.model)) / 2
    for path in paths:
        assert path.kind == "best"
        assert path.steps[-1].index == ()


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_recurrent_layers_are_recorded_as_their_gates(name):
    operators = {call.base for call in traced(name).tape.calls}
    assert "tanh" in operators
    assert not operators & {"lstm", "gru", "rnn_tanh", "mkldnn_rnn_layer", "_thnn_fused_lstm_cell"}


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "encoder-pre-relu"])
def test_attention_is_recorded_as_matmul_softmax_matmul(name):
    operators = {call.base for call in traced(name).tape.calls}
    assert "bmm" in operators
    assert operators & {"_softmax", "_safe_softmax"}
    assert not any("attention" in o for o in operators)


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_tied_embeddings_are_one_leaf_with_two_names(name):
    run_ = traced(name)
    names = dict(run_.model.named_parameters(remove_duplicate=False))
    aliases = set(names) - set(parameters(run_.model))
    assert aliases
    for alias in aliases:
        (real,) = [n for n in parameters(run_.model) if names[n] is names[alias]]
        assert torch.equal(run_.trace.strength[alias], run_.trace.strength[real])
        assert run_.trace.strength[real].isfinite().any()


def test_the_default_key_value_cache_concatenates_an_empty_tensor():
    cats = [c for c in traced("gpt2").tape.calls if c.base == "cat" and any(i.shape == (0,) for i in c.inputs)]
    assert cats


def test_cross_entropy_of_a_float32_model_is_traced_in_wide_exponents():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with record(model) as tape:
        loss = F.cross_entropy(model(x) * 1e-30, torch.zeros(5, dtype=torch.long)) * 1e-30
    trace = tape.trace(loss)
    assert run(tape, loss, parameters(model))["0.weight"].abs().max() == 0  # float32 underflows
    assert trace.strength["0.weight"].isfinite().all()
    assert_paths_have_their_strength(trace, parameters(model))
