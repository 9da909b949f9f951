"""`gradtrace compete`: train, trace, ablate, compare.

The full model is trained and traced; then it is trained again without each component, from the same initial
weights and on the same windows. The work is a list of runs, each a list of steps; a checkpoint says which run
and which step, so that a killed competition goes on to the same results as one that was not.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..api import Trace, record
from ..report.document import EMBEDDING, read_results, versions
from ..report.snapshot import Question, graph_of, snapshot
from .checkpoint import CHECKPOINT, RESULTS, Checkpoint, load, restore, save, write_json
from .competition import Competition, derived_seed, next_word_loss
from .corpus import Corpus, check_length, default_text, make_corpus, read_text
from .folder import owned
from .options import OptionError, Options, flag
from .results import KINDS, conclude, new_results
from .training import perplexity, traced_windows, training_step, training_window, validation_loss

CHECKPOINT_EVERY = 100
PATHS = 20  # of each kind, at each traced step


@dataclass(frozen=True)
class Event:
    """Something to show: `kind` is "step", "evaluated", "traced" or "resumed"; `seconds` is what a trace took."""

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
    corpus: Corpus
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
    corpus = make_corpus(read_text(options.corpus) if options.corpus else default_text(), options.vocabulary)
    check_length(corpus, options.batch, options.bptt, options.trace_examples)
    results = new_results(options, corpus)
    if found is not None:
        results = same_surroundings(found.state, results, folder)
    with owned(folder), _threads(options.threads):
        if resume and found is None:
            _refuse_to_lose(folder / RESULTS, results)
        return _run_all(Plan(options, corpus, folder, checkpoint_every, watch), results, found)


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
        known = results["versions"]["torch"], results["corpus"]["sha256"], found.tensors["random"]
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
    saved = dict(state["options"])
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
    if results["corpus"]["sha256"] != fresh["corpus"]["sha256"]:
        raise OptionError(f"cannot resume {folder}: the text is no longer that of {results['corpus']['name']}")
    for name in ("gradtrace", "torch"):
        was, now = results["versions"][name], versions()[name]
        if was != now:
            raise OptionError(f"cannot resume {folder}: it was begun with {name} {was}, and this is {now}")
    return results


def planned_runs(components: Sequence[str]) -> list[str | None]:
    """List the runs by the component that they go without; the full model, None, comes first."""
    # Without its only component a model would have no way from the words to the output.
    return [None, *components] if len(components) > 1 else [None]


def is_finished(state: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint is that of the last step of the last run."""
    options = state["options"]
    last_run = len(state["results"]["runs"]) == len(planned_runs(options["components"]))
    return last_run and state["step"] == options["steps"]


def _run_all(plan: Plan, results: dict[str, Any], found: Checkpoint | None) -> dict[str, Any]:
    """Carry out every run that is not done yet."""
    first = max(len(results["runs"]) - 1, 0)
    absent = planned_runs(plan.options.components)
    for i in range(first, len(absent)):
        _run(plan, results, absent[i], found if i == first else None)
    concluded = conclude(results | {"complete": True})
    write_json(plan.folder / RESULTS, concluded)
    return concluded


def _run(plan: Plan, results: dict[str, Any], without: str | None, found: Checkpoint | None) -> None:
    """Train one model to the end, from a checkpoint if there is one."""
    options = plan.options
    components = [n for n in options.components if n != without]
    model = Competition(components, len(plan.corpus.vocabulary), options.hidden, options.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    torch.manual_seed(derived_seed(options.seed, "training"))
    if found is None:
        parameters = sum(p.numel() for p in model.parameters())
        run = {"name": f"without {without}" if without else "full model", "without": without}
        run |= {"components": components, "parameters": parameters, "evaluations": [], "traces": []}
        results["runs"].append(run)
        step = 0
        _measure(plan, results, model, step)
        _keep(plan, results, model, optimizer, step)
    else:
        restore(found, model, optimizer)
        run, step = results["runs"][-1], found.state["step"]
        plan.watch(Event("resumed", run["name"], step, options.steps, f"from step {step}"))
    while step < options.steps:
        words = training_window(plan.corpus.training, step, options.batch, options.bptt, options.seed)
        training_step(model, optimizer, *words)
        step += 1
        plan.watch(Event("step", run["name"], step, options.steps))
        traced = _measure(plan, results, model, step)
        if traced or step % plan.checkpoint_every == 0 or step == options.steps:
            _keep(plan, results, model, optimizer, step)


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
        news["evaluated"] = f"held-out perplexity {run['evaluations'][-1]['perplexity']:.1f}"
    if traced:
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
    loss = validation_loss(model, plan.corpus.held_out, plan.options.bptt)
    if not math.isfinite(loss):
        raise OptionError(f"training diverged before step {step}: the held-out loss is {loss}; try a lower --lr")
    return {"step": step, "samples": step * plan.options.batch, "loss": loss, "perplexity": perplexity(loss)}


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
    words, targets = traced_windows(plan.corpus.held_out, options.bptt, options.trace_examples)
    model.eval()
    with torch.random.fork_rng(devices=[]), record(model, examples=(words, targets)) as tape:
        loss = next_word_loss(model, words, targets)
    trace = tape.trace(loss, check=check)
    tokens = [[plan.corpus.vocabulary[i] for i in row] for row in words.tolist()]
    groups = {EMBEDDING: EMBEDDING}
    only = (EMBEDDING,)
    question = Question(groups, model.components, KINDS, paths=PATHS, each=0, tokens=tokens, only=only, joins=0)
    taken = snapshot(trace, question)
    taken["influence"] = [{k: v for k, v in row.items() if k != "of"} for row in taken["influence"]]
    return trace, taken


def _shares(rows: list[dict[str, Any]]) -> str:
    return "influence " + ", ".join(f"{r['component']} {r['share']:.0%}" for r in rows if r["kind"] == "best")
