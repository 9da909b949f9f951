"""The command line. Errors are one line on stderr and exit code 2; Ctrl-C is exit code 130."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from . import __version__, gallery
from .api import Trace
from .errors import GradtraceError, OptionError
from .experiments.checkpoint import CHECKPOINT, RESULTS, write_json, write_whole
from .experiments.compete import CHECKPOINT_EVERY, Event, compete
from .experiments.components import COMPONENTS
from .experiments.folder import PAGE, owned
from .experiments.options import ABLATIONS, Options
from .experiments.study import Progress, Share, StudyOptions, study
from .experiments.study_analysis import analyse
from .experiments.tasks import TASKS
from .experiments.user_code import describe
from .experiments.user_model import Question, first_estimate, first_trace, load_subject, trace_subject
from .queries.arguments import file_of
from .queries.forest import FIRST, KINDS
from .report.document import MEASURED, of_results, peak_memory
from .report.page import render
from .report.show import show
from .report.terminal import Screen, plain, said, show_answer, show_competition, show_findings, show_trace
from .saved import compare as compare_files
from .saved import document_of
from .semirings import FORMS

MOST_ROWS = 12  # of a table that says what a semiring says

TOP = """\
Where does the gradient go? gradtrace runs backpropagation under the (max, ×) semiring:
for every parameter it finds the path through which most gradient reaches it, and which
components those paths cross.

  gradtrace compete                   competing components in one model, on text or a task
  gradtrace study                     the same of random architectures: does the trace tell what matters?
  gradtrace trace train.py:build      a model of your own
  gradtrace why train.py:build        why its parameters get no gradient
  gradtrace layers train.py:build     a table of its modules
  gradtrace report results.json       an interactive page of the results of either
  gradtrace show results.json         the same in the terminal
  gradtrace compare before after      what moved from one of these to another
  gradtrace gallery                   what backpropagation is, in programs that run
"""

REPORT = """\
Write the results of gradtrace compete or gradtrace trace, the history of a monitor, or a saved trace
as one HTML file that opens offline: which components carry the gradient, how that changed, and what
the strongest paths are. The commands write it themselves; this one does it again, from the file alone.

examples:
  gradtrace report gradtrace-trace/results.json                    report.html beside it
  gradtrace report run/results.json --out page.html
  gradtrace report gradtrace-monitor/history.jsonl                 while the training goes on
  gradtrace report step200.gradtrace                               what trace.save(path) has written
"""

SHOW = """\
Print the results of gradtrace compete or gradtrace trace, the history of a monitor, or a saved trace
as tables, and what changed as sparklines: what two screens hold, what was found last.

examples:
  gradtrace show gradtrace-compete/results.json
  gradtrace show run/results.json --all | less
  gradtrace show gradtrace-monitor/history.jsonl
  gradtrace show step200.gradtrace
"""

COMPARE = """\
Say what moved from one trace to another: the shares of components, the parameters without a path, the
strongest path of each parameter. Numbers are matched by name, the largest change first; names that one
of the two alone has are listed.

BEFORE and AFTER are files of any of these kinds, of one model or of two that share names:
  a saved trace        trace.save(path), or gradtrace trace … --save FILE
  results.json         of gradtrace trace or gradtrace compete
  history.jsonl        of a monitor; history.jsonl@200 is its trace at step 200, without a step the last

A saved trace is asked what the other file says. A change says that numbers differ, not why: another batch
differs too, so compare traces of the same examples, or several of each.

examples:
  gradtrace compare before.gradtrace after.gradtrace
  gradtrace compare gradtrace-monitor/history.jsonl@0 gradtrace-monitor/history.jsonl
  gradtrace compare relu/results.json gelu/results.json --out compared.html
"""

GALLERY = """\
Run one of the programs of the gallery, or list them: worked examples, figures and exercises of the texts that
gradtrace implements, each with a number that it checks.

examples:
  gradtrace gallery
  gradtrace gallery figure_11_1
  gradtrace gallery figure_11_1 --picture figure.svg
"""

COMPETE = """\
Train a model in which components compete on the same embeddings, and trace held-out examples
as it learns; then train it again without each component, and say whether influence foretold
the damage. It learns the next word of a text, or a task with sequences drawn at random.

