"""The zoo's sweep: rows that pass, that refuse, that come out wrong and that crash, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradtrace

ZOO = Path(__file__).parents[2] / "benchmarks" / "zoo"
ROWS = """
import os
import signal

import torch
from rows import Subject, classes, given
from torch import Tensor, nn


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(3, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(self.first(x))


class Dies(nn.Linear):
    def forward(self, x):
        if not self.training:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().forward(x)


class Sleeps(nn.Linear):
    def forward(self, x):
        signal.pause()


class Foreach(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        torch._foreach_mul_([y], 2.0)
        return y


class Fails(nn.Linear):
    def forward(self, x):
        raise ValueError("of its own")


ROWS = {
    "torch/MLP": lambda: given(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.5)), torch.randn(2, 4)),
    "torch/norm": lambda: classes(Norm(), torch.randn(4, 3)),
    "torch/foreach": lambda: given(Foreach(3, 3), torch.randn(2, 3)),
    "torch/dies": lambda: given(Dies(3, 3), torch.randn(2, 3)),
    "torch/fails": lambda: given(Fails(3, 3), torch.randn(2, 3)),
    "slow/sleeps": lambda: given(Sleeps(3, 3), torch.randn(2, 3)),
}
"""


def sweep(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a sweep over the rows above."""
    (folder / "rows_to_try.py").write_text(ROWS, encoding="utf-8")
    path = os.pathsep.join([str(Path(gradtrace.__file__).parents[1]), str(folder)])
    where = ("--out", str(folder / "out"), "--table", str(folder / "table.md"), "--catalogue", "rows_to_try")
    return subprocess.run(
        [sys.executable, ZOO / "sweep.py", *where, *flags],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": path},
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder with what a sweep over all rows left, and how it ended."""
    folder = tmp_path_factory.mktemp("zoo")
    late = sweep(folder, "--only", "slow/*", "--timeout", "2")
    return folder, late, sweep(folder)


def rows(folder: Path) -> dict:
    return json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))["rows"]


def test_what_passes_is_certified_in_both_modes(swept):
    found = rows(swept[0])["torch/MLP"]
    assert found["status"] == "passed", found
    assert found["parameters"] == 20
    assert found["modes"]["train"]["calls"] > found["modes"]["eval"]["calls"]  # dropout
    assert all(mode["difference"] < 1e-5 for mode in found["modes"].values())
    assert all(mode["by_example"] == {"status": "passed", "connected": {}} for mode in found["modes"].values())
    assert found["seconds"]["trace"] > 0


def test_what_connects_examples_is_named(swept):
    modes = rows(swept[0])["torch/norm"]["modes"]
    assert "native_batch_norm" in " ".join(modes["train"]["by_example"]["connected"])
    assert not modes["eval"]["by_example"]["connected"]


def test_a_refusal_has_its_reason(swept):
    found = rows(swept[0])["torch/foreach"]
    assert found["status"] == "refused"
    assert "_foreach_mul_" in found["reason"]
    assert "torch/foreach | refused" in (swept[0] / "table.md").read_text(encoding="utf-8")


def test_a_process_that_dies_is_a_row(swept):
    found = rows(swept[0])["torch/dies"]
    assert found == {"status": "crashed", "reason": "SIGSEGV, while eval: the model alone"}
    assert swept[2].returncode == 1
    assert "6 architectures: 2 passed, 1 refused, 2 crashed, 0 wrong, 1 broken" in swept[2].stdout, swept[2].stdout


def test_a_model_that_fails_by_itself_is_told_apart(swept):
    found = rows(swept[0])["torch/fails"]
    assert found["status"] == "broken"
    assert found["reason"].startswith("ValueError: of its own")


def test_a_row_has_its_time_and_what_was_done_is_not_done_again(swept):
    folder, late, _ = swept
    assert late.returncode == 1
    assert not late.stdout.count("wrote")  # not all rows have been tried yet
    # the second sweep, with more time, took over what the first had found
    assert rows(folder)["slow/sleeps"] == {
        "status": "crashed",
        "reason": "longer than 2.0 s, while train: the model alone",
    }
