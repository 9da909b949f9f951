"""What questions cost, before they are asked: against what they take, and what is refused."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from programs import programs
from torch import Tensor, nn

import gradtrace
from gradtrace import Entropy, Graded, Power, Sum, Through, TopK
from gradtrace.cli import main
from gradtrace.errors import NotEnoughMemory, NotKept
from gradtrace.kernels import available as memory
from gradtrace.queries import estimate as estimates
from gradtrace.queries.costs import BYTES, SECONDS
from gradtrace.queries.estimate import QUESTIONS, bytes_of, key_of
from gradtrace.queries.sizes import Sizes, at_most, sizes


def recorded(model: nn.Module, x: Tensor) -> tuple[gradtrace.Tape, Tensor]:
    with gradtrace.record(model, examples=x) as tape:
        loss = model(x).square().mean()
    return tape, loss


def mlp(width: int, depth: int) -> nn.Module:
    return nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(width, width), nn.Tanh())])


def test_sizes_are_those_of_the_tape():
    tape, loss = recorded(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3))
    found = sizes(tape.record, tape.value_of(loss))
    assert (found.width, found.examples) == (4, 5)
    assert found.leaves == found.each == 3 * 4 + 4 + 4 * 2 + 2
    assert found.products == 5 * 3 * 4 + 5 * 4 * 2
    assert found.values == 5 * 4 + 5 * 4 + 5 * 2 + 5 * 2 + 1  # two products, ReLU, square, mean
    assert found.largest == 20
    assert found.chosen == found.leaves + 5 * 4  # of the products' arguments
    assert found.live == 40  # the ReLU's argument and its result


def assert_at_most(tape: gradtrace.Tape, loss: Tensor) -> None:
    value, leaves = tape.value_of(loss), [*tape.record.leaves.values()]
    most = dataclasses.asdict(at_most(tape.record, value))
    for asked in (None, leaves[:1], leaves[1:]):
        found = dataclasses.asdict(sizes(tape.record, value, asked))
        timed = "products", "convolutions", "rows", "scalars", "uses"
        assert all(found[what] <= most[what] for what in found if what not in timed)
        assert all(bytes_of(q, Sizes(**found)) <= bytes_of(q, Sizes(**most)) for q in QUESTIONS)


@settings(max_examples=60, deadline=None)
@given(programs(False))
def test_what_sizes_are_at_most_is_no_less_than_they_are_of_programs(program):
    leaves = program.leaves()
    with gradtrace.record(names=leaves, examples=None) as tape:
        loss = program.run(leaves)
    assume(loss.requires_grad)
    assert_at_most(tape, loss)


def test_what_sizes_are_at_most_is_no_less_than_they_are_of_models():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 5), nn.Flatten()
    assert_at_most(*recorded(nn.Sequential(*layers), torch.randn(2, 3, 8, 8)))
    assert_at_most(*recorded(mlp(16, 3), torch.randn(4, 16)))
    words = nn.Embedding(50, 8)
    recurrent = nn.GRU(8, 8, batch_first=True)
    with gradtrace.record(nn.ModuleList([words, recurrent])) as tape:
        loss = recurrent(words(torch.arange(12).reshape(2, 6)))[0].sum()
    assert_at_most(tape, loss)


def test_sizes_of_a_group_leave_out_what_comes_before_it():
    tape, loss = recorded(mlp(3, 2), torch.randn(5, 3))
    last = sizes(tape.record, tape.value_of(loss), [tape.leaves["2.weight"]])
    assert last.leaves == 9
    assert last.products == 5 * 3 * 3
    assert last.calls < sizes(tape.record, tape.value_of(loss)).calls


def test_weights_that_are_made_of_leaves_are_each_examples_own():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.s = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.w * self.s)

    tape, loss = recorded(Scaled(), torch.randn(5, 3))
    found = sizes(tape.record, tape.value_of(loss))
    assert (found.leaves, found.each, found.uses) == (10, 19, 19)


def test_of_an_embedding_only_what_is_read_is_held():
    net = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(8, 2))
    tape, loss = recorded(net, torch.arange(20).reshape(5, 4))
    found = sizes(tape.record, tape.value_of(loss))
    assert found.leaves == 20 * 8 + 18
    assert found.each == 4 * 8 + 18


def test_there_are_constants_for_every_question_and_semiring():
    semirings = {"sum", "abssum", "power", "max", "count", "entropy", "topk", "signedmax", "through", "graded"}
    assert set(SECONDS) == set(BYTES) == set(QUESTIONS) | semirings
    assert all(number >= 0 for row in (*SECONDS.values(), *BYTES.values()) for number in row)


def test_what_semirings_cost_as():
    assert [key_of(k, 3) for k in (Sum, Entropy, Power(3), TopK(5), Through(), Through(["a"]))] == [
        ("sum", 1), ("entropy", 1), ("power", 1), ("topk", 5), ("through", 4), ("through", 2),
    ]  # fmt: skip
    assert key_of(Graded(4), 3) == ("graded", 6)
    assert key_of(Graded(), 3) == ("graded", 5)
    assert key_of(Graded(2, semiring=Entropy), 3) is None


def test_it_is_right_within_a_factor_of_two_where_it_can_be_measured():
    """More is in benchmarks/estimate.py; here what surely is held, leaves for each example, and CPU time of a trace."""
    net, x = mlp(256, 3), torch.randn(64, 256)
    tape, loss = recorded(net, x)
    found = tape.estimate(loss)
    assert {row.question for row in found.rows} >= {*QUESTIONS, "grad, sum", "grad, topk:8", "grad, graded:4"}
    planes = 64 * sum(p.numel() for p in net.parameters()) * 4
    assert planes / 2 <= found["each example"].bytes <= 4 * planes
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        said = estimates.seconds_of("trace", tape._size(tape.value_of(loss)), estimates.calibrated(1))
        taken = []
        for _ in range(5):
            tape, loss = recorded(net, x)
            began = time.process_time()
            tape.trace(loss)
            taken.append(time.process_time() - began)
    finally:
        torch.set_num_threads(threads)
    assert min(taken) / 4 <= said <= 4 * min(taken)


def test_calibration_is_done_once_and_takes_no_second(monkeypatch):
    estimates.calibrated.cache_clear()
    began = time.process_time()
    first = estimates.calibrated(1)
    assert time.process_time() - began < 1.0
    assert estimates.calibrated(1) is first


def test_without_examples_there_are_no_questions_about_them():
    net = mlp(3, 1)
    with gradtrace.record(net) as tape:
        loss = net(torch.randn(2, 3)).sum()
    rows = tape.estimate(loss, semirings=()).rows
    assert [row.question for row in rows] == ["trace", "check", "greedy", "influence", "flow", "report"]


def test_it_prints_and_gives_a_dataframe():
    tape, loss = recorded(mlp(3, 1), torch.randn(2, 3))
    found = tape.estimate(loss, semirings=["entropy"])
    assert max(map(len, str(found).splitlines())) <= 80
    assert "grad, entropy" in str(found)
    assert list(found.to_dataframe().columns) == ["question", "seconds", "bytes", "fits"]
    assert found["trace"].fits


def room(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(estimates, "available", lambda: size)


def large() -> tuple[gradtrace.Tape, Tensor]:
    """A parameter of 10^12 scalars, which takes no memory until somebody asks."""
    w = torch.zeros(1).expand(1_000_000, 1_000_000).requires_grad_()
    with gradtrace.record(names={"w": w}) as tape:
        loss = w.t()[0].sum()
    return tape, loss


def test_what_cannot_fit_is_refused_before_it_starts(monkeypatch):
    tape, loss = large()
    room(monkeypatch, 2**33)
    began = time.process_time()
    for ask in (
        lambda: tape.trace(loss),
        lambda: tape.trace(loss, check=True),
        lambda: tape.grad(loss, ["w"]),
        lambda: tape.grad(loss, ["w"], "entropy"),
    ):
        with pytest.raises(NotEnoughMemory, match=r"of memory, and 8\.0 GiB can be had"):
            ask()
    assert time.process_time() - began < 1.0
    assert not tape.estimate(loss)["trace"].fits


def refusal(question: str, of: Sizes) -> NotEnoughMemory | None:
    try:
        estimates.refuse(question, of)
    except NotEnoughMemory as error:
        return error
    return None


def offered(error: NotEnoughMemory) -> tuple[int, int]:
    """How many examples would fit, and of how many, by the message."""
    found = re.findall(r"(\d+) of its (\d+) examples would fit", str(error))
    return (int(found[0][0]), int(found[0][1])) if found else (0, 0)


def test_it_says_how_many_examples_and_which_group_would_fit(monkeypatch):
    net, x = mlp(512, 2), torch.randn(64, 512)
    tape, loss = recorded(net, x)
    trace = tape.trace(loss)
    need = bytes_of("each example", tape._size(trace.root))
    monkeypatch.setattr(estimates, "SMALL", 0)
    room(monkeypatch, int(need / 3))
    with pytest.raises(NotEnoughMemory) as told:
        trace.influence(per_example=True)
    examples, _ = offered(told.value)
    (scalars,) = re.findall(r"at most ([\d,]+) of its 525,312 parameter scalars", str(told.value))
    assert 10 <= examples < 32
    assert 50_000 < int(scalars.replace(",", "")) < 525_312
    small, fits = recorded(net, x[:examples])
    small.trace(fits).influence(per_example=True)
    room(monkeypatch, int(need / 4))
    assert trace.influence(of="0.bias", per_example=True).rows
    with pytest.raises(NotEnoughMemory):
        trace.report("never.html")


def test_a_summary_counts_the_batch_where_a_file_keeps_no_example(tmp_path):
    net, x = mlp(8, 2), torch.randn(4, 8)
    tape, loss = recorded(net, x)
    kept = gradtrace.load(tape.trace(loss).save(tmp_path / "trace.gradtrace", per_example=False))
    assert kept.summary().early.examples == 1
    with pytest.raises(NotKept):
        kept.summary(per_example=True)


def test_a_summary_counts_the_batch_where_there_is_no_room_for_each_example(monkeypatch):
    net, x = mlp(8, 2), torch.randn(4, 8)
    tape, loss = recorded(net, x)
    trace = tape.trace(loss)

    def refuse(question: str, *_: object) -> None:
        if question.endswith("each example"):
            raise NotEnoughMemory("too little")

    monkeypatch.setattr("gradtrace.api.is_small", lambda *_: False)
    monkeypatch.setattr("gradtrace.api.refuse", refuse)
    assert trace.summary().early.examples == 1
    with pytest.raises(NotEnoughMemory):
        trace.summary(per_example=True)
    monkeypatch.undo()
    assert trace.summary().early.examples == 4


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 10**11))
def test_nothing_is_refused_that_fits_by_its_estimate_and_what_is_offered_fits(examples, leaves, values, had):
    of = Sizes(4, examples, 10, leaves=float(leaves), each=float(leaves), values=float(values), chosen=float(leaves))
    with pytest.MonkeyPatch.context() as patch:
        room(patch, had)
        for question in QUESTIONS:
            error = refusal(question, of)
            if error is not None:
                assert bytes_of(question, of) > had * estimates.OFTEN
                fewer, most = offered(error)
                assert not fewer or most == examples > fewer
                assert not fewer or bytes_of(question, estimates._of_examples(of, fewer)) <= had


LIMITED = """
import resource, torch, gradtrace
from torch import nn
net, x = nn.Sequential(nn.Linear(1000, 1000), nn.Tanh(), nn.Linear(1000, 1000)), torch.randn({examples}, 1000)
with gradtrace.record(net, examples=x) as tape:
    loss = net(x).square().mean()
