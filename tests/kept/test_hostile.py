"""Files that are damaged, cut off, of another version or malicious are refused in one line, or answer; nothing else."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

import gradtrace
from gradtrace import GradtraceError
from gradtrace.errors import BadTrace
from gradtrace.kept.blobs import ABOUT, KINDS, SCHEMA, _sum
from gradtrace.kernels import native
from gradtrace.report.document import of_trace
from gradtrace.report.snapshot import Question

WORDS = torch.tensor([[0, 3, 1], [2, 2, 4]])


class Small(nn.Module):
    """Rows that are read, a product at every step, a softmax, a transposition, a window."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell, self.out = nn.Embedding(6, 4), nn.RNN(4, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        h, _ = self.cell(self.embedding(words))
        mixed = torch.softmax(h @ h.transpose(1, 2), -1) @ h
        return self.out(mixed.relu())[:, 1:].sum()


def written(folder: Path, kernels: str = "native") -> Path:
    torch.manual_seed(1)
    model = Small()
    with native.using(kernels), gradtrace.record(model, examples=WORDS) as tape:
        loss = model(WORDS)
        return tape.trace(loss).save(folder / "trace.gradtrace")


@pytest.fixture(scope="module", params=["native", "reference"])
def file(request, tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp(request.param), request.param)


def contents(file: Path) -> tuple[dict[str, np.ndarray], Any]:
    with safe_open(file, framework="np") as given:
        arrays = {name: given.get_tensor(name) for name in given.keys()}  # noqa: SIM118
    return arrays, json.loads(arrays[ABOUT].tobytes())


def forged(path: Path, arrays: dict[str, np.ndarray], about: Any, schema: str = SCHEMA) -> Path:
    """Write a file whose sum is right, whatever is in it."""
    arrays = arrays | {ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8).copy()}
    save_file(arrays, path, metadata={schema: _sum(arrays)})
    return path


def refused(path: Path) -> str:
    with pytest.raises(BadTrace) as error:
        gradtrace.load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def refused_or_answers(path: Path) -> bool:
    """Load a file and ask it everything; tell whether it was refused."""
    trace = one_line(lambda: gradtrace.load(path))
    if trace is None:
        return True
    operators = sorted({c.name.replace("aten.", "aten::").rsplit(".", 1)[0] for c in trace.tape.calls})
    for kind, apart in trace.has:
        one_line(lambda k=kind, a=apart: trace.influence(kind=k, per_example=a))
        one_line(lambda k=kind, a=apart: trace.influence(operators, kind=k, per_example=a))
        one_line(lambda k=kind: [trace.flow(kind=k, weighted=w) for w in (False, True)])
        for name, leaf in trace.tape.leaves.items():
            one_line(lambda k=kind, n=name, s=leaf.shape: trace.path(n, tuple(i - 1 for i in s), kind=k))
    one_line(lambda: of_trace(trace, Question()))
    return False


def one_line(ask: Callable[[], Any]) -> Any:
    """Ask; an error of gradtrace's is one line, and there is no other."""
    try:
        return ask()
    except GradtraceError as error:
        said = str(error)
    assert "\n" not in said
    return None


