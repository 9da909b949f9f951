"""The competition from end to end, tiny: its results, and that a kill at any moment does not change them."""

import json
import math
import shlex
import signal
import subprocess
import sys

import pytest
import torch

from gradtrace.cli import main
from gradtrace.errors import GradtraceError, OptionError
from gradtrace.experiments.compete import compete
from gradtrace.experiments.components import COMPONENTS
from gradtrace.experiments.results import conclude, versions
from gradtrace.experiments.tasks import Evaluation
from gradtrace.queries.forest import FIRST
from gradtrace.report.document import command_of

TINY = {
    "components": ("rnn", "gru"),
    "seed": 2,
    "steps": 10,
    "hidden": 4,
    "bptt": 4,
    "batch": 3,
    "trace_every": 4,
    "trace_examples": 2,
    "eval_every": 3,
    "vocabulary": 40,
}
FLAGS = [
    *("--components", "rnn,gru", "--seed", "2", "--steps", "10", "--hidden", "4", "--bptt", "4", "--batch", "3"),
    *("--trace-every", "4", "--trace-examples", "2", "--eval-every", "3", "--vocab", "40"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    ids = torch.multinomial(1 / torch.arange(1.0, 61), 900, replacement=True, generator=generator)
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(" ".join(f"w{i}" for i in ids.tolist()))
    return path


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The folder and results of a competition that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, compete(TINY | {"corpus": str(corpus)}, folder)


def saved(folder):
    return (folder / "results.json").read_bytes()


def test_results_follow_the_schema(whole, corpus):
    folder, results = whole
    assert json.loads(saved(folder)) == results
    assert (results["schema"], results["kind"], results["complete"]) == ("gradtrace.results/1", "compete", True)
    assert results["options"]["corpus"] == "text.txt"
    assert str(corpus.parent) not in saved(folder).decode()
    assert [r["name"] for r in results["runs"]] == ["full model", "without rnn", "without gru"]
    assert [e["step"] for e in results["runs"][0]["evaluations"]] == [0, 3, 6, 9, 10]
    assert [e["samples"] for e in results["runs"][1]["evaluations"]] == [0, 9, 18, 27, 30]
    assert [t["step"] for t in results["runs"][0]["traces"]] == [0, 4, 8, 10]
    assert all(r["traces"] == [] for r in results["runs"][1:])


def test_every_path_from_the_embedding_crosses_one_component(whole):
    for trace in whole[1]["runs"][0]["traces"]:
        for kind in ("best", "greedy"):
            rows = [r for r in trace["influence"] if r["kind"] == kind]
            assert [r["component"] for r in rows] == ["rnn", "gru"]
            assert sum(r["share"] for r in rows) == pytest.approx(1)
            assert sum(r["weighted_share"] for r in rows) == pytest.approx(1)
            assert {(r["examples"], r["inside"]) for r in rows} == {(2, False)}
            assert 0 < rows[0]["dead_share"] == rows[1]["dead_share"] < 1


def test_conclusions_follow_from_the_runs(whole):
    results = whole[1]
    best = min(e["loss"] for e in results["runs"][0]["evaluations"])
    assert results["ablation"]["reference_loss"] == best
    assert results["ablation"]["reference_perplexity"] == pytest.approx(math.exp(best))
    for run, row in zip(results["runs"][1:], results["ablation"]["rows"], strict=True):
        reached = [e["samples"] for e in run["evaluations"] if e["loss"] <= best]
        assert row["samples"] == (reached[0] if reached else None)
        assert row["final_perplexity"] == run["evaluations"][-1]["perplexity"]
    means = {(r["kind"], r["component"]): r["share"] for r in results["influence"]}
    shares = [r["share"] for t in results["runs"][0]["traces"] for r in t["influence"][:1]]
    assert means[FIRST, "rnn"] == pytest.approx(sum(shares) / 4)
    assert len(results["agreement"]["rows"]) == 4
    assert results["agreement"]["sentence"].startswith("The order of influence (")


def test_same_options_give_the_same_bytes_and_another_seed_does_not(whole, corpus, tmp_path):
    options = TINY | {"corpus": str(corpus)}
    compete(options, tmp_path / "again", checkpoint_every=1)
    assert saved(tmp_path / "again") == saved(whole[0])
    other = compete(options | {"seed": 3}, tmp_path / "other")
    assert other["runs"][0]["evaluations"] != whole[1]["runs"][0]["evaluations"]


TASK = {
    "task": "copy",
    "components": ("rnn", "mlp", "convolution"),
    "steps": 6,
    "hidden": 4,
    "batch": 6,
    "trace_every": 3,
    "trace_examples": 2,
    "eval_every": 2,
    "seeds": 2,
    "ablate": "cumulative",
}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """The folder and results of a competition on a task, with two seeds."""
    folder = tmp_path_factory.mktemp("task")
    return folder, compete(TASK, folder)


def test_a_task_has_scores_and_runs_for_every_seed(task):
    folder, results = task
    assert json.loads(saved(folder)) == results
    assert results["task"] == {
        "name": "copy",
        "about": "a word of four letters, again",
        "lengths": [1, 4],
        "beyond": [5, 8],
        "solved": 0.95,
    }
    assert "corpus" not in results
    runs = results["runs"]
    assert len(runs) == 2 * (1 + 3 + 2)
    assert [run["seed"] for run in runs] == [1] * 6 + [2] * 6
    assert [bool(run["traces"]) for run in runs] == [not run["absent"] for run in runs]
    for run in runs:
        assert all(0 <= e["score"] <= 1 for e in run["evaluations"])
        assert ["beyond" in e for e in run["evaluations"]] == [False, False, False, True]
    assert runs[0]["evaluations"] != runs[6]["evaluations"]


def test_the_order_of_leaving_out_is_that_of_the_traces(task):
    results = task[1]
    for seed, said in zip((1, 2), results["ablation"]["cumulative"]["orders"], strict=True):
        full = next(run for run in results["runs"] if run["seed"] == seed and not run["absent"])
        shares = dict.fromkeys(TASK["components"], 0.0)
        for trace in full["traces"]:
            for row in trace["influence"]:
                shares[row["component"]] += row["share"] if row["kind"] == FIRST else 0.0
        assert said["order"] == sorted(shares, key=lambda name: shares[name])
        left_out = {tuple(run["absent"]) for run in results["runs"] if run["seed"] == seed and len(run["absent"]) == 2}
        assert {frozenset(absent) for absent in left_out} == {
            frozenset(said["order"][:2]),
            frozenset(said["order"][1:]),
        }


def test_influence_and_agreement_are_means_over_seeds(task):
    results = task[1]
    full = [run for run in results["runs"] if not run["absent"]]
    for row in results["influence"]:
        each = [
            [
                r["share"]
                for t in run["traces"]
                for r in t["influence"]
                if (r["kind"], r["component"]) == (row["kind"], row["component"])
            ]
            for run in full
        ]
        assert row["share"] == pytest.approx(sum(sum(shares) / len(shares) for shares in each) / 2)
        assert (row["traces"], row["over_seeds"]["n"]) == (6, 2)
    for row in results["agreement"]["rows"]:
        assert row["seeds"] == 2
    assert "2 seeds" in results["agreement"]["sentence"]
    assert (
        "of 6 ablated models solved the task" in results["agreement"]["sentence"]
        or "no ablated" in results["agreement"]["sentence"]
    )


@pytest.mark.parametrize(("event", "checkpoint_every"), [(30, 100), (58, 2), (110, 3)])
def test_seeds_and_orders_survive_being_stopped(task, tmp_path, event, checkpoint_every):
    seen = []

    def stop(e):
        seen.append(e)
        if len(seen) == event:
            raise Stop

    with pytest.raises(Stop):
        compete(TASK, tmp_path, checkpoint_every=checkpoint_every, watch=stop)
    compete({}, tmp_path, resume=True)
    assert saved(tmp_path) == saved(task[0])


def test_the_command_in_the_report_gives_the_same_results(task, tmp_path):
    assert main([*shlex.split(command_of(task[1]))[1:], "--out", str(tmp_path)]) == 0
    assert saved(tmp_path) == saved(task[0])


def test_a_seed_gives_what_it_gives_alone(task, tmp_path):
    alone = compete(TASK | {"seed": 2, "seeds": 1}, tmp_path)
    both = [run for run in task[1]["runs"] if run["seed"] == 2]
    assert [run["evaluations"] for run in alone["runs"]] == [run["evaluations"] for run in both]


def test_digits_and_components_of_one_size(tmp_path):
    given = {
        "task": "digits",
        "components": ("mlp", "gru"),
        "parameters": 400,
        "steps": 2,
        "hidden": 6,
        "trace_every": 2,
    }
    results = compete(given | {"ablate": "all", "trace_examples": 2, "eval_every": 1}, tmp_path)
    full, *without = (run["parameters"] for run in results["runs"])
    own = 16 * 6 + 6 + 6 * 10 + 10  # embedding and output
    assert all(abs(n - own - 400) < 80 for n in without)
    assert full == sum(without) - own
    assert "beyond" not in results["runs"][0]["evaluations"][-1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "copying"}, "unknown task 'copying'; there are text, copy, reversal"),
        ({"task": "copy", "bptt": 5}, "--bptt is for --task text, and this is --task copy"),
        ({"task": "copy", "trace_examples": 300}, "--trace-examples must be at most 256 with this task, not 300"),
        ({"ablate": "one"}, "--ablate must be one of each, cumulative, all, not one"),
        ({"seeds": 0}, "--seeds must be from 1 to 1000, not 0"),
        ({"parameters": 3}, "rnn cannot have about 3 parameters"),
        ({"ablate": "all", "components": tuple(COMPONENTS)}, "--ablate all must be at most 6 components"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is_done(tmp_path, given, message):
    with pytest.raises(GradtraceError, match=message):
        compete(given, tmp_path / "never")
    assert not (tmp_path / "never").exists()


class Stop(Exception):
    """What ends a competition early in these tests."""


@pytest.mark.parametrize(("event", "checkpoint_every"), [(1, 1), (5, 100), (9, 3), (16, 1), (17, 100), (31, 3)])
def test_stopped_at_any_event_and_resumed(whole, corpus, tmp_path, event, checkpoint_every):
    seen = []

    def stop(e):
        seen.append(e)
        if len(seen) == event:
            raise Stop

    with pytest.raises(Stop):
        compete(TINY | {"corpus": str(corpus)}, tmp_path, checkpoint_every=checkpoint_every, watch=stop)
    torch.rand(1)  # whatever state the random generator is in by now
    # The first event comes before the first checkpoint: then nothing says what the options were.
    compete(TINY | {"corpus": str(corpus)} if event == 1 else {}, tmp_path, resume=True)
    assert saved(tmp_path) == saved(whole[0])


def test_resuming_a_finished_competition_trains_nothing(whole, corpus, tmp_path):
    before = saved(whole[0])
    events = []
    compete({}, whole[0], resume=True, watch=events.append)
    assert [e.kind for e in events] == ["resumed"]
    assert saved(whole[0]) == before


def test_resuming_where_nothing_is_begins(corpus, tmp_path, whole):
    compete(TINY | {"corpus": str(corpus)}, tmp_path / "new", resume=True)
    assert saved(tmp_path / "new") == saved(whole[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 11}, "--steps was 10, not 11"),
        ({"vocabulary": 39}, "--vocab was 40, not 39"),
        ({"components": ("rnn", "lstm")}, "--components was rnn,gru, not rnn,lstm"),
    ],
)
def test_resuming_with_other_options_is_refused(whole, change, message):
    with pytest.raises(OptionError, match=message):
        compete(change, whole[0], resume=True)