trace = tape.trace(loss)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**28, resource.RLIM_INFINITY))
try:
    trace.forest(per_example=True)
    print("done")
except gradtrace.GradtraceError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
@pytest.mark.parametrize(("examples", "said"), [(300, "NotEnoughMemory"), (8, "done")])
def test_under_a_real_limit_of_the_process(examples, said):
    """Of 768 MiB, 300 examples of two million parameters, four bytes each, take thrice as much; eight do not."""
    run = subprocess.run(
        [sys.executable, "-c", LIMITED.format(examples=examples)], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith(said), run.stdout + run.stderr


@pytest.mark.parametrize("second", [True, False])
def test_the_least_limit_of_the_groups_around_a_process_counts(tmp_path, monkeypatch, second):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/outer/inner\n" if second else "5:cpu:/\n4:memory:/outer/inner\n0::/\n")
    limit, used, cache = memory.NAMES[second]
    root = groups if second else groups / "memory"
    for folder, most in (
        (root / "outer" / "inner", "max" if second else "9223372036854771712"),
        (root / "outer", "5000"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(most + "\n")
        (folder / used).write_text("3000\n")
        (folder / "memory.stat").write_text(f"anon 1\n{cache} 700\n")
    monkeypatch.setattr(memory, "PROC", proc)
    monkeypatch.setattr(memory, "GROUPS", groups)
    monkeypatch.setattr(memory, "_of_process", lambda: iter(()))
    assert memory.available() == 5000 - 3000 + 700
    (root / "outer" / limit).write_text("1000\n")
    assert memory.available() == 0
    (root / "outer" / limit).unlink()
    assert memory.available() == 8_000_000 * 1024
    (proc / "meminfo").unlink()
    (proc / "self" / "cgroup").unlink()
    assert memory.available() is None


def test_where_the_system_does_not_say_nothing_is_refused(monkeypatch):
    tape, loss = recorded(mlp(3, 1), torch.randn(2, 3))
    monkeypatch.setattr(estimates, "SMALL", 0)
    room(monkeypatch, None)
    assert tape.trace(loss)
    assert "can be had" not in str(tape.estimate(loss))


def test_on_the_command_line(tmp_path, capsys):
    (tmp_path / "train.py").write_text(
        "import torch\ndef build():\n    net = torch.nn.Linear(3, 2)\n"
        "    return net, [torch.ones(4, 3)], lambda model, x: model(x).square().mean()\n"
    )
    out = tmp_path / "out"
    assert main(["trace", f"{tmp_path / 'train.py'}:build", "--estimate", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["question", "time", "memory"]
    assert not out.exists()
