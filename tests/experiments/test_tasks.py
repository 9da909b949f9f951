"""Tasks: what is asked agrees with definitions that are written down again here, slowly, one sequence at a time."""

import pytest
import torch

from gradtrace.errors import BadArgument
from gradtrace.experiments import sequences
from gradtrace.experiments.corpus import Text, make_corpus
from gradtrace.experiments.sequences import BASE, IGNORED, KEYS, VALUES
from gradtrace.experiments.tasks import HELD_OUT, TASKS, Generated, Streams

SYNTHETIC = [name for name, task in TASKS.items() if isinstance(task, Generated)]


def innermost(read):
    """A pushdown automaton: the bracket to be closed after each symbol, 0 where there is none."""
    stack, said = [], []
    for symbol in read:
        if symbol in (1, 2):
            stack.append(symbol)
        else:
            assert stack.pop() == symbol - 2, "closes what is not open"
        said.append(stack[-1] if stack else 0)
    return said


def word_of(read):
    """What stands before the mark."""
    return [token - 2 for token in read[: read.index(1)]]


def answered(read, answer):
    """Nothing up to the mark, then the answer while zeros are read."""
    mark = read.index(1)
    assert read[mark + 1 :] == [0] * len(answer)
    return [IGNORED] * (mark + 1) + answer


def recalled(read):
    known, said = {}, []
    for token in read:
        if token <= KEYS:
            said.append(known[token - 1])
        else:
            key, value = divmod(token - 1 - KEYS, VALUES)
            assert key not in known
            known[key] = value
            said.append(IGNORED)
    return said


def added(read):
    pairs = [divmod(token - 1, BASE) for token in read]
    a, b = (sum(pair[i] * BASE**place for place, pair in enumerate(pairs)) for i in (0, 1))
    digits, total = [], a + b
    for _ in read:
        total, digit = divmod(total, BASE)
        digits.append(digit)
    return digits


def counted(read):
    n = len(read) // 3
    word = "a" * n + "b" * n + "c" * n + "."
    assert ["?abc"[token] for token in read] == list(word[:-1])
    return [IGNORED if i < n else "bc.".index(word[i + 1]) for i in range(3 * n)]


DEFINED = {
    "copy": lambda read: answered(read, word_of(read)),
    "reversal": lambda read: answered(read, word_of(read)[::-1]),
    "recall": recalled,
    "parity": lambda read: [sum(bit == 2 for bit in read[: i + 1]) % 2 for i in range(len(read))],
    "dyck": innermost,
    "counting": counted,
    "addition": added,
}
STEPS = {
    "copy": lambda n: 2 * n + 1,
    "reversal": lambda n: 2 * n + 1,
    "recall": lambda n: 2 * n,
    "counting": lambda n: 3 * n,
}


def test_every_synthetic_task_has_a_definition_here():
    assert set(SYNTHETIC) == set(DEFINED)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_what_is_asked_is_what_the_definition_says(name):
    task = TASKS[name]
    for length in (*range(task.lengths[0], task.lengths[1] + 1), task.beyond[1]):
        batch = task.draw(torch.Generator().manual_seed(length), 40, length)
        for read, asked in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            assert len(read) == STEPS.get(name, lambda n: n)(length)
            assert asked == DEFINED[name](read)


@pytest.mark.parametrize("name", TASKS)
def test_tokens_and_classes_are_in_range_and_all_occur(name):
    task = TASKS[name]
    for batch in (task.training(0, 0, 200), task.held_out()):
        assert batch.targets[batch.targets != IGNORED].unique().tolist()[-1] < task.outputs
        if task.tokens:
            assert int(batch.inputs.min()) >= 0
            assert int(batch.inputs.max()) < task.inputs
        else:
            assert batch.inputs.shape[2] == task.inputs
    classes = task.held_out().targets.unique().tolist()
    assert name == "text" or [c for c in classes if c != IGNORED] == list(range(task.outputs))


@pytest.mark.parametrize("name", TASKS)
def test_batches_depend_on_seed_and_step_alone(name):
    task = TASKS[name]
    one, again = task.training(5, 7, 9), task.training(5, 7, 9)
    assert len(one) == 9
    assert torch.equal(one.inputs, again.inputs)
    assert torch.equal(one.targets, again.targets)
    if name != "counting":  # has one word of each length
        assert not torch.equal(one.inputs, task.training(5, 8, 9).inputs)
        assert not torch.equal(one.inputs, task.training(6, 7, 9).inputs)


