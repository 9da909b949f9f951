"""docs/study.md has the numbers and figures that the committed results give, and no others."""

from pathlib import Path

import numpy as np

from gradtrace.experiments.plugged import draw
from gradtrace.experiments.study import load_study, read_header, read_units, task_of
from gradtrace.experiments.study_analysis import MARKS, Analysis, analyse
from gradtrace.experiments.tasks import TASKS

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks/results/study.jsonl", ROOT / "docs/study.md"


def test_the_page_is_what_analysing_the_results_makes(tmp_path):
    copy = tmp_path / PAGE.name
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    copy.write_text(f"{before}{MARKS[0]}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}", encoding="utf-8")
    analyse(RESULTS, copy)
    assert copy.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
    for figure in tmp_path.glob("*.svg"):
        assert figure.read_bytes() == (PAGE.parent / figure.name).read_bytes()
    assert len(list(tmp_path.glob("*.svg"))) == 2


def test_the_results_are_a_study_as_it_was_designed():
    options = read_header(RESULTS)["options"]
    assert (options["count"], options["hidden"], options["steps"], options["batch"]) == (4, 16, 512, 32)
    frame = load_study(RESULTS)
    assert len(frame) == 4 * len(read_units(RESULTS))
    assert frame[["best", "greedy"]].stack().between(0, 1).all()
    assert np.isfinite(frame[["through", "flow", "area", "shapley_area"]]).all().all()
    assert "/" not in RESULTS.read_text(encoding="utf-8").replace("gradtrace.study/1", "")  # no folders of a machine


def test_what_was_run_is_what_would_be_drawn_now():
    # So that a study goes on with the architectures and tasks that it was begun with.
    options = read_header(RESULTS)["options"]
    for unit in read_units(RESULTS):
        number = unit["architecture"]
        assert draw(options["seed"], number, options["components"], options["count"]).plain() == unit["plan"]
        assert unit["task"] == task_of(options["seed"], number, options["tasks"])
        assert unit["solved"] == TASKS[unit["task"]].solved


def test_every_sense_of_random_is_there():
    assert [s.name for s in Analysis(RESULTS).senses] == ["parallel", "grown"]
