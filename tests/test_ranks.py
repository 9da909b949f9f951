"""Many processes, for real: together they find what one finds, and one that fails leaves none of them waiting."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import worker
from ranks.programs import ASKED, SIZES, batch, loss_of, model

import gradtrace
from gradtrace.errors import BadArgument, RankFailed
from gradtrace.monitor import Monitor
from gradtrace.queries.flow import Flow
from gradtrace.queries.tables import InfluenceTable
from gradtrace.report.history import read_history

WORKER = Path(worker.__file__)
LIMIT = 300  # seconds
UNUSED = {"frozen": ["frozen.bias", "frozen.weight"], "unused": ["unused.weight", "unused.bias"]}


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"} | more


def launch(ranks: int, checks: list[str], folder: Path) -> list[dict[str, Any]]:
    """Run checks under torchrun; give what each rank found."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*run, str(WORKER), *checks, str(folder)], env=environment(), capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


@cache
def alone() -> tuple[Any, ...]:
    """What one process finds with all examples."""
    x, y = batch()
    with gradtrace.record(net := model(), examples=x) as tape:
        loss = loss_of(net, x, y)
    return tuple(worker.ask(tape, loss))


def assert_same_table(found: InfluenceTable, wanted: InfluenceTable) -> None:
    """Compare counts exactly, and weights to rounding, of all examples together and of each."""
    assert (found.kind, found.of, found.connected) == (wanted.kind, wanted.of, wanted.connected)
    assert found.counts is not None
    assert wanted.counts is not None
    pairs = [(found.counts, wanted.counts), *zip(found.counts_by_example, wanted.counts_by_example, strict=True)]
    for mine, other in pairs:
        assert (mine.pairs, mine.live, mine.crossing) == (other.pairs, other.live, other.crossing)
    for mine, other in zip(found.rows, wanted.rows, strict=True):
        assert (mine.component, mine.examples, mine.inside) == (other.component, other.examples, other.inside)
        assert (mine.share, mine.dead_share) == (other.share, other.dead_share)
        assert mine.weighted_share == pytest.approx(other.weighted_share, rel=1e-9)
    for mine, other in zip(found.by_example, wanted.by_example, strict=True):
        assert [r.share for r in mine] == pytest.approx([r.share for r in other], nan_ok=True)
        assert [r.weighted_share for r in mine] == pytest.approx([r.weighted_share for r in other], nan_ok=True)


def assert_same_flow(found: Flow, wanted: Flow) -> None:
    amount = 2.0**found.unit, 2.0**wanted.unit
    for mine, other in (found.calls, wanted.calls), (found.edges, wanted.edges), (found.links, wanted.links):
        ours = {key_of(r): r.paths * amount[0] for r in mine}
        theirs = {key_of(r): r.paths * amount[1] for r in other}
        assert ours == theirs if not wanted.weighted else ours == pytest.approx(theirs, rel=1e-9)


def key_of(row: Any) -> tuple[Any, ...]:
    """Tell what a row of a flow is of; a line of this very program has a folder."""
    said = [value for name, value in vars(row).items() if name not in ("paths", "share", "source")]
    return (*said, str(getattr(row, "source", "")).rpartition("/")[2])


@pytest.mark.parametrize("ranks", [1, 2, 3, pytest.param(4, marks=pytest.mark.full)])
def test_what_ranks_find_together_is_what_one_finds(ranks, tmp_path):
    found = launch(ranks, ["tables", "monitors"], tmp_path)
    for rank in found:
        for name in (*worker.WRAPPED, "mean"):
            for mine, wanted in zip(rank["tables"][name], alone(), strict=True):
                if isinstance(wanted, InfluenceTable):
                    assert_same_table(mine, wanted)
                elif name != "mean":  # which is one more operator
                    assert_same_flow(mine, wanted)
        assert all(same for name, same in rank["tables"].items() if name.endswith("same gradients"))
        for name in worker.WRAPPED:
            assert rank["tables"][f"{name}: unused"] in (UNUSED, None)
            assert_same_history(rank["monitors"][name], ranks)
    if ranks > 1:
        said = "the loss may be any of 2 tensors"
        assert all(next(iter(f["monitors"]["ddp"]["said"])).startswith(said) for f in found[-1:])
        assert all(next(iter(f["monitors"]["ddp"]["said"])).startswith(f"rank {ranks - 1}: {said}") for f in found[:-1])


