"""Windows, steps and evaluation."""

import math
from itertools import pairwise

import pytest
import torch

from gradtrace.experiments.competition import Competition, next_word_loss
from gradtrace.experiments.training import (
    held_out_windows,
    perplexity,
    training_step,
    training_window,
)


def test_windows_are_consecutive_words_of_each_stream():
    text = torch.arange(103)
    inputs, targets = training_window(text, 0, batch=4, bptt=5, seed=1)
    assert torch.equal(targets, inputs + 1)
    assert inputs[:, 1:].sub(inputs[:, :-1]).eq(1).all()
    assert (inputs // 25).eq(torch.arange(4)[:, None]).all()  # row b stays in stream b of 25 words


def test_windows_follow_each_other_and_the_next_pass_begins_elsewhere():
    text = torch.arange(400)
    starts = [int(training_window(text, s, batch=2, bptt=10, seed=1)[0][0, 0]) for s in range(19 * 8)]
    passes = [starts[i : i + 19] for i in range(0, len(starts), 19)]
    for one in passes:
        assert [b - a for a, b in pairwise(one)] == [10] * 18
    assert len({one[0] for one in passes}) > 1
    assert all(0 <= one[0] < 10 for one in passes)


@pytest.mark.parametrize("words", range(24, 80))
def test_no_window_runs_over_the_end(words):
    text = torch.arange(words)
    for step in range(12):
        inputs, targets = training_window(text, step, batch=4, bptt=5, seed=7)
        assert inputs.shape == targets.shape == (4, 5)
        assert torch.equal(targets, inputs + 1)


def test_window_depends_on_seed_and_step_alone():
    text = torch.arange(500)
    a = [training_window(text, s, 2, 7, seed=5)[0].tolist() for s in range(80)]
    b = [training_window(text, s, 2, 7, seed=5)[0].tolist() for s in reversed(range(80))]
    assert a == b[::-1]
    assert a != [training_window(text, s, 2, 7, seed=6)[0].tolist() for s in range(80)]


def test_held_out_windows_cover_the_text_without_overlap():
    inputs, targets = held_out_windows(torch.arange(23), 5)
    assert inputs.flatten().tolist() == list(range(20))
    assert targets.flatten().tolist() == list(range(1, 21))


def test_training_learns_a_regular_text():
    text = torch.arange(5).repeat(200)
    model = Competition(("rnn", "lstm", "gru"), 5, 16, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = next_word_loss(model, *held_out_windows(text, 10)).item()
    for step in range(60):
        training_step(model, optimizer, next_word_loss(model, *training_window(text, step, 4, 10, 1)))
    assert next_word_loss(model, *held_out_windows(text, 10)).item() < 0.2 < before


def test_training_step_clips_the_gradient():
    model = Competition(("rnn",), 5, 4, 1)
    with torch.no_grad():
        model.output.weight.mul_(1000)
    before = [p.clone() for p in model.parameters()]
    ids = torch.tensor([[0, 1, 2, 3]])
    training_step(model, torch.optim.SGD(model.parameters(), lr=1.0), next_word_loss(model, ids, ids))
    moved = sum((p - q).square().sum().item() for p, q in zip(model.parameters(), before, strict=True))
    assert math.sqrt(moved) == pytest.approx(1, abs=0.01)


def test_perplexity():
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(1e6) == math.inf
