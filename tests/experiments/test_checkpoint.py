"""Files that are whole or not there."""

import json
import math

import pytest
import torch

from gradtrace.errors import OptionError
from gradtrace.experiments.checkpoint import load, restore, save, write_json, write_whole
from gradtrace.experiments.competition import Competition, next_word_loss
from gradtrace.experiments.folder import prepare_folder
from gradtrace.experiments.training import training_step, training_window

TEXT = torch.randint(9, (400,), generator=torch.Generator().manual_seed(0))


def begin():
    model = Competition(("lstm", "gru"), 9, 4, 1)
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def train(model, optimizer, first, last):
    for step in range(first, last):
        training_step(model, optimizer, next_word_loss(model, *training_window(TEXT, step, 3, 5, 1)))


def test_restored_training_goes_on_to_the_same_weights(tmp_path):
    model, optimizer = begin()
    train(model, optimizer, 0, 4)
    torch.manual_seed(5)
    save(tmp_path / "c", model, optimizer, {"step": 4, "numbers": [0.1, math.inf]})
    random = torch.rand(3)
    train(model, optimizer, 4, 9)

    other, its_optimizer = begin()
    found = load(tmp_path / "c")
    assert found is not None
    assert found.state == {"step": 4, "numbers": [0.1, math.inf]}
    restore(found, other, its_optimizer)
    assert torch.equal(random, torch.rand(3))
    train(other, its_optimizer, 4, 9)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoint_before_the_first_step_has_no_optimizer_state(tmp_path):
    model, optimizer = begin()
    save(tmp_path / "c", model, optimizer, {})
    other, its_optimizer = begin()
    found = load(tmp_path / "c")
    assert found is not None
    restore(found, other, its_optimizer)
    assert not its_optimizer.state


def test_no_checkpoint_and_something_else_in_its_place(tmp_path):
    assert load(tmp_path / "c") is None
    for content in (b"", b"not safetensors", b"\x02\0\0\0\0\0\0\0{}"):
        (tmp_path / "c").write_bytes(content)
        with pytest.raises(OptionError, match="is not a checkpoint"):
            load(tmp_path / "c")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(beside):
        beside.write_text("half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert path.read_text() == "old"
    write_whole(path, lambda beside: beside.write_text("new"))
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_json_has_null_for_what_is_not_finite(tmp_path):
    write_json(tmp_path / "j", {"a": [math.nan, 1.5, (math.inf,)], "b": "ℓ"})
    text = (tmp_path / "j").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, 1.5, [None]], "b": "ℓ"}


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OptionError, match="cannot write to the folder"):
            prepare_folder(folder)
    prepare_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
