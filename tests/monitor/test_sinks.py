"""Sinks, against the libraries themselves: real files, read back."""

from __future__ import annotations

import json
import logging
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradtrace.errors import BadArgument
from gradtrace.monitor import Monitor, sinks
from gradtrace.monitor.scalars import scalars_of

SHARE = "gradtrace/1/share"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def watched(sink: sinks.Sink) -> dict[int, dict[str, float]]:
    """Train four steps, two of them traced; give their numbers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    with Monitor(net, every=2, sinks=[sinks.Lines("plain.jsonl"), sink], folder="run") as monitor:
        for _ in range(4):
            x = torch.randn(6, 4)
            with monitor.step(examples=x):
                loss = net(x).square().mean()
            del loss
    assert not monitor.failures
    lines = [json.loads(line) for line in Path("plain.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line.pop("step"): line for line in lines}


class Nothing:
    def scalars(self, step: int, numbers: dict) -> None: ...

    def page(self, path: Path) -> None: ...

    def close(self) -> None: ...


def test_plain_lines():
    told = watched(Nothing())
    assert list(told) == [0, 2]
    for numbers in told.values():
        assert set(numbers) == {
            *(f"gradtrace/{n}/share" for n in "012"),
            "gradtrace/dead_share",
            "gradtrace/entropy",
            "gradtrace/time_share",
        }
        assert numbers["gradtrace/2/share"] == 1.0
        assert 0 < numbers["gradtrace/time_share"] < 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard", "ignore::DeprecationWarning:google")
def test_tensorboard():
    pytest.importorskip("tensorboard", reason="needs gradtrace[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = watched(sinks.TensorBoard("events"))
    events = EventAccumulator("events")
    events.Reload()
    for name in told[0]:
        assert {e.step: e.value for e in events.Scalars(name)} == pytest.approx({n: told[n][name] for n in told})


def test_a_writer_of_the_program_stays_open():
    pytest.importorskip("tensorboard", reason="needs gradtrace[tensorboard]")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter("events")
    watched(sinks.TensorBoard(writer))
    writer.add_scalar("more", 1.0, 3)
    assert writer.all_writers
    writer.close()


def records(data: bytes) -> Iterator[bytes]:
    """Read a LevelDB log with W&B's header of 7 bytes: blocks of 32 KiB, of chunks (crc 4, length 2, kind 1, data)."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield parts
            parts = b""


def read_run(file: Path, messages: Any) -> tuple[list[dict], list[str], bool]:
    """Read a run's rows of numbers, the files of its artifacts, and whether its end has been written."""
    rows, artifacts, ended = [], [], False
    for data in records(file.read_bytes()):
        record = messages.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            rows.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item})
        if kind == "artifact":
            artifacts += [c.path for c in record.artifact.manifest.contents]
        ended = ended or kind == "exit"
    return rows, artifacts, ended


def test_wandb_offline(monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs gradtrace[wandb]")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    told = watched(sinks.WandB(mode="offline", project="gradtrace", settings=wandb.Settings(x_disable_stats=True)))
    (file,) = Path("wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 60  # another process writes the file, perhaps after finish()
    while True:
        rows, artifacts, ended = read_run(file, wandb_internal_pb2)
        if ended or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert {row["gradtrace/step"]: row[SHARE] for row in rows} == {n: told[n][SHARE] for n in told}
    assert artifacts == ["report.html"]


@pytest.mark.filterwarnings("ignore::FutureWarning:mlflow", "ignore::DeprecationWarning")
def test_mlflow_in_files(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="needs gradtrace[mlflow]")
    uri = (tmp_path / "store").as_uri()
    sink = sinks.MLflow(uri)
    told = watched(sink)
    client = mlflow.MlflowClient(tracking_uri=uri)
    for name in told[0]:
        kept = client.get_metric_history(sink.run_id, name)
        assert {m.step: m.value for m in kept} == {n: told[n][name] for n in told}
    assert [f.path for f in client.list_artifacts(sink.run_id)] == ["report.html"]
    assert client.get_run(sink.run_id).info.status == "FINISHED"


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="needs gradtrace[trackio], which wants an older pillow than constraints.txt")
    import sqlite3

    told = watched(sinks.Trackio("gradtrace", name="run", embed=False, auto_log_cpu=False, auto_log_gpu=False))
    (file,) = (tmp_path / "trackio").glob("gradtrace.db")
    with sqlite3.connect(file) as store:
        rows = store.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    store.close()
    assert {step: json.loads(text)[SHARE] for step, text in rows} == {n: told[n][SHARE] for n in told}


def test_a_library_that_is_missing_is_said(monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("gradtrace.monitor.sinks.import_module", missing)
    with pytest.raises(BadArgument, match=r"needs wandb: pip install 'gradtrace\[wandb\]'"):
        sinks.WandB(mode="offline")


def test_names_that_mlflow_takes():
    assert sinks.mlflow_name("gradtrace/h.*.attn:2/share (é)") == "gradtrace/h._.attn:2/share ___"


def test_numbers_that_do_not_exist_are_left_out():
    rows = [
        {"kind": "best", "component": "a", "share": float("nan"), "dead_share": 1.0},
        {"kind": "greedy", "component": "a", "share": 0.5, "dead_share": 0.25},
    ]
    entropy = {"semiring": "entropy", "rows": [{"live": 0, "scalars": 3}]}
    assert scalars_of({"influence": rows, "semirings": [entropy]}) == {
        "gradtrace/a/share_greedy": 0.5,
        "gradtrace/dead_share": 1.0,
        "gradtrace/dead_share_greedy": 0.25,
    }
    entropy["rows"] += [{"live": 3, "mean": 1.0}, {"live": 1, "mean": 5.0}]
    assert scalars_of({"influence": [], "semirings": [entropy]}) == {"gradtrace/entropy": 2.0}


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.WARNING)
