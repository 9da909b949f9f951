"""The model in which components compete."""

import pytest
import torch
import torch.nn.functional as F

import gradtrace
from gradtrace.experiments.competition import Competition, next_word_loss
from gradtrace.experiments.components import COMPONENTS
from gradtrace.experiments.layers import CausalAttention, positions

ALL = ("rnn", "lstm", "gru", "attention")


def make(components=ALL, seed=3, hidden=8):
    return Competition(components, 20, hidden, seed)


def words(rows=3, time=6):
    return torch.randint(20, (rows, time), generator=torch.Generator().manual_seed(0))


def test_output_is_the_average_of_the_components():
    model, ids = make(), words()
    x = model.embedding.weight[ids]
    outs = [model.rnn(x)[0], model.lstm(x)[0], model.gru(x)[0], model.attention(x)]
    expected = F.linear(torch.stack(outs).mean(0), model.output.weight, model.output.bias)
    torch.testing.assert_close(model(ids), expected)


def test_components_are_the_registered_modules():
    kinds = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "attention": CausalAttention}
    assert set(kinds) <= set(COMPONENTS)
    for name, kind in kinds.items():
        assert type(getattr(make(), name)) is kind


@pytest.mark.parametrize("without", ALL)
def test_removing_a_component_leaves_all_other_initial_weights(without):
    full = dict(make().named_parameters())
    rest = dict(make([n for n in ALL if n != without]).named_parameters())
    assert set(full) - set(rest) == {n for n in full if n.startswith(f"{without}.")}
    for name, parameter in rest.items():
        assert torch.equal(parameter, full[name]), name


def test_order_of_components_does_not_matter_to_their_weights_and_the_seed_does():
    one, other = make(("rnn", "gru")), make(("gru", "rnn"))
    assert torch.equal(one.gru.weight_hh_l0, other.gru.weight_hh_l0)
    assert not torch.equal(make(seed=3).rnn.weight_hh_l0, make(seed=4).rnn.weight_hh_l0)


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    make()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ALL)
def test_no_component_looks_ahead(name):
    model, ids = make((name,)), words()
    changed = ids.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 20
    torch.testing.assert_close(model(ids)[:, :4], model(changed)[:, :4])
    assert not torch.allclose(model(ids)[:, 4:], model(changed)[:, 4:])


def test_attention_tells_positions_apart():
    attention = CausalAttention(8)
    same = torch.ones(1, 5, 8)
    out = attention(same)[0]
    assert not torch.allclose(out[1], out[4])


@pytest.mark.parametrize("hidden", [1, 5, 8, 13])
def test_attention_at_any_width(hidden):
    assert CausalAttention(hidden)(torch.randn(2, 4, hidden)).shape == (2, 4, hidden)
    assert positions(4, hidden).shape == (4, hidden)


def test_loss_is_the_mean_negative_log_probability():
    model, ids = make(), words()
    log_p = model(ids).log_softmax(-1)
    expected = -torch.stack([log_p[b, t, ids[b, t]] for b in range(3) for t in range(6)]).mean()
    torch.testing.assert_close(next_word_loss(model, ids, ids), expected)


def test_a_batch_gives_for_every_example_what_it_gives_alone():
    model = make().double()
    ids = words(rows=4)
    targets = ids.roll(-1, 1)
    together = influence(model, ids, targets).by_example
    assert len(together) == 4
    for b in range(4):
        alone = influence(model, ids[b : b + 1], targets[b : b + 1]).rows
        for row, expected in zip(together[b], alone, strict=True):
            assert row.share == expected.share
            assert row.weighted_share == pytest.approx(expected.weighted_share, rel=1e-9)
            assert row.dead_share == expected.dead_share


def influence(model, ids, targets):
    with gradtrace.record(model, examples=(ids, targets)) as tape:
        loss = next_word_loss(model, ids, targets)
    return tape.trace(loss, check=True).influence(ALL, of="embedding*", per_example=True)