def lengths_of(name, batch):
    """How long each sequence of a batch is: 0 is read where there is nothing, and every step but the first is asked."""
    ends = (batch.targets != IGNORED).int().cumsum(1).argmax(1) + 1
    return {n for n in range(1, 99) if STEPS.get(name, lambda n: n)(n) in set(ends.tolist())}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_held_out_sets_have_every_length_within_and_beyond_those_trained_on(name):
    task = TASKS[name]
    (short, long), (above, most) = task.lengths, task.beyond
    assert short <= long < above <= most
    assert lengths_of(name, task.held_out()) == set(range(short, long + 1))
    assert lengths_of(name, task.held_out(beyond=True)) == set(range(above, most + 1))
    assert len(task.held_out()) == len(task.held_out(beyond=True)) == HELD_OUT
    assert lengths_of(name, task.training(0, 0, 32)) <= set(range(short, long + 1))


def test_text_asks_for_the_next_known_word():
    task = TASKS["text"]
    words = task.corpus.training.tolist()
    text = " ".join(map(str, words))
    for batch in (task.training(1, 2, 3),):
        for read, asked in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            known = [IGNORED if word == 0 else word for word in read[1:]]
            assert asked[:-1] == known
            assert " ".join(map(str, read)) in text
    assert task.held_out(beyond=True).inputs.shape[1] == 2 * task.held_out().inputs.shape[1]


def test_digits_are_rows_of_pixels_with_their_numbers_and_none_is_in_both_parts():
    task = TASKS["digits"]
    held_out = task.held_out()
    assert held_out.inputs.shape == (449, 8, 16)
    assert torch.equal(held_out.inputs[3, :, 8:], torch.eye(8))
    assert 0 <= held_out.inputs.min() < held_out.inputs.max() <= 1
    seen = {row.numpy().tobytes() for step in range(30) for row in task.training(0, step, 100).inputs}
    assert not seen & {row.numpy().tobytes() for row in held_out.inputs}
    with pytest.raises(BadArgument, match="no greater lengths"):
        task.held_out(beyond=True)


def test_digits_choose_by_the_mean_score_of_all_rows():
    task = TASKS["digits"]
    scores, batch = torch.randn(5, 8, 10), task.training(0, 0, 5)
    expected = torch.nn.functional.cross_entropy(scores.mean(1), batch.targets[:, 0])
    torch.testing.assert_close(task.loss(scores, batch), expected)
    right = (scores.mean(1).argmax(1) == batch.targets[:, 0]).float().mean().item()
    assert task.evaluate(lambda _: scores, batch).score == pytest.approx(right)


@pytest.mark.parametrize("name", TASKS)
def test_evaluation_counts_what_is_asked_one_by_one(name):
    task = TASKS[name]
    batch = task.held_out()[:70]  # more than are evaluated at once
    model = task.model(("gru",), 4, 1)
    scores = task.read(model(batch.inputs)).log_softmax(2).detach()
    asked = [(row, step) for row, step in (batch.targets != IGNORED).nonzero().tolist()]
    losses = [-float(scores[row, step, batch.targets[row, step]]) for row, step in asked]
    right = [int(scores[row, step].argmax()) == int(batch.targets[row, step]) for row, step in asked]
    found = task.evaluate(model, batch)
    assert found.loss == pytest.approx(sum(losses) / len(asked), rel=1e-4)
    assert found.score == pytest.approx(sum(right) / len(asked))


def test_a_generator_that_is_off_by_one_is_noticed():
    batch = sequences.parity(torch.Generator().manual_seed(0), 8, 6)
    wrong = (batch.targets + 1) % 2
    assert any(
        asked != DEFINED["parity"](read) for read, asked in zip(batch.inputs.tolist(), wrong.tolist(), strict=True)
    )


def test_traced_sequences_are_spread_evenly_over_the_held_out_set():
    text = Streams("", 9, 9, (5, 5), None, 1.0, corpus=make_corpus(Text("", tuple("abcd" * 280), ""), 9))
    rows = text.held_out().inputs
    assert torch.equal(text.traced(4).inputs, rows[[0, len(rows) // 4, len(rows) // 2, 3 * len(rows) // 4]])
    assert text.written(text.traced(1)) == [[text.corpus.vocabulary[i] for i in rows[0].tolist()]]
