"""`gradtrace compete`: train, trace, ablate, compare.

The full model is trained and traced; then it is trained again without each component, or without several, from the
same initial weights and on the same batches; and all that for each seed. The work is a list of runs
(`ablation.planned_runs`), each a list of steps; a checkpoint says which run and which step, so that a killed
competition goes on to the same results as one that was not.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..api import Trace, record
from ..errors import OptionError
from ..queries.forest import FIRST, KINDS
from ..report.document import EMBEDDING, read_results, versions
from ..report.snapshot import Question, graph_of, snapshot
from .ablation import Planned, planned_runs
from .checkpoint import CHECKPOINT, RESULTS, Checkpoint, load, restore, save, write_json
from .competition import Competition
from .components import COMPONENTS, check, inner_width, label
from .corpus import Corpus, check_length, default_text, make_corpus, read_text
from .folder import owned
from .options import OF_TEXTS, Options, flag, require
from .results import conclude, new_results
from .seeds import derived_seed
from .tasks import TASKS, Streams, Task
from .training import perplexity, training_step

CHECKPOINT_EVERY = 100
PATHS = 20  # of each kind, at each traced step


@dataclass(frozen=True)
class Event:
    """Something to show: `kind` is "step", "evaluated", "tracing", "traced" or "resumed"; a trace took `seconds`."""

    kind: str
    run: str
    step: int
    steps: int
    text: str = ""
    seconds: float = 0.0


Watch = Callable[[Event], None]


@dataclass(frozen=True)
class Plan:
    """All that stays the same during a competition."""

    options: Options
    task: Task
    folder: Path
    checkpoint_every: int
    watch: Watch


def compete(
    given: Mapping[str, Any],
    folder: Path,
    *,
    resume: bool = False,
    checkpoint_every: int = CHECKPOINT_EVERY,
    watch: Watch = lambda event: None,
) -> dict[str, Any]:
    """Run a competition, or what is left of one.

    Args:
        given: fields of `Options`; the others keep their defaults, or with `resume` what they were.
        folder: where results.json and the checkpoint go.
        resume: go on from the folder's checkpoint; from the beginning if it has none, with the options given.
        checkpoint_every: steps between checkpoints; does not change the results.
        watch: called for each step and measurement.

    Returns:
        the content of results.json.

    Raises:
        OptionError: options, text or folder that it cannot run with.
    """
    if checkpoint_every < 1:
        raise OptionError(f"--checkpoint-every must be at least 1, not {checkpoint_every}")
    found = _found(folder)
    if found is not None and not resume and not is_finished(found.state):
        raise OptionError(f"{folder} holds an unfinished competition: add --resume to go on, or choose another --out")
    found = found if resume else None
    if resume and found is None and not given:
        raise OptionError(
            f"{folder} has no checkpoint to go on from, and nothing says with which options: give them again, or leave "
            "--resume out to begin with the defaults"
        )
    options = Options(**given) if found is None else same_options(given, found.state, folder)
    for name in set(options.components) - set(COMPONENTS):
        check(name, options.hidden)
    for name in options.components if options.parameters is not None else ():
        inner_width(name, options.hidden, options.parameters)
    task, corpus = _task(options, given)
    results = new_results(options, corpus)
    if found is not None:
        results = same_surroundings(found.state, results, folder)
    with owned(folder), _threads(options.threads):
        if resume and found is None:
            _refuse_to_lose(folder / RESULTS, results)
        return _run_all(Plan(options, task, folder, checkpoint_every, watch), results, found)


def _task(options: Options, given: Mapping[str, Any]) -> tuple[Task, Corpus | None]:
    """Make the task, and the text if it is one.

    Raises:
        OptionError: there is too little to learn from, or options of a text are given for another task.
    """
    if options.task == "text":
        corpus = make_corpus(read_text(options.corpus) if options.corpus else default_text(), options.vocabulary)
        check_length(corpus, options.batch, options.bptt, options.trace_examples)
        size, length = len(corpus.vocabulary), (options.bptt, options.bptt)
        return Streams("the next word", size, size, length, None, math.inf, corpus=corpus), corpus
    for name in set(given) & set(OF_TEXTS):
        raise OptionError(f"--{flag(name)} is for --task text, and this is --task {options.task}")
    task = TASKS[options.task]
    most = len(task.held_out())
    require(options.trace_examples <= most, "trace-examples", f"at most {most} with this task", options.trace_examples)
    return task, None


def _found(folder: Path) -> Checkpoint | None:
    """Read the folder's checkpoint, if there is one.

    Raises:
        OptionError: there is something else in its place.
    """
    found = load(folder / CHECKPOINT)
    if found is None:
        return None
    try:
        is_finished(found.state)
        results = found.state["results"]
        known = results["versions"]["torch"], results["runs"], found.tensors["random"]
    except (KeyError, TypeError, IndexError) as error:
        raise OptionError(f"{folder / CHECKPOINT} is not a checkpoint of gradtrace compete: no {error}") from None
    del known
    return found


def _refuse_to_lose(path: Path, fresh: Mapping[str, Any]) -> None:
    """Refuse to begin anew over the results of another competition, whose checkpoint is gone."""
    if path.exists() and read_results(path)[0].get("options") != fresh["options"]:
        raise OptionError(
            f"{path} is of a competition with other options, and its checkpoint is missing: choose another --out"
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Use so many CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_options(given: Mapping[str, Any], state: Mapping[str, Any], folder: Path) -> Options:
    """Take the options from a checkpoint.

    Raises:
        OptionError: one was given that differs.
    """
    saved = asdict(Options()) | state["options"]
    saved["components"] = tuple(saved["components"])
    for name, value in given.items():
        if name != "corpus" and saved[name] != value:
            was, now = (",".join(v) if isinstance(v, tuple) else v for v in (saved[name], value))
            raise OptionError(
                f"cannot resume {folder}: --{flag(name)} was {was}, not {now}; leave it out or choose another --out"
            )
    return Options(**saved | {"corpus": given.get("corpus", saved["corpus"])})


def same_surroundings(state: Mapping[str, Any], fresh: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Give a checkpoint's results so far, after checking that text and versions still are the same.

    Raises:
        OptionError: going on would not give what an uninterrupted competition gives.
    """
    results = state["results"]
    if "corpus" in results and results["corpus"]["sha256"] != fresh["corpus"]["sha256"]:
        raise OptionError(f"cannot resume {folder}: the text is no longer that of {results['corpus']['name']}")
    for name in ("gradtrace", "torch"):
        was, now = results["versions"][name], versions()[name]
        if was != now:
            raise OptionError(f"cannot resume {folder}: it was begun with {name} {was}, and this is {now}")
    return results


