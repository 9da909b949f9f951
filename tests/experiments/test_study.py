"""`gradtrace study`, tiny, in real processes: a kill changes no byte, and shares add up to the whole."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from gradtrace.cli import main
from gradtrace.errors import OptionError, UnknownName
from gradtrace.experiments.plugged import read
from gradtrace.experiments.statistics import shapley
from gradtrace.experiments.study import (
    MERGED,
    Share,
    StudyOptions,
    _own,
    damages,
    load_study,
    read_header,
    read_units,
    run_unit,
    study,
)
from gradtrace.experiments.study_analysis import MARKS, Analysis, analyse

TINY = {
    "architectures": 5,
    "seeds": 2,
    "components": ("rnn", "mlp", "convolution", "attention"),
    "tasks": ("copy", "parity"),
    "count": 3,
    "hidden": 4,
    "steps": 6,
    "batch": 4,
    "eval_every": 3,
    "held_out": 16,
    "traces": 2,
    "trace_examples": 2,
}
FLAGS = [
    *(
        "--architectures",
        "5",
        "--seeds",
        "2",
        "--components",
        "rnn,mlp,convolution,attention",
        "--tasks",
        "copy,parity",
    ),
    *("--count", "3", "--hidden", "4", "--steps", "6", "--batch", "4", "--eval-every", "3", "--held-out", "16"),
    *("--traces", "2", "--trace-examples", "2"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a study that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    study(StudyOptions(**TINY), folder)
    return folder


def merged(folder):
    return (folder / MERGED).read_bytes()


def command(folder, *more):
    return [sys.executable, "-m", "gradtrace", "study", *FLAGS, "--out", str(folder), *more]


def start(folder, *more):
    return subprocess.Popen(command(folder, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_line_for_each_unit(whole):
    header = read_header(whole / MERGED)
    assert header["schema"] == "gradtrace.study/1"
    assert header["options"]["steps"] == 6
    units = read_units(whole / MERGED)
    assert [(u["architecture"], u["seed"]) for u in units] == [(n, s) for n in range(5) for s in (1, 2)]
    assert {u["sense"] for u in units} == {"parallel", "grown"}
    for unit in units:
        assert read(unit["plan"]).components == tuple(unit["components"])
        assert all(len(values) == 7 for values in unit["runs"].values())
        assert all(len(values) == 3 for values in unit["predictors"].values())
    first = units[0]
    assert json.loads(json.dumps(run_unit(StudyOptions(**TINY), 0, 1, lambda step: None))) == first


def test_a_killed_study_goes_on_to_the_same_bytes(whole, tmp_path):
    process = start(tmp_path)
    share = tmp_path / "share-1-of-1.jsonl"
    while process.poll() is None and (not share.exists() or share.read_bytes().count(b"\n") < 4):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = share.read_bytes()
    assert 3 <= done.count(b"\n") < 11
    share.write_bytes(done + b'{"architecture":3,"se')  # as a kill in the middle of a write leaves it
    after = start(tmp_path)
    _, errors = after.communicate(timeout=120)
    assert (after.returncode, errors) == (0, "")
    assert merged(tmp_path) == merged(whole)
    assert share.read_bytes() == (whole / share.name).read_bytes()


def test_shares_add_up_to_the_whole_also_by_rank(whole, tmp_path):
    one = start(tmp_path, "--share", "1/2")
    rank = subprocess.Popen(command(tmp_path), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            env=os.environ | {"RANK": "1", "WORLD_SIZE": "2"})  # fmt: skip
    for process in (one, rank):
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    assert {p.name for p in tmp_path.glob("share*")} == {"share-1-of-2.jsonl", "share-2-of-2.jsonl"}
    assert merged(tmp_path) == merged(whole)


@pytest.mark.full
def test_torchrun_gives_the_shares(whole, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    subprocess.run([*launcher, *command(tmp_path)[1:]], check=True, capture_output=True, timeout=300)
    assert merged(tmp_path) == merged(whole)


def test_shares_are_disjoint_and_have_both_senses():
    options = StudyOptions(architectures=30)
    shares = [Share(i, 4).units(options) for i in (1, 2, 3, 4)]
    assert sorted(unit for share in shares for unit in share) == sorted(Share().units(options))
    assert all({n % 2 for n, _ in share} == {0, 1} for share in shares)


def test_more_architectures_go_on_from_what_there_is(whole, tmp_path):
    fewer = StudyOptions(**TINY | {"architectures": 2})
    study(fewer, tmp_path)
    study(StudyOptions(**TINY), tmp_path)
    assert merged(tmp_path) == merged(whole)


def test_what_another_study_left_is_not_mixed_in(whole, tmp_path):
    with pytest.raises(OptionError, match="is of another study: steps was 6, not 7"):
        study(StudyOptions(**TINY | {"steps": 7}), whole)
    (tmp_path / "share-1-of-1.jsonl").write_text("no JSON\n")
    with pytest.raises(OptionError, match=r"cannot read .* as results of gradtrace study"):
        study(StudyOptions(**TINY), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="holds no results"):
        read_units(tmp_path / "empty")


@pytest.mark.parametrize(("given", "said"), [
    ({"count": 1}, "--count must be from 2 to 6"),
    ({"count": 5}, "at most the 4 components there are"),
    ({"tasks": ("chess",)}, "--tasks must be of text, copy"),
    ({"traces": 0}, "--traces must be from 1 to"),
    ({"seed": -1}, "--seed must be from 0"),
    ({"lr": 0}, "--lr must be above 0"),
])  # fmt: skip
def test_options_that_make_no_sense(given, said):
    with pytest.raises(OptionError, match=said):
        StudyOptions(**TINY | given)
    with pytest.raises(UnknownName, match="unknown component 'rnm'"):
        StudyOptions(components=("rnm",))


@pytest.mark.parametrize("text", ["3/2", "0/2", "x", "1/0", "-1/2"])
def test_shares_that_make_no_sense(text):
    with pytest.raises(OptionError, match="--share must be like 1/2"):
        Share.named(text)


def test_damages_by_hand():
    # Two components, sets 01, 10, 11: a alone, b alone, both.
    runs = {"area": [1.0, 3.0, 0.5], "samples": [None, 64, 32], "final": [0.5, 2.0, None], "score": [0, 0, 0]}
    found = damages({"components": ["a", "b"], "runs": runs}, {"steps": 10, "eval_every": 5, "batch": 32})
    assert found["area"] == [2.5, 0.5]
    assert found["samples"] == [64, np.inf]
    assert np.isnan(found["final"]).all()
    assert found["shapley_area"] == shapley([0, -1.0, -3.0, -0.5].__getitem__, 2)
    logs = [0.0, -np.log(15 * 32 + 1), -np.log(65), -np.log(33)]
    assert found["shapley_samples"] == pytest.approx(shapley(logs.__getitem__, 2))


def test_pandas_has_a_row_for_each_component(whole):
    frame = load_study(whole / MERGED)
    assert len(frame) == 5 * 2 * 3
    assert frame.groupby(["architecture", "seed"]).component.nunique().eq(3).all()
    assert load_study(whole).equals(frame)  # the shares
    assert frame.best.between(0, 1).all()


def test_analysis_trains_nothing_and_is_the_same_every_time(whole, tmp_path):
    file = tmp_path / MERGED
    file.write_bytes(merged(whole))
    said = analyse(file)
    names = {"study.md", "study.html", "study-parallel.svg", "study-grown.svg"}
    before = {name: (tmp_path / name).read_bytes() for name in names}
    assert analyse(file) == said
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    tables = Analysis(file).tables
    assert tables[1].title == "The primary question"
    assert len(tables[1].rows) == 12
    assert all(row[-1] in ("yes", "no") for row in tables[1].rows)


def test_a_page_gets_its_numbers_between_its_marks(whole, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    analyse(whole / MERGED, page)
    text = page.read_text()
    assert text.startswith(f"before\n{MARKS[0]}\n### In short")
    assert text.endswith(f"{MARKS[1]}\nafter\n")
    assert "old" not in text
    page.write_text("nothing")
    with pytest.raises(OptionError, match="has no lines"):
        analyse(whole / MERGED, page)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--share", "3/2"], "--share must be like 1/2, not 3/2"),
    (["--into", "x.md"], "--into needs --analyse"),
    (["--analyse", "nothing-here.jsonl"], "cannot read nothing-here.jsonl as results of gradtrace study"),
    (["--components", "rnn,gru"], "--count must be at most the 2 components there are, not 4"),
    (["--tasks", ""], "--tasks must be of text, copy"),
])  # fmt: skip
def test_the_command_says_in_one_line_what_is_wrong(arguments, said, tmp_path, capsys):
    assert main(["study", *arguments, *([] if "--analyse" in arguments else ["--out", str(tmp_path)])]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.full  # a minute of compiling
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
def test_compiled_steps_give_the_same_but_for_rounding():
    options = TINY | {"components": ("ntm", "mlp"), "count": 2, "tasks": ("parity",)}
    given, compiled = (
        run_unit(StudyOptions(**options, compile=fast), 0, 1, lambda step: None) for fast in (False, True)
    )
    for kind in ("runs", "predictors"):
        for name in given[kind]:
            numbers = [[float("nan") if x is None else x for x in unit[kind][name]] for unit in (given, compiled)]
            np.testing.assert_allclose(*numbers, rtol=1e-3, atol=1e-6, equal_nan=True, err_msg=name)


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(OptionError, match="--compile must be left out where there is no C\\+\\+ compiler"):
        StudyOptions(**TINY, compile=True)


def test_two_processes_do_not_do_one_share(whole, tmp_path):
    with _own(tmp_path / Share().file), pytest.raises(OptionError, match="another gradtrace is writing"):
        study(StudyOptions(**TINY), tmp_path)


def test_components_of_ones_own_are_drawn_too(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text(
        "from torch import nn\n\nclass Twice(nn.Module):\n    def __init__(self, width):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)\n\n"
        "    def forward(self, x):\n        return self.b(self.a(x).tanh())\n"
    )
    given = TINY | {"components": ("rnn", "mlp", f"{own}:Twice"), "architectures": 2, "seeds": 1}
    units = read_units(study(StudyOptions(**given), tmp_path / "out"))
    assert all({"rnn", "mlp", f"{own}:Twice"} == set(unit["components"]) for unit in units)