examples:
  gradtrace compete                                       three to four minutes on two cores
  gradtrace compete --components rnn,lstm,gru,attention   four competitors
  gradtrace compete --components rnn,mine.py:Conv         one of your own: a class or function
  gradtrace compete --task reversal --hidden 16 --components lstm,stack_rnn,neural_queue
  gradtrace compete --ablate cumulative --seeds 3         with intervals, five times as long
  gradtrace compete --corpus ptb.train.txt --out ptb      any UTF-8 text, or Penn Treebank
  gradtrace compete --out ptb --resume                    go on after Ctrl-C or a crash
  gradtrace compete --steps 60 --hidden 16 --trace-every 30 --out try       a first look

A component of your own is called with the width, and gives a torch.nn.Module from batch × time ×
width to the same shape (or a tuple that begins with it) in which no step sees a later one.

  # mine.py
  import torch
  from torch import nn

  class Conv(nn.Module):
      def __init__(self, width):
          super().__init__()
          self.conv = nn.Conv1d(width, width, 3)

      def forward(self, x):                                   # looks back, never ahead
          return self.conv(nn.functional.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)

--ablate each leaves out one component at a time; cumulative also the least influential, then
the next as well, and so on, and the most influential first beside it; all, every set of them.

Writes results.json, report.html and checkpoint.safetensors to the folder. A competition that was
killed and resumed gives the same results.json as one that was not.
"""

STUDY = """\
Does what a trace says of a component foretell what training without it does? Draws architectures at
random, trains every set of their components, traces the full networks as they learn, and compares.

examples:
  gradtrace study                                          five minutes: too few to conclude anything from
  gradtrace study --architectures 300 --seeds 2 --out big  hours; the same command goes on after a kill
  gradtrace study --architectures 300 --share 1/2 --out big            one of two processes
  torchrun --nproc-per-node 2 -m gradtrace study --architectures 300   the same, by rank
  gradtrace study --analyse big/study.jsonl                the tables again, without training

Writes study.jsonl to the folder (docs/study.md describes it), study.md, study.html and, where matplotlib
is installed, figures.
"""

TRACE = """\
Trace a model of your own: which components do the paths from its parameters cross?

FUNCTION takes no arguments and returns (model, batches, loss function):
  model          a torch.nn.Module, in the mode (train or eval) that is to be traced
  batches        an iterable of batches: a tensor, or tensors in a tuple, list or dict;
                 those whose first dimension is that of the first tensor hold the examples
  loss function  called as loss(model, batch): runs the model, gives a scalar tensor
and, if there are words, as a fourth a function that is called as words(batch) and gives
a list of words for each example, all equally long, for the report.

  # train.py
  import torch
  from torch import nn

  def build():
      model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
      batches = [(torch.randn(32, 8), torch.randn(32, 1))]
      return model, batches, lambda model, batch: (model(batch[0]) - batch[1]).square().mean()

examples:
  gradtrace trace train.py:build                    outermost modules, all parameters
  gradtrace trace train.py:build --kind best        strongest paths, not the gradient's
  gradtrace trace train.py:build --batches 10       average over ten batches
  gradtrace trace train.py:build --estimate         what time and memory that will take, first
  gradtrace trace train.py:build --check            prove the tape against autograd first
  gradtrace trace train.py:build --signed           each branch's part of the gradient, too
  gradtrace trace train.py:build --semiring entropy,power:8,graded
  gradtrace trace my.package.train:build --of "embedding*" --components encoder,decoder
  gradtrace trace train.py:build --save step0.gradtrace       to ask later, and to compare

Writes results.json and report.html to the folder. The strongest paths shown are always the best ones.
"""


WHY = """\
Say why a parameter of a model of your own gets no gradient, or next to none: frozen, unused, cut off by
detach or no_grad, a derivative that is 0, NaN, cancelled, vanished, and where in the code.

FUNCTION is that of gradtrace trace; its first batch is traced. Without NAME every parameter is asked about
whose gradient is not healthy.