@cache
def watched() -> list[dict[str, Any]]:
    """The traces of a training of one process."""
    monitor = Monitor(net := model(), every=2, of="blocks*", components=ASKED, kinds=["best", "greedy"], folder=None)
    worker.train(net, monitor, 0, 1, failing=-1)
    return monitor.history().traces


def assert_same_history(found: dict[str, Any], ranks: int) -> None:
    assert [t["step"] for t in found["traces"]] == [0, 4]
    assert [f["step"] for f in found["failures"]] == [2]
    for mine, wanted in zip(found["traces"], [watched()[0], watched()[2]], strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"])
        for row, other in zip(mine["influence"], wanted["influence"], strict=True):
            assert row | {"weighted_share": 0} == other | {"weighted_share": 0}
            assert row["weighted_share"] == pytest.approx(other["weighted_share"], rel=1e-6)
        for flow, other in zip(mine["flows"], wanted["flows"], strict=True):
            assert flow["total"] == other["total"]
            edges = [zip(f["source"], f["target"], f["paths"], strict=True) for f in (flow, other)]
            assert set(edges[0]) == set(edges[1])
        if ranks > 1:
            there = sum(size > 0 for size in SIZES[ranks])
            assert mine["ranks"] == {"all": ranks, "with_examples": there, "in_flows": there}


def test_two_ranks_that_fail_that_exchange_and_that_are_split_otherwise(tmp_path):
    first, second = launch(2, ["collectives", "refused", "left", "budget"], tmp_path)
    for rank in first, second:
        assert_collectives(rank["collectives"])
        assert_refused(rank["refused"])
        assert rank["left"]["traces"] == [2]
        assert_budget(rank["budget"], first["budget"])
    assert first["left"]["said"] == ["rank 1: ValueError: a bad example"]
    assert second["left"]["said"] == ["ValueError: a bad example"]
    assert first["refused"]["failed"].startswith("RankFailed: rank 1: ValueError: no more memory")
    assert second["refused"]["failed"] == "ValueError: no more memory"


def assert_collectives(found: dict[str, Any]) -> None:
    assert found.pop("a log") == ()
    for name, of in found.items():
        for mine, wanted in zip(of["grads"], of["expected"], strict=True):
            assert torch.allclose(mine, wanted), name
        assert any("with other ranks" in where for where in of["connected"]), name
        assert 0 < of["share"] <= 1


def assert_refused(found: dict[str, Any]) -> None:
    for text in (found["tensor parallel, recorded"], *found["tensor parallel"]):
        assert "DTensor" in text
        assert "Trace the model as it was before it was split" in text
    assert len(found["tensor parallel"]) == 1
    assert found["same gradients"]
    for text in (found["sent"], *found["pipeline"]):
        assert "as a stage of a pipeline does" in text
    assert len(found["pipeline"]) == 1
    assert found["pipeline trained"]
    assert "check=True" in found["check"]
    assert "its successor, torch.distributed.fsdp.fully_shard" in found["flat"]
    assert "adds up influence tables and flows" in found["unlike"]


def assert_budget(found: dict[str, Any], first: dict[str, Any]) -> None:
    """Every rank traced the same steps, though their clocks differ; after a break it is learnt anew what that costs."""
    assert not found["failures"]
    assert found["steps"] == first["steps"]
    begun, again = ([n for n in found["steps"] if (n >= 60) == after] for after in (False, True))
    assert (begun[0], again[0]) == (38, 98)
    assert 2 < len(found["steps"]) < 44


def start(what: str, folder: Path, ranks: int = 3) -> list[subprocess.Popen]:
    """Start processes without torchrun, which would end all where one ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
    run = [sys.executable, str(WORKER), what, str(folder)]
    return [subprocess.Popen(run, env=environment(RANK=str(rank), **where)) for rank in range(ranks)]


@pytest.mark.parametrize("what", ["killed", "killed, another late"])
def test_a_rank_that_is_killed_in_a_trace_leaves_none_waiting_and_is_named(what, tmp_path):
    started = start(what, tmp_path)
    try:
        codes = [process.wait(LIMIT) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0, 0, -signal.SIGKILL]
    for rank in range(2):
        found = assert_lost(tmp_path, what, rank, 2)
        assert found["reduced"].startswith("RankFailed: the ranks did not meet within 3 s")
        assert found["seconds of reduced"] < 20


@pytest.mark.parametrize(("what", "who"), [("stopped", 2), ("the first stopped", 0)])
def test_a_rank_that_hangs_in_a_trace_leaves_none_waiting_and_is_told_if_it_goes_on(what, who, tmp_path):
    started = start(what, tmp_path)
    others = [process for rank, process in enumerate(started) if rank != who]
    try:
        assert [process.wait(LIMIT) for process in others] == [0, 0]
        assert started[who].poll() is None
        started[who].send_signal(signal.SIGCONT)
        assert started[who].wait(LIMIT) == 0
    finally:
        for process in started:
            process.kill()
    for rank in range(3):
        assert_lost(tmp_path, what, rank, who)


def assert_lost(folder: Path, what: str, rank: int, who: int) -> dict[str, Any]:
    """See that a rank has trained to its end, and told in time which one was lost, as far as it knows."""
    found = torch.load(folder / f"{rank}.pt", weights_only=False)[what]
    assert (found["steps"], found["traces"]) == (6, [0])
    (said,) = found["said"]
    assert found["again"].startswith(f"RankFailed: {said}")
    late = "they have ended, or took longer than 20 s"
    if rank == who:  # which comes late, and finds nobody
        assert late in said
    elif who == 0:  # which has the store by which they have met
        assert said == f"other ranks did not answer: {late}"
    else:
        assert said == f"rank {who} did not answer: it has ended, or took longer than 20 s"
    assert rank == who or found["seconds"] < 20 + 10
    return found


@pytest.mark.full
def test_transformers_trainer_and_lightning_on_two_ranks(tmp_path):
    pytest.importorskip("transformers", reason="needs gradtrace[transformers]")
    pytest.importorskip("lightning", reason="needs gradtrace[lightning]")
    found = launch(2, ["trainer", "lightning"], tmp_path)
    for name, batch_size in (("trainer", 4), ("lightning", 6)):
        for rank in found:
            assert rank[name]["same"]
            assert not rank[name]["failures"]
            assert [t["step"] for t in rank[name]["traces"]] == [0, 4, 8]
            for trace, other in zip(rank[name]["traces"], found[0][name]["traces"], strict=True):
                assert trace["ranks"] == {"all": 2, "with_examples": 2, "in_flows": 2}
                assert trace["influence"] == other["influence"]
                assert {row["examples"] for row in trace["influence"]} == {2 * batch_size}
        kept = read_history(tmp_path / name / "gradtrace" / "history.jsonl")
        assert [t["influence"] for t in kept.traces] == [t["influence"] for t in found[0][name]["traces"]]
        assert (tmp_path / name / "gradtrace" / "report.html").is_file()
    assert sum("gradtrace/dead_share" in row for row in found[0]["trainer"]["log"]) == 3


def test_one_process_needs_no_ranks():
    tables = [t for t in alone() if isinstance(t, InfluenceTable)]
    assert gradtrace.reduced(tables) == tables
    assert gradtrace.reduced(lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        gradtrace.reduced(lambda: 1 // 0)  # type: ignore[arg-type]
    with pytest.raises(BadArgument, match="adds up influence tables and flows"):
        gradtrace.reduced(3)  # type: ignore[arg-type]
    assert issubclass(RankFailed, gradtrace.GradtraceError)