@pytest.mark.parametrize("examples", [100, pytest.param(600, marks=pytest.mark.full)])
def test_flipped_bytes_are_refused(file, examples):
    @settings(max_examples=examples, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        whole = file.read_bytes()
        damaged = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        path = file.with_name("flipped")
        path.write_bytes(damaged)
        if one_line(lambda: gradtrace.load(path)) is not None:  # one blank in the header for another
            assert repr(contents(path)) == repr(contents(file))

    check()


@pytest.mark.parametrize("examples", [20, pytest.param(100, marks=pytest.mark.full)])
def test_files_that_are_cut_off_or_go_on_are_refused(file, examples):
    @settings(max_examples=examples, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        whole, path = file.read_bytes(), file.with_name("cut")
        path.write_bytes(
            whole[: data.draw(st.integers(0, len(whole) - 1))] + data.draw(st.sampled_from([b"", b"\0" * 9]))
        )
        refused(path)
        path.write_bytes(whole + data.draw(st.binary(min_size=1, max_size=20)))
        refused(path)

    check()


NUMBERS = st.one_of(st.integers(-3, 60), st.sampled_from([1 << 31, 1 << 34, 1 << 62, 1 << 63, 1 << 70, -(1 << 40)]))
# A new one each time: one may be planted into another.
EMPTY = st.one_of(st.builds(list), st.builds(dict), st.builds(lambda: [[]]))
PLANTED = st.one_of(NUMBERS, st.floats(), st.booleans(), st.none(), st.text(max_size=3), EMPTY)


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a JSON text something else could stand."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [p for key, value in inner for p in ((*path, key), *places(value, (*path, key)))]


@pytest.mark.parametrize("examples", [60, pytest.param(400, marks=pytest.mark.full)])
def test_something_else_anywhere_in_the_text(file, examples):
    @settings(max_examples=examples, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        arrays, about = contents(file)
        where = places(about)
        for _ in range(data.draw(st.integers(1, 3))):
            *above, last = data.draw(st.sampled_from(where))
            inside = about
            try:
                for key in above:
                    inside = inside[key]
                inside[last] = data.draw(PLANTED)
            except (KeyError, IndexError, TypeError):  # what was planted before has taken its place
                continue
        refused_or_answers(forged(file.with_name("forged"), arrays, about))

    check()


@pytest.mark.parametrize("examples", [60, pytest.param(400, marks=pytest.mark.full)])
def test_other_numbers_anywhere_in_the_arrays(file, examples):
    @settings(max_examples=examples, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        arrays, about = contents(file)
        for _ in range(data.draw(st.integers(1, 6))):
            name = data.draw(st.sampled_from(sorted({*arrays} - {ABOUT})))
            array = arrays[name] = arrays[name].copy()
            at = data.draw(st.integers(0, len(array) - 1))
            if array.dtype.kind == "f":
                array[at] = data.draw(st.floats(width=32))
            else:
                array[at] = data.draw(st.integers(np.iinfo(array.dtype).min, np.iinfo(array.dtype).max))
        refused_or_answers(forged(file.with_name("forged"), arrays, about))

    check()


def entry(about: Any, forest: int = 0) -> list[dict[str, Any]]:
    return about["forests"][forest]["values"]


def _cycle(arrays: Any, about: Any) -> None:
    """A call takes its own result."""
    call = next(c for c in about["calls"] if c[5] and c[6])
    call[5][0] = call[6][0]


def _back(arrays: Any, about: Any) -> None:
    """A value's winner is an edge of the call that made it."""
    made = {c[6][0]: n for n, c in enumerate(about["calls"]) if c[6]}
    given = next(v for v in entry(about) if v["value"] in made and v.get("edges"))
    given["edges"][0][0] = made[given["value"]]


def _large(arrays: Any, about: Any) -> None:
    about["values"][about["leaves"][0][1]][0] = [1 << 20, 1 << 13]


def _many(arrays: Any, about: Any) -> None:
    about["values"][about["leaves"][0][1]][0] = [1 << 60]


def _crowd(arrays: Any, about: Any) -> None:
    about["examples"] = 1 << 33
    for forest in about["forests"]:
        if forest["labels"] is not None:
            forest["labels"]["count"] = 1 << 33


def _ones(arrays: Any, about: Any) -> None:
    """All scalars of a large parameter have a path, and one derivative."""
    found = entry(about)[0]
    about["values"][found["value"]][0] = [1 << 33]
    found |= {"kept": None, "derivative": ["=", 1.0, 1 << 33], "weight": ["=", 1.0, 1 << 33]}


def _ways(arrays: Any, about: Any) -> None:
    for found in entry(about):
        for edge in found.get("edges", ()):
            edge[4] = ["affine", [1 << 30], [1], 1 << 39, 0, None]


def _deep(arrays: Any, about: Any) -> None:
    way: Any = ["raw"]
    for _ in range(500):
        way = ["composed", way, ["raw"], None]
    next(v for v in entry(about) if v.get("edges"))["edges"][0][4] = way


@pytest.mark.parametrize("change", [_cycle, _large, _many, _crowd, _ones])
def test_malicious_files_are_refused(change: Callable[[Any, Any], None], file):
    arrays, about = contents(file)
    change(arrays, about)
    refused(forged(file.with_name("forged"), arrays, about))


@pytest.mark.parametrize("change", [_back, _ways, _deep])
def test_malicious_ways_are_refused(change, tmp_path):
    arrays, about = contents(written(tmp_path))
    change(arrays, about)
    refused(forged(tmp_path / "forged", arrays, about))


def test_names_are_names(tmp_path):
    """No file that a name in it points to is opened; nothing is written."""
    arrays, about = contents(written(tmp_path))
    about["texts"] = [t if t.startswith("aten") else f"../../../etc/passwd{n}" for n, t in enumerate(about["texts"])]
    before = sorted(tmp_path.iterdir())
    path = forged(tmp_path / "forged", arrays, about)
    refused_or_answers(path)
    assert sorted(tmp_path.iterdir()) == sorted([*before, path])


def test_other_files_are_refused(file, tmp_path):
    arrays, about = contents(file)
    assert "schema 'gradtrace.trace/2', and this version reads" in refused(
        forged(tmp_path / "later", arrays, about, "gradtrace.trace/2")
    )
    other = {
        "pickle": pickle.dumps([1]),
        "text": b"hello",
        "empty": b"",
        "header": struct.pack("<Q", 1 << 62) + b"{}",
        "long": struct.pack("<Q", 90_000_000) + b"{" + b" " * 1000,
        "json": struct.pack("<Q", 4) + b"[[[[",
    }
    for name, content in other.items():
        (tmp_path / name).write_bytes(content)
        assert "is not a saved trace" in refused(tmp_path / name)
    save_file({"weight": np.zeros(3)}, tmp_path / "weights")
    assert "is not a saved trace" in refused(tmp_path / "weights")
    save_file({ABOUT: np.zeros(3, np.float32)}, tmp_path / "dtype", metadata={SCHEMA: ""})
    assert "holds float32" in refused(tmp_path / "dtype")
    save_file({kind: np.zeros(3, dtype) for kind, dtype in KINDS.items()}, tmp_path / "none", {SCHEMA: ""})
    refused(tmp_path / "none")
    assert "there is no such file" in refused(tmp_path / "nowhere")
    assert "Is a directory" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "there is no such file" in refused(tmp_path / "pipe")


def test_text_nested_too_deeply_is_refused(file):
    arrays, _ = contents(file)
    arrays[ABOUT] = np.frombuffer(b"[" * 200_000, np.uint8).copy()
    path = file.with_name("deep")
    save_file(arrays, path, metadata={SCHEMA: _sum(arrays)})
    refused(path)