def is_finished(state: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint is that of the last step of the last run."""
    options, results = state["options"], state["results"]
    last_run = len(results["runs"]) == len(planned_runs(options, results["components"], results["runs"]))
    return last_run and state["step"] == options["steps"]


def _run_all(plan: Plan, results: dict[str, Any], found: Checkpoint | None) -> dict[str, Any]:
    """Carry out every run that is not done yet; what is left out may depend on what was traced before."""
    at = max(len(results["runs"]) - 1, 0)
    while at < len(planned := planned_runs(asdict(plan.options), results["components"], results["runs"])):
        _run(plan, results, planned[at], found)
        at, found = at + 1, None
    concluded = conclude(results | {"complete": True})
    write_json(plan.folder / RESULTS, concluded)
    return concluded


def _run(plan: Plan, results: dict[str, Any], planned: Planned, found: Checkpoint | None) -> None:
    """Train one model to the end, from a checkpoint if there is one."""
    options, seed = plan.options, planned.seed
    components = [name for name in options.components if label(name) not in planned.absent]
    model = plan.task.model(components, options.hidden, seed, options.parameters)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    torch.manual_seed(derived_seed(seed, "training"))
    if found is None:
        results["runs"].append(_new_run(options, planned, model))
        step = 0
        _measure(plan, results, model, step)
        _keep(plan, results, model, optimizer, step)
    else:
        restore(found, model, optimizer)
        step = found.state["step"]
        plan.watch(Event("resumed", results["runs"][-1]["name"], step, options.steps, f"from step {step}"))
    name = results["runs"][-1]["name"]
    while step < options.steps:
        batch = plan.task.training(seed, step, options.batch)
        model.train()
        training_step(model, optimizer, plan.task.loss(model(batch.inputs), batch))
        step += 1
        plan.watch(Event("step", name, step, options.steps))
        traced = _measure(plan, results, model, step)
        if traced or step % plan.checkpoint_every == 0 or step == options.steps:
            _keep(plan, results, model, optimizer, step)


def _new_run(options: Options, planned: Planned, model: Competition) -> dict[str, Any]:
    absent = ", ".join(planned.absent)
    name = f"without {absent}" if absent else "full model"
    return {
        "name": name if options.seeds == 1 else f"seed {planned.seed}, {name}",
        "seed": planned.seed,
        "without": absent or None,
        "absent": list(planned.absent),
        "components": list(model.components),
        "parameters": sum(p.numel() for p in model.parameters()),
        "evaluations": [],
        "traces": [],
    }


def _keep(plan: Plan, results: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    state = {"options": asdict(plan.options), "results": results, "step": step}
    save(plan.folder / CHECKPOINT, model, optimizer, state)


def _due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps


def _measure(plan: Plan, results: dict[str, Any], model: Competition, step: int) -> bool:
    """Evaluate and trace if it is time to; tell whether there was a trace."""
    options, run = plan.options, results["runs"][-1]
    traced = run["without"] is None and _due(step, options.trace_every, options.steps)
    news, seconds = {}, {}
    if _due(step, options.eval_every, options.steps):
        run["evaluations"].append(_evaluate(plan, model, step))
        news["evaluated"] = _said(run["evaluations"][-1])
    if traced:
        plan.watch(Event("tracing", run["name"], step, options.steps))
        began = time.monotonic()
        _trace(plan, results, model, step)
        gc.collect()  # a tape's calls and values hold each other, and gigabytes
        seconds["traced"] = time.monotonic() - began
        news["traced"] = _shares(run["traces"][-1]["influence"])
    if news:
        write_json(plan.folder / RESULTS, conclude(results))
    for kind, text in news.items():
        plan.watch(Event(kind, run["name"], step, options.steps, text, seconds.get(kind, 0.0)))
    return traced


def _evaluate(plan: Plan, model: nn.Module, step: int) -> dict[str, Any]:
    """Evaluate on the held-out set; a task that has a score also by it, at last beyond the lengths trained on, too."""
    task = plan.task
    model.eval()
    found = task.evaluate(model, task.held_out())
    if not math.isfinite(found.loss):
        raise OptionError(f"training diverged before step {step}: the held-out loss is {found.loss}; try a lower --lr")
    said = {
        "step": step,
        "samples": step * plan.options.batch,
        "loss": found.loss,
        "perplexity": perplexity(found.loss),
    }
    if math.isfinite(task.solved):
        said["score"] = found.score
    if task.beyond and step == plan.options.steps:
        said["beyond"] = task.evaluate(model, task.held_out(beyond=True)).score
    return said


def _said(evaluation: Mapping[str, Any]) -> str:
    if "score" in evaluation:
        return f"held-out score {evaluation['score']:.1%}, loss {evaluation['loss']:.3f}"
    return f"held-out perplexity {evaluation['perplexity']:.1f}"


def _trace(plan: Plan, results: dict[str, Any], model: Competition, step: int) -> None:
    """Trace the full model; the first time, take down its graph and prove the tape against autograd."""
    first = "graph" not in results
    trace, taken = trace_held_out(plan, model, check=first)
    if first:
        assert trace.certificate is not None
        results["graph"] = graph_of(trace)
        results["certificate"] = asdict(trace.certificate)
        results["fallbacks"] = trace.fallbacks
    results["runs"][-1]["traces"].append({"step": step} | taken)


def trace_held_out(plan: Plan, model: Competition, *, check: bool = False) -> tuple[Trace, dict[str, Any]]:
    """Trace held-out examples, each on its own: influence, flows and paths of the embedding."""
    options = plan.options
    batch = plan.task.traced(options.trace_examples)
    model.eval()
    with torch.random.fork_rng(devices=[]), record(model, examples=(batch.inputs, batch.targets)) as tape:
        loss = plan.task.loss(model(batch.inputs), batch)
    trace = tape.trace(loss, check=check)
    tokens = plan.task.written(batch)
    groups = {EMBEDDING: EMBEDDING}
    only = (EMBEDDING,)
    question = Question(
        groups, model.components, KINDS, paths=PATHS, each=0, tokens=tokens, only=only, joins=0, cover=0
    )
    taken = snapshot(trace, question)
    taken["influence"] = [{k: v for k, v in row.items() if k != "of"} for row in taken["influence"]]
    return trace, taken


def _shares(rows: list[dict[str, Any]]) -> str:
    return "influence " + ", ".join(f"{r['component']} {r['share']:.0%}" for r in rows if r["kind"] == FIRST)