examples:
  gradtrace why train.py:build encoder.3.bias
  gradtrace why train.py:build
"""

LAYERS = """\
Tabulate the modules of a model of your own: the gradient of their parameters, the strongest path from them, how
many of their parameters and of their results' scalars are dead, entropy, and powers of two gained or lost.

FUNCTION is that of gradtrace trace; its first batch is traced. docs/why.md explains the columns.

examples:
  gradtrace layers train.py:build
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where to look."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit code."""
    given = parser().parse_args(arguments)
    try:
        given.run(given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _stop(130, given.stopped(given))
    except BrokenPipeError:  # whoever read along has seen enough
        _discard_output()
        return 0
    except Exception as error:
        if given.traceback:
            traceback.print_exception(error)
        return _stop(2, error if isinstance(error, GradtraceError) else _unforeseen(error))
    return 0


def _unforeseen(error: Exception) -> str:
    """Put an error that is none of ours on one line."""
    if isinstance(error, OSError):
        _discard_output()
        return f"cannot write: {error.strerror or error}"
    return f"{describe(error)}; --traceback shows all of it"


def _discard_output() -> None:
    """Keep Python from failing once more, at its end, over what could not be written."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(code: int, message: object) -> int:
    print("gradtrace:", " ".join(str(message).split()), file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = Parser("gradtrace", description=TOP, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"gradtrace {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _add_compete(commands)
    _add_study(commands)
    _add_trace(commands)
    _add_why(commands)
    _add_layers(commands)
    _add_report(commands)
    _add_show(commands)
    _add_compare(commands)
    _add_gallery(commands)
    for command in commands.choices.values():
        command.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    return top


def _command(commands: Any, name: str, short: str, text: str) -> argparse.ArgumentParser:
    """Add a command: `short` is its line in the list of commands, `text` its own help."""
    return commands.add_parser(name, help=short, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def _add_target(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "target", metavar="MODULE:FUNCTION", help="a dotted module, or the path of a .py file, and a function in it"
    )


def _add_compete(commands: Any) -> None:
    command = _command(commands, "compete", "competing components in one model: train, trace, ablate", COMPETE)
    default = Options()
    add = command.add_argument
    names = ",".join(default.components)
    tasks = "; ".join(f"{name}, {task.about}" for name, task in TASKS.items())
    add("--task", metavar="NAME", help=f"what is learned (default {default.task}): {tasks}")
    of = f"of {', '.join(COMPONENTS)}, and FILE.py:NAME of your own (default {names})"
    add("--components", type=names_of, metavar="A,B,…", help=of)
    add("--ablate", metavar="|".join(ABLATIONS), help=f"what is left out in turn (default {default.ablate})")
    add("--corpus", metavar="FILE", help="UTF-8 text (default: the language reference in CPython's help())")
    for name, text in {
        "seed": "decides initial weights and what is trained on",
        "seeds": "do it with so many seeds, from --seed on",
        "steps": "training steps of each model",
        "hidden": "width of the embedding and of each component",
        "bptt": "words of a text in a window: the length of backpropagation through time",
        "batch": "sequences in a step",
        "trace-every": "steps between traces",
        "trace-examples": "held-out sequences to trace",
        "eval-every": "steps between evaluations on the held-out set",
        "vocab": "the most frequent words of a text to know, rest <unk>",
        "threads": "CPU threads; more pay from a width of some hundreds on",
    }.items():
        field = {"vocab": "vocabulary"}.get(name, name.replace("-", "_"))
        add(f"--{name}", dest=field, type=int, metavar="N", help=f"{text} (default {getattr(default, field)})")
    add("--parameters", type=int, metavar="N", help="give every component about as many (default: what --hidden makes)")
    add("--lr", type=float, metavar="X", help=f"Adam's learning rate (default {default.lr})")
    add(
        "--checkpoint-every",
        type=int,
        metavar="N",
        default=CHECKPOINT_EVERY,
        help=f"steps between checkpoints (default {CHECKPOINT_EVERY})",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("gradtrace-compete"),
        help="folder (default %(default)s)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on from the folder's checkpoint, with the options it was begun with",
    )
    command.set_defaults(run=run_compete, stopped=how_to_resume)


def _add_study(commands: Any) -> None:
    command = _command(commands, "study", "random architectures: does the trace tell what matters?", STUDY)
    default = StudyOptions()
    add = command.add_argument
    add("--components", type=names_of, metavar="A,B,…", help=f"to draw from (default {','.join(default.components)})")
    add("--tasks", type=names_of, metavar="A,B,…", help=f"of {', '.join(TASKS)} (default: all but text)")
    for name, text in {
        "architectures": "how many, half of them in parallel and half grown",
        "seeds": "of each architecture",
        "count": "components in an architecture",
        "hidden": "width of everything",
        "steps": "training steps",
        "batch": "samples in a step",
        "eval-every": "steps between evaluations",
        "held-out": "examples in an evaluation",
        "traces": "how often the full network is traced",
        "trace-examples": "examples in a trace",
        "seed": "decides the architectures",
    }.items():
        field = name.replace("-", "_")
        add(f"--{name}", dest=field, type=int, metavar="N", help=f"{text} (default {getattr(default, field)})")
    add("--lr", type=float, metavar="X", help=f"Adam's learning rate (default {default.lr})")
    add("--compile", action="store_true", default=None, help="train faster with torch.compile; needs a C++ compiler")
    add("--share", metavar="I/N", help="do the I-th of N shares (default: by torchrun's rank, or all)")
    add("--out", type=Path, metavar="DIR", default=Path("gradtrace-study"), help="folder (default %(default)s)")
    add("--analyse", type=Path, metavar="FILE", help="train nothing: tables and figures from study.jsonl, or a folder")
    add("--into", type=Path, metavar="FILE.md", help="with --analyse: put the tables between the marks in this page")
    command.set_defaults(run=run_study, stopped=lambda given: "stopped; the same command goes on")


def _add_trace(commands: Any) -> None:
    command = _command(commands, "trace", "components by influence, and strongest paths, of your own model", TRACE)
    add = command.add_argument
    _add_target(command)
    add("--of", default="*", metavar="GLOB", help="the parameters whose paths are traced (default: all)")
    add("--components", type=names_of, metavar="A,B,…", help="module names, globs or call instances such as rnn:2 "
        "(default: the outermost modules)")  # fmt: skip
    add("--kind", choices=KINDS, default=FIRST, help="argmax of weight times gradient at each step, or strongest "
        "path (default %(default)s)")  # fmt: skip
    add("--batches", type=int, default=1, metavar="N", help="how many batches to trace (default %(default)s)")
    add(
        "--paths",
        type=int,
        default=3,
        metavar="K",
        help="how many strongest paths to show (default %(default)s)",
    )
    add("--estimate", action="store_true", help="say what time and memory questions will take, and ask none")
    add("--check", action="store_true", help="compare the tape's own gradient with autograd's first")
    add("--signed", action="store_true", help="tell of each branch its part of the gradient, too: a walk for each join")
    add("--semiring", type=names_of, default=(), metavar="A,B,…", help="what else to ask, in one more pass: "
        + ", ".join(FORMS))  # fmt: skip
    add(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("gradtrace-trace"),
        help="folder (default %(default)s)",
    )
    add("--save", type=Path, metavar="FILE", help="keep the first batch's trace, to report, show or compare it")
    command.set_defaults(run=run_trace, stopped=lambda given: "stopped")


def _add_why(commands: Any) -> None:
    command = _command(commands, "why", "why a parameter gets no gradient, or next to none", WHY)
    _add_target(command)
    command.add_argument("names", metavar="NAME", nargs="*", help="parameters (default: all that are not healthy)")
    command.set_defaults(run=run_why, stopped=lambda given: "stopped")


def _add_layers(commands: Any) -> None:
    command = _command(commands, "layers", "one row a module: gradient, strongest path, what is dead", LAYERS)
    _add_target(command)
    command.set_defaults(run=run_layers, stopped=lambda given: "stopped")


def _add_report(commands: Any) -> None:
    command = _command(commands, "report", "results, or a saved trace, as one HTML file", REPORT)
    command.add_argument("results", type=Path, metavar="FILE")
    command.add_argument("--out", type=Path, metavar="FILE", help="where to (default: report.html beside it)")
    command.set_defaults(run=run_report, stopped=lambda given: "stopped")


def _add_show(commands: Any) -> None:
    command = _command(commands, "show", "results, or a saved trace, in the terminal", SHOW)
    command.add_argument("results", type=Path, metavar="FILE")
    command.add_argument("--all", action="store_true", help="all that the page shows, not two screens of it")
    command.set_defaults(run=run_show, stopped=lambda given: "stopped")


def _add_compare(commands: Any) -> None:
    command = _command(commands, "compare", "what moved from one trace, step or run to another", COMPARE)
    command.add_argument("before", metavar="BEFORE")
    command.add_argument("after", metavar="AFTER")
    command.add_argument("--most", type=int, default=12, metavar="N", help="rows of a table (default %(default)s)")
    command.add_argument("--out", type=Path, metavar="FILE", help="write a page, too: one HTML file")
    command.set_defaults(run=run_compare, stopped=lambda given: "stopped")


def _add_gallery(commands: Any) -> None:
    command = _command(commands, "gallery", "worked examples, to read and to run", GALLERY)
    command.add_argument("name", nargs="?", metavar="NAME", help="which (default: list them)")
    command.add_argument("--picture", metavar="FILE", help="where to draw its picture: .svg, .png or .pdf")
    command.set_defaults(run=run_gallery, stopped=lambda given: "stopped")


def names_of(text: str) -> tuple[str, ...]:
    """Split a list of names at its commas."""
    return tuple(name.strip() for name in text.split(",")) if text.strip() else ()


def run_compete(given: argparse.Namespace) -> None:
    """Run `gradtrace compete`."""
    fields = Options.__dataclass_fields__
    options = {name: value for name, value in vars(given).items() if name in fields and value is not None}
    console = Console()
    began, traces = time.monotonic(), []
    with Screen(console) as screen:
        screen.doing("reading the text" if given.task in (None, "text") else "preparing the task")

        def watch(event: Event) -> None:
            screen.doing("tracing held-out examples" if event.kind == "tracing" and console.is_terminal else None)
            if event.kind == "tracing":
                return
            screen.show(event.run, event.step, event.steps, event.text)
            if event.kind == "traced":
                traces.append(event.seconds)

        results = compete(options, given.out, resume=given.resume, checkpoint_every=given.checkpoint_every, watch=watch)
    show_competition(results, console)
    seconds = time.monotonic() - began
    if traces:
        several = f"{len(traces)} traces" if len(traces) > 1 else "One trace"
        plain(console, f"\n{several}, best and greedy, took {sum(traces) / seconds:.0%} of {seconds:.0f} s.")
    _finish(given.out, results, {"seconds": round(seconds, 1), "tracing_seconds": round(sum(traces), 1)}, console)


def run_study(given: argparse.Namespace) -> None:
    """Run `gradtrace study`."""
    console, place = Console(), given.analyse
    if given.into is not None and place is None:
        raise OptionError("--into needs --analyse: it says where the tables of results go")
    if place is None:
        fields = StudyOptions.__dataclass_fields__
        options = StudyOptions(**{k: v for k, v in vars(given).items() if k in fields and v is not None})
        with Screen(console) as screen:
            place = study(options, given.out, Share.named(given.share), lambda p: _show_unit(screen, p))
    plain(console, analyse(place, given.into))


def _show_unit(screen: Screen, progress: Progress) -> None:
    """Show how far a share is; a unit's name is a line where there are no bars."""
    begins = progress.step == 0
    screen.show("units", progress.done, progress.units, progress.unit if begins else "")
    if screen.console.is_terminal:
        screen.show("steps of one", progress.step, progress.steps)


def _finish(folder: Path, results: dict[str, Any], measured: dict[str, Any], console: Console) -> None:
    """Write what was measured, and the page; print where they are, the page last."""
    measured |= {"peak_memory": peak_memory()}
    write_json(folder / MEASURED, measured)
    page = write_page(folder / PAGE, of_results(results, measured))
    plain(console, f"\nWritten to {folder / RESULTS}\nReport: {page}")


def write_page(path: Path, document: dict[str, Any]) -> Path:
    """Write the page of a document.

    Raises:
        OptionError: the file cannot be written.
    """
    page = render(document)
    write_whole(path, lambda beside: beside.write_text(page, encoding="utf-8"))
    return path


def run_report(given: argparse.Namespace) -> None:
    """Run `gradtrace report`."""
    page = write_page(given.out or given.results.with_name(PAGE), document_of(given.results))
    plain(Console(), f"Report: {page}")


def run_show(given: argparse.Namespace) -> None:
    """Run `gradtrace show`."""
    show(document_of(given.results), Console(), whole=given.all)


def run_compare(given: argparse.Namespace) -> None:
    """Run `gradtrace compare`."""
    if given.most < 1:
        raise OptionError(f"--most must be at least 1, not {given.most}")
    found = compare_files(given.before, given.after)
    found.show(Console(), given.most)
    if given.out is not None:
        write_whole(given.out, lambda beside: beside.write_text(found.page(), encoding="utf-8"))
        plain(Console(), f"\nReport: {given.out}")


def run_gallery(given: argparse.Namespace) -> None:
    """Run `gradtrace gallery`."""
    if given.name is not None:
        gallery.run(given.name, given.picture)
        return
    console = Console()
    for program in gallery.programs().values():
        said(console, program.title, f"{program.name:22}")


def run_why(given: argparse.Namespace) -> None:
    """Run `gradtrace why`."""
    with Screen(Console(stderr=True), lines=False) as screen:
        trace = _traced(given.target, screen)
        names = given.names or [*trace.tape.leaves, *sorted(trace.tape.record.frozen)]
        found = [trace.why(name) for name in screen.track("reasons", names)]
    shown = [why for why in found if given.names or why.cause != "healthy"]
    console = Console()
    for why in shown:  # a file gets whole lines
        (partial(said, hang=4) if console.is_terminal else plain)(console, str(why))
    if not shown:
        plain(Console(), f"all {len(found)} parameters get a gradient")


def run_layers(given: argparse.Namespace) -> None:
    """Run `gradtrace layers`."""
    with Screen(Console(stderr=True), lines=False) as screen:
        trace = _traced(given.target, screen)
        screen.doing("gradients, entropy, dead units")
        table = trace.layers()
    plain(Console(), str(table))


def _traced(target: str, screen: Screen) -> Trace:
    """Trace a model of the user's own, and say meanwhile what is done."""
    screen.doing(f"reading {target}")
    return first_trace(target, load_subject(target), screen.doing, screen.track)


def how_to_resume(given: argparse.Namespace) -> str:
    """Tell what an interrupted competition leaves, and how to go on."""
    if not (given.out / CHECKPOINT).exists():
        return "stopped before anything was done"
    again = shlex.join(["gradtrace", "compete", "--out", str(given.out), "--resume"])
    return f"stopped; {given.out / RESULTS} has what was done; go on with: {again}"


def run_trace(given: argparse.Namespace) -> None:
    """Run `gradtrace trace`."""
    question = Question(
        given.components, given.of, given.kind, given.batches, given.paths, given.check, given.semiring, given.signed
    )
    console = Console()
    if given.save is not None:
        file_of(given.save)  # or say so before anything is traced
    if given.estimate:
        with Screen(Console(stderr=True), lines=False) as screen:
            screen.doing(f"reading {given.target}")
            found = first_estimate(given.target, load_subject(given.target), question)
        plain(console, str(found))
        return
    with Screen(console) as screen:
        screen.doing(f"reading {given.target}")
        subject = load_subject(given.target)
    with owned(given.out):
        began = time.monotonic()
        with Screen(console) as screen:
            results = trace_subject(given.target, subject, question, screen.doing, given.save, screen.track)
        write_json(given.out / RESULTS, results)
        show_trace(results, console)
        for answer in results["semirings"]:
            show_answer(answer, console, MOST_ROWS, batches=given.batches)
        show_findings(results, console)  # last, so that it stays on the screen
        _finish(given.out, results, {"seconds": round(time.monotonic() - began, 1)}, console)