def test_resuming_with_another_text_is_refused(whole, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("some other words " * 300)
    with pytest.raises(OptionError, match=r"the text is no longer that of text\.txt"):
        compete({"corpus": str(other)}, whole[0], resume=True)


def test_resuming_with_another_version_is_refused(whole, monkeypatch):
    now = versions() | {"torch": "9.9"}
    monkeypatch.setattr("gradtrace.experiments.compete.versions", lambda: now)
    with pytest.raises(OptionError, match=r"begun with torch .*, and this is 9\.9"):
        compete({}, whole[0], resume=True)


def test_an_unfinished_competition_is_not_overwritten(corpus, tmp_path):
    options = TINY | {"corpus": str(corpus)}
    with pytest.raises(Stop):
        compete(options, tmp_path, watch=_stop_at(5))
    with pytest.raises(OptionError, match="add --resume"):
        compete(options, tmp_path)


def _stop_at(step):
    def watch(event):
        if event.step == step:
            raise Stop

    return watch


def test_a_finished_one_is(whole, corpus, tmp_path):
    options = TINY | {"corpus": str(corpus), "steps": 2}
    compete(options, tmp_path)
    compete(options | {"seed": 9}, tmp_path)
    assert json.loads(saved(tmp_path))["options"]["seed"] == 9


def test_one_component_is_traced_but_not_ablated(corpus, tmp_path):
    results = compete(TINY | {"corpus": str(corpus), "components": ("lstm",)}, tmp_path)
    assert [r["name"] for r in results["runs"]] == ["full model"]
    assert results["ablation"]["rows"] == []
    assert "only one component took part" in results["agreement"]["sentence"]
    before = saved(tmp_path)
    compete({}, tmp_path, resume=True)
    assert saved(tmp_path) == before


def test_divergence_is_one_clear_error(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("gradtrace.experiments.tasks.Task.evaluate", lambda *_: Evaluation(math.nan, 0.0))
    with pytest.raises(OptionError, match=r"training diverged before step 0.*--lr"):
        compete(TINY | {"corpus": str(corpus)}, tmp_path)


def test_tracing_leaves_training_as_it_is(whole, corpus, tmp_path):
    rarely = compete(TINY | {"corpus": str(corpus), "trace_every": 10}, tmp_path)
    assert rarely["runs"][0]["evaluations"] == whole[1]["runs"][0]["evaluations"]


def test_threads_are_given_back(corpus, tmp_path):
    before = torch.get_num_threads()
    seen = set()
    options = TINY | {"corpus": str(corpus), "threads": before + 1, "steps": 1}
    compete(options, tmp_path, watch=lambda _: seen.add(torch.get_num_threads()))
    assert (seen, torch.get_num_threads()) == ({before + 1}, before)


def test_partial_results_have_no_conclusions():
    assert conclude({"runs": [], "complete": False, "components": []})["agreement"] is None


def start(folder, corpus, *flags):
    command = [sys.executable, "-m", "gradtrace", "compete", "--out", str(folder)]
    command += ["--corpus", str(corpus), *FLAGS, "--checkpoint-every", "2", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_until(process, text):
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"ended without {text!r}: {process.stderr.read()}")


def finish(folder, corpus):
    process = start(folder, corpus, "--resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def test_killed_and_resumed_gives_the_same_bytes(whole, corpus, tmp_path):
    codes = []
    for text in ("step 3 of 10: held-out", "without rnn, step 0", "without gru, step 0"):
        process = start(tmp_path, corpus, "--resume")
        read_until(process, text)
        process.kill()
        process.communicate()
        codes.append(process.returncode)
    assert -signal.SIGKILL in codes  # a slow test may come too late for the last of them
    finish(tmp_path, corpus)
    assert saved(tmp_path) == saved(whole[0])


def test_interrupted_leaves_what_was_done_and_says_how_to_go_on(whole, corpus, tmp_path):
    for attempt in range(10):  # on a busy machine the run may be over before the signal comes
        folder = tmp_path / str(attempt)
        process = start(folder, corpus)
        read_until(process, "step 4 of 10: influence")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        if process.returncode != 0:
            break
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.count("\n") == 1
    assert f"gradtrace compete --out {folder} --resume" in errors
    done = json.loads(saved(folder))
    assert done["complete"] is False
    assert [t["step"] for t in done["runs"][0]["traces"]][:2] == [0, 4]
    finish(folder, corpus)
    assert saved(folder) == saved(whole[0])
