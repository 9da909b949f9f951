"""What a monitor takes down, when, and what it does where something goes wrong."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradtrace
from gradtrace.cli import main
from gradtrace.errors import BadArgument, UnknownName
from gradtrace.monitor import Monitor
from gradtrace.monitor.clock import Clock
from gradtrace.report.document import BadResults
from gradtrace.report.history import of_history, read_history


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def run(net: nn.Module, monitor: Monitor, steps: int, first: int = 0) -> None:
    """Train on batches that depend on the number of the step alone."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for number in range(first, first + steps):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(number))
        with monitor.step(examples=x):
            loss = (net(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def without_times(lines: list[dict]) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_line_says_what_a_trace_of_the_same_step_says(tmp_path):
    net = model()
    monitor = Monitor(net, every=2, of="0.*", components=["1", "2"], kinds=("best", "greedy"), folder=tmp_path)
    x = torch.randn(6, 4)
    with gradtrace.record(net, examples=x) as tape:
        again = net(x).square().mean()
    trace = tape.trace(again)
    with monitor.step(examples=x):
        loss = net(x).square().mean()
    (line,) = monitor.history().traces
    assert line["step"] == 0
    assert line["loss"] == loss.item()
    for kind in ("best", "greedy"):
        table = trace.influence(["1", "2"], "0.*", kind=kind)
        rows = [r for r in line["influence"] if r["kind"] == kind]
        assert [(r["component"], r["share"], r["dead_share"], r["examples"]) for r in rows] == [
            (r.component, r.share, r.dead_share, r.examples) for r in table.rows
        ]
    (answer,) = line["semirings"]
    (entropy,) = tape.grad(again, ["0.weight"], "entropy")
    live = trace.strength["0.weight"] > -torch.inf
    row = next(r for r in answer["rows"] if r["parameter"] == "0.weight")
    assert row["mean"] == pytest.approx(float(entropy[live].mean()), rel=1e-5)


@pytest.mark.parametrize("name", ["monitor.Monitor", "scalar.from_tape"])
def test_rooms_that_are_imported_when_they_are_used(name):
    said = subprocess.run(
        [sys.executable, "-c", f"import gradtrace; print(gradtrace.{name}.__module__)"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said.startswith(f"gradtrace.{name.split('.')[0]}")


def test_steps_are_traced_at_the_interval(tmp_path):
    net = model()
    monitor = Monitor(net, every=7, folder=tmp_path)
    run(net, monitor, 30)
    assert [t["step"] for t in monitor.history().traces] == [0, 7, 14, 21, 28]
    frame = monitor.to_dataframe()
    assert set(frame["step"]) == {0, 7, 14, 21, 28}
    assert {"loss", "component", "kind", "share", "weighted_share", "dead_share", "examples"} <= set(frame.columns)


def test_of_forward_passes_with_one_number_the_first_is_traced():
    net = model()
    monitor = Monitor(net, every=2, folder=None)
    losses = []
    for number in (0, 0, 0, 1, 1, 1, 2, 2, 2):
        x = torch.randn(6, 4)
        with monitor.step(examples=x, number=number):
            loss = net(x).square().mean()
        losses.append(loss.item())
    assert [(t["step"], t["loss"]) for t in monitor.history().traces] == [(0, losses[0]), (2, losses[6])]


def test_the_history_is_what_the_docs_say(tmp_path):
    net = model()
    monitor = Monitor(net, every=5, folder=tmp_path)
    run(net, monitor, 6)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["kind"] for line in lines] == ["run", "graph", "trace", "trace"]
    page = (Path(__file__).parents[2] / "docs" / "history.md").read_text(encoding="utf-8")
    for line in lines:
        assert [key for key in line if f"`{key}`" not in page] == []
    assert lines[0]["schema"] == "gradtrace.history/1"
    assert lines[1]["signature"] == lines[2]["graph"] == lines[3]["graph"]


def test_a_killed_training_goes_on_to_the_history_of_one_that_was_not(tmp_path):
    straight = model()
    whole = Monitor(straight, every=4, folder=tmp_path / "whole")
    run(straight, whole, 20)

    net = model()
    first = Monitor(net, every=4, folder=tmp_path / "cut")
    run(net, first, 10)
    state, weights = first.state_dict(), {k: v.clone() for k, v in net.state_dict().items()}
    run(net, first, 4, 10)  # beyond the checkpoint
    file = tmp_path / "cut" / "history.jsonl"
    file.write_text(file.read_text(encoding="utf-8") + '{"kind":"trace","st', encoding="utf-8")  # killed while writing

    again = model()
    again.load_state_dict(weights)
    second = Monitor(again, every=4, folder=tmp_path / "cut", resume=True)
    second.load_state_dict(state)
    run(again, second, 10, 10)
    assert without_times(second.history().traces) == without_times(whole.history().traces)
    assert list(second.history().graphs) == list(whole.history().graphs)
    assert second.traces == 5
    assert second.clock.training > state["training"]


def test_resuming_without_a_checkpoint_counts_on_from_the_last_trace(tmp_path):
    net = model()
    run(net, Monitor(net, every=3, folder=tmp_path), 8)
    monitor = Monitor(net, every=3, folder=tmp_path, resume=True)
    run(net, monitor, 6)
    assert [t["step"] for t in monitor.history().traces] == [0, 3, 6, 9, 12]


def test_the_history_of_another_training_is_left_alone(tmp_path):
    net = model()
    run(net, Monitor(net, folder=tmp_path), 1)
    before = (tmp_path / "history.jsonl").read_bytes()
    with pytest.raises(BadArgument, match="resume=True"):
        Monitor(net, folder=tmp_path)
    with pytest.raises(BadArgument, match=r"was begun with of=\['\*'\], and this is \['0.\*'\]"):
        Monitor(net, of="0.*", folder=tmp_path, resume=True)
    assert (tmp_path / "history.jsonl").read_bytes() == before
    (tmp_path / "history.jsonl").write_text("not a history\n" * 2, encoding="utf-8")
    with pytest.raises(BadResults, match="line 1"):
        Monitor(net, folder=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every": 0}, "every"),
        ({"at_most": 0.0}, "at_most"),
        ({"at_most": 1.5}, "at_most"),
        ({"kinds": "worst"}, "worst"),
        ({"paths": -1}, "paths"),
        ({"of": "encoder*"}, "no parameter matches 'encoder"),
        ({"folder": 3}, "folder"),
        ({"sinks": 3}, "a sink has"),
        ({"sinks": [print]}, "a sink has"),
    ],
)
def test_what_it_cannot_do_is_said_before_training(options, match):
    with pytest.raises((BadArgument, UnknownName), match=match):
        Monitor(model(), **{"folder": None, **options})


def test_without_examples_the_batch_is_traced_as_one():
    net = model()
    monitor = Monitor(net, folder=None)
    with monitor.step():
        loss = net(torch.randn(6, 4)).square().mean()
    assert {r["examples"] for r in monitor.history().traces[0]["influence"]} == {1}
    del loss


def test_steps_that_are_not_traced_keep_nothing():
    net = model()
    monitor = Monitor(net, every=100, folder=None)
    run(net, monitor, 1)
    x = torch.randn(6, 4)
    with monitor.step(examples=x) as step:
        loss = net(x).square().mean()
        step.loss = loss
    gone = weakref.ref(loss)
    del loss
    assert gone() is None


def test_what_a_traced_step_kept_goes_with_it():
    net = model()
    monitor = Monitor(net, folder=None)
    x = torch.randn(6, 4)
    gc.collect()
    gc.disable()
    try:
        with monitor.step(examples=x) as step:
            hidden = net(x)
            step.loss = hidden.square().mean()
        gone = weakref.ref(hidden)
        del hidden
        assert len(monitor.history().traces) == 1
        assert gone() is None
    finally:
        gc.enable()


def test_one_page_and_one_terminal_view(tmp_path, capsys):
    net = model()
    monitor = Monitor(net, every=3, folder=tmp_path)
    run(net, monitor, 10)
    page = monitor.report()
    assert page == tmp_path / "report.html"
    text = page.read_text(encoding="utf-8")
    assert main(["report", str(tmp_path / "history.jsonl"), "--out", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text
    document = of_history(read_history(tmp_path / "history.jsonl"))
    assert [s["step"] for s in document["snapshots"]] == [0, 3, 6, 9]
    assert [e["step"] for e in document["training"][0]["evaluations"]] == [0, 3, 6, 9]
    assert main(["show", str(tmp_path / "history.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "At step 9, the last of 4 traces" in said
    assert "Training, steps 0 to 9" in said


def test_where_the_program_takes_another_way_its_flows_are_not_drawn_on_the_other_one():
    class Twoway(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.long = nn.Linear(4, 4), nn.Linear(4, 1), False

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).tanh() if self.long else self.a(x))

    net = Twoway()
    monitor = Monitor(net, every=1, folder=None)
    for long in (False, True, True):
        net.long = long
        run(net, monitor, 1)
    history = monitor.history()
    assert len(history.graphs) == 2
    document = of_history(history)
    assert [bool(s["flows"]) for s in document["snapshots"]] == [False, True, True]
    assert all(s["influence"] for s in document["snapshots"])


def test_a_monitor_of_nothing_has_no_report(tmp_path):
    monitor = Monitor(model(), folder=tmp_path)
    with pytest.raises(BadResults, match="nothing has been traced"):
        monitor.report()
    monitor.close()
    with pytest.raises(BadArgument, match="no folder"):
        Monitor(model(), folder=None).report()


class Sick(nn.Module):
    """A model with something that a recording does not follow, or a loss that is no number."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a = kind, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.kind == "foreach":
            parts = [y.clone(), y.clone()]
            torch._foreach_mul_(parts, 2.0)
            return parts[0] + parts[1]
        if self.kind == "sparse":
            return torch.sparse.mm(torch.eye(x.shape[0]).to_sparse(), y)
        if self.kind == "conj":
            return torch.view_as_complex(y.reshape(-1, 2, 2)).conj().abs()
        return y / 0.0 - y / 0.0


@pytest.mark.parametrize(("kind", "reason"), [("foreach", "_foreach"), ("sparse", "sparse"), ("conj", "lazy")])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_trace_that_fails_ends_nothing_and_is_said_once(kind, reason, caplog):
    watched, plain = Sick(kind), Sick(kind)
    plain.load_state_dict(watched.state_dict())
    monitor, idle = Monitor(watched, every=2, folder=None), Monitor(plain, folder=None)
    idle.close()
    with caplog.at_level(logging.WARNING, "gradtrace.monitor"):
        run(watched, monitor, 5)
        monitor.close()
    run(plain, idle, 5)
    assert all(a.equal(b) for a, b in zip(watched.parameters(), plain.parameters(), strict=True))
    assert monitor.traces == 0
    assert [f["step"] for f in monitor.history().failures] == [0, 2, 4]
    (said,) = monitor.failures
    assert reason in said
    assert monitor.summary().endswith(f"failed (3): {said}")
    assert len([r for r in caplog.records if "could not be traced" in r.getMessage()]) == 1
    assert "failed (3)" in caplog.records[-1].getMessage()


def test_a_loss_that_is_no_number_is_said(caplog):
    net = Sick("nan")
    monitor = Monitor(net, every=1, folder=None)
    run(net, monitor, 3)
    assert monitor.traces == 0
    assert len(monitor.history().failures) == 3
    assert "NaN in the result of aten.sub" in caplog.records[0].getMessage()


def test_an_error_of_the_program_is_the_programs():
    net = model()
    monitor = Monitor(net, folder=None)
    with pytest.raises(ZeroDivisionError), monitor.step(examples=torch.randn(6, 4)):
        net(torch.randn(6, 4)) * (1 / 0)
    with pytest.raises(RuntimeError, match="shapes"), monitor.step(examples=torch.randn(6, 4)):
        net(torch.randn(6, 5))
    assert not monitor.failures
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    run(net, monitor, 1)
    assert monitor.traces == 1


def test_which_tensor_is_the_loss_is_said_or_asked():
    net = model()
    monitor = Monitor(net, every=1, folder=None)
    x = torch.randn(6, 4)
    with monitor.step(examples=x):
        metric, loss = net(x).abs().mean(), net(x).square().mean()
    (said,) = monitor.failures
    assert "any of 2 tensors" in said
    assert "step.loss" in said
    with monitor.step(examples=x) as step:
        metric, loss = net(x).abs().mean(), net(x).square().mean()
        step.loss = loss
    with monitor.step(examples=x):
        metric = net(x).abs().mean().detach()
        parts = net(x).square().mean(), net(x).abs().mean()
        loss = parts[0] + 0.1 * parts[1]  # what it is made of is not the loss
        print(f"{(loss * 1000).item():.3f}")
    with monitor.step(examples=x):
        net(x)
    del metric
    assert [t["loss"] for t in monitor.history().traces][1:] == [loss.item()]
    assert len(monitor.failures) == 2
    assert any("no loss was found" in said for said in monitor.failures)


def test_too_little_memory_for_a_recording_ends_the_recording(monkeypatch):
    net = model()
    monitor = Monitor(net, folder=None)
    calls = []
    torch.library.define("gt_monitor::hungry", "(Tensor x) -> Tensor", tags=())
    library = torch.library.Library("gt_monitor", "IMPL")

    def hungry(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return x * 2

    library.impl("hungry", hungry, "CompositeExplicitAutograd")
    x = torch.randn(6, 4)
    with monitor.step(examples=x):
        y = torch.ops.gt_monitor.hungry(x)
        loss = net(y).square().mean()
    assert len(calls) == 2  # it was tried again once what the recording held was gone
    assert torch.equal(loss, net(x * 2).square().mean())
    assert "out of memory" in next(iter(monitor.failures))


def test_a_pass_that_runs_out_of_memory_ends_nothing(monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("no room")

    net = model()
    monitor = Monitor(net, every=2, folder=None)
    with monkeypatch.context() as patch:
        patch.setattr("gradtrace.monitor.part.take", fail)
        run(net, monitor, 2)
    run(net, monitor, 1, 2)
    assert list(monitor.failures) == ["MemoryError: no room"]
    assert [t["step"] for t in monitor.history().traces] == [2]


class Broken:
    def __init__(self) -> None:
        self.told = 0

    def scalars(self, step: int, numbers: dict) -> None:
        self.told += 1
        raise ConnectionError("gone")

    def page(self, path: Path) -> None:
        raise AssertionError

    close = page


def test_a_sink_that_fails_is_told_no_more_and_ends_nothing(tmp_path, caplog):
    net, broken = model(), Broken()
    monitor = Monitor(net, every=1, sinks=broken, folder=tmp_path)
    run(net, monitor, 3)
    monitor.close()
    assert broken.told == 1
    assert monitor.traces == 3
    assert "ConnectionError: gone" in monitor.summary()


def test_a_full_disk_ends_nothing(tmp_path, monkeypatch, caplog):
    net = model()
    monitor = Monitor(net, every=1, folder=tmp_path)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gradtrace.monitor.book.Book.write", full)
    run(net, monitor, 2)
    assert "No space left" in caplog.text


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_of_several_processes_keeps_the_history(tmp_path, monkeypatch, rank):
    """As torchrun numbers them, before they have met; tests/test_ranks.py has real ones."""
    monkeypatch.setenv("RANK", str(rank))
    monitor = Monitor(net := model(), folder=tmp_path)
    run(net, monitor, 1)
    monitor.close()
    assert len(monitor.history().traces) == 1
    assert (tmp_path / "history.jsonl").exists() == (tmp_path / "report.html").exists() == (rank == 0)


def test_after_its_end_nothing_is_traced(tmp_path):
    net = model()
    with Monitor(net, every=1, folder=tmp_path) as monitor:
        run(net, monitor, 2)
    run(net, monitor, 2)
    assert monitor.traces == 2
    assert (tmp_path / "report.html").exists()


def test_a_budget_puts_traces_off_the_first_one_included():
    """Steps of 3 s; a rehearsal takes 1 s, and a trace 3."""
    net, seconds = model(), [0.0]
    monitor = Monitor(net, every=1, at_most=0.2, folder=None)
    clock = monitor.clock = Clock(lambda: seconds[0])
    net.register_forward_hook(lambda *_: seconds.__setitem__(0, seconds[0] + 3.0))
    for name, takes in ("_rehearse", 1.0), ("_trace", 3.0):
        setattr(monitor, name, slowed(getattr(monitor, name), seconds, takes))
    shares = []
    for number in range(400):
        run(net, monitor, 1, number)
        shares.append(clock.share)
    steps = [t["step"] for t in monitor.history().traces]
    assert len(steps) > 2
    assert steps[0] > 70  # a rehearsal before it, once the time of some steps is known
    assert 0.1 < max(shares) <= 0.2


def slowed(run: Callable[..., Any], seconds: list[float], takes: float) -> Callable[..., Any]:
    def slow(*args: Any) -> Any:
        seconds[0] += takes
        return run(*args)

    return slow


def test_a_budget_that_leaves_no_room_is_said(tmp_path):
    net = model()
    with Monitor(net, every=1, at_most=0.01, folder=tmp_path) as monitor:
        run(net, monitor, 10)
    assert monitor.traces == 0
    assert "nothing has been traced yet, since a trace may take" in monitor.summary()
    with pytest.raises(BadResults, match=r"at_most=0\.01 of the .* s of training"):
        monitor.report()
