"""Put questions to a program with and without examples, and say which answers are wrong.

A cell is one question, put to one recording of one program. It is right if it gives an answer or a `GradtraceError`.
Anything else is wrong: another exception, a warning, an answer about the batch that is another one with examples than
without, an example's answer that is not that of the example alone, and examples that are connected by no named call.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

import torch
from matrix.questions import BY_EXAMPLE, QUESTIONS, Asked, Question, same
from matrix.subjects import APART, CONNECTED, SEED, Program, Subject
from torch import Tensor

from gradtrace import GradtraceError, record
from gradtrace.errors import CertificateError

PATIENCE = 120  # seconds for one cell; more is a hang
MOST_EXAMPLES = 3  # that are traced alone


@dataclass
class Tally:
    """What became of the cells: counts of outcomes, cells left out by reason, comparisons, and what is wrong."""

    cells: Counter[str] = field(default_factory=Counter)  # answered, refused, wrong
    left_out: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    slow: dict[str, float] = field(default_factory=dict)  # seconds by question
    programs: int = 0
    wrong: list[str] = field(default_factory=list)

    def __iadd__(self, other: Tally) -> Tally:
        for counter in ("cells", "left_out", "compared", "refusals"):
            getattr(self, counter).update(getattr(other, counter))
        for name, seconds in other.slow.items():
            self.slow[name] = self.slow.get(name, 0.0) + seconds
        self.programs += other.programs
        self.wrong += other.wrong
        return self

    def report(self) -> str:
        """List what is wrong, one line a cell."""
        return "\n".join([f"{len(self.wrong)} cells are wrong:", *self.wrong])

    def lines(self) -> list[str]:
        """Say what there was: cells and their outcomes, comparisons, and what was left out."""
        cells, seconds = ", ".join(f"{n} {what}" for what, n in self.cells.most_common()), sum(self.slow.values())
        out = [f"{sum(self.cells.values())} cells of {self.programs} programs in {seconds:.0f} s: {cells}"]
        out += [f"compared {n} times: {what}" for what, n in self.compared.most_common()]
        out += [f"left out {n} cells: {why}" for why, n in self.left_out.most_common()]
        slow = sorted(self.slow.items(), key=lambda item: -item[1])[:6]
        return [*out, "slowest: " + ", ".join(f"{name} {spent:.0f} s" for name, spent in slow)]


class Hang(BaseException):
    """A cell took too long."""


class Wrong:
    """The answer of a cell that has none: what it is instead, in words."""

    def __init__(self, words: str) -> None:
        self.words = words


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(f: Callable[[], Any], expected: Sequence[str] = ()) -> Any:
    """Give an answer, a `GradtraceError`, or `Wrong`; `expected` are warnings that the program itself gives."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            with patience(PATIENCE):
                answer = f()
        except CertificateError as error:  # the tape's gradient is not autograd's: no refusal
            return Wrong(f"CertificateError: {error}")
        except GradtraceError as error:
            answer = error
        except Hang:
            return Wrong(f"no end in {PATIENCE} s")
        except Exception as error:
            return Wrong(f"{type(error).__name__}: {str(error)[:300]}{_where(error)}")
    unexpected = [str(w.message)[:200] for w in seen if str(w.message) not in expected]
    return Wrong(f"warns: {unexpected[0]}") if unexpected else answer


def _where(error: Exception) -> str:
    """Name the innermost frame of the library that an exception went through."""
    found, tb = "", error.__traceback__
    while tb is not None:
        file = tb.tb_frame.f_code.co_filename
        if "/gradtrace/" in file:
            found = f" ({'/'.join(File(file).parts[-2:])}:{tb.tb_lineno})"
        tb = tb.tb_next
    return found


def own_warnings(program: Program) -> list[str]:
    """Run a program without recording it, and give its own warnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.manual_seed(SEED)
        loss = program.loss()
        if loss.requires_grad:
            loss.backward()
    return [str(w.message) for w in seen]


def recorded(program: Program, folder: File, examples: bool, part: int | None = None) -> Asked:
    """Record a program, or the part of its loss that is one example's."""
    given = program.examples if examples else None
    torch.manual_seed(SEED)
    with record(program.model, names=program.names, examples=given) as tape:
        if part is None:
            loss = program.loss()
        else:
            assert program.alone is not None
            loss = program.alone(part)
    return Asked(program.model, tape, loss, folder)


def judge(
    subject: Subject,
    training: bool,
    dtype: torch.dtype,
    folder: File,
    questions: Sequence[Question] = QUESTIONS,
    by_example: Sequence[Question] = BY_EXAMPLE,
) -> Tally:
    """Put every question to a subject in one mode and one precision."""
    case = _Case(subject, training, dtype, folder)
    case.tally.programs += 1
    without = case.recording(examples=False)
    plain = case.answers(without, questions, "") if without is not None else {}
    if case.program().examples is None:
        case.tally.left_out["no tensor of examples"] += len(questions) + len(by_example)
        return case.tally
    given = case.recording(examples=True)
    if given is not None:
        answers = case.answers(given, questions, "with examples, ")
        case.batch(questions, plain, answers)
        case.by_example(given, case.answers(given, by_example, "with examples, "))
    return case.tally


class _Case:
    def __init__(self, subject: Subject, training: bool, dtype: torch.dtype, folder: File) -> None:
        self.subject, self.training, self.dtype, self.folder = subject, training, dtype, folder
        self.tally = Tally()
        self.expected = own_warnings(self.program())

    def program(self) -> Program:
        return self.subject.build(self.training, self.dtype)

    def wrong(self, what: str, words: str) -> None:
        mode = ("train " if self.training else "eval ") if self.subject.modal else ""
        self.tally.wrong.append(f"{self.subject.name}, {mode}{str(self.dtype)[6:]}, {what}: {words}")

    def recording(self, examples: bool, part: int | None = None) -> Asked | None:
        """Record once; a refusal then is one cell."""
        made = attempt(lambda: recorded(self.program(), self.folder, examples, part), self.expected)
        if isinstance(made, Asked):
            return made
        self.count("recording", made, "with examples, " if examples else "")
        return None

    def count(self, name: str, answer: Any, prefix: str) -> None:
        if isinstance(answer, Wrong):
            self.tally.cells["wrong"] += 1
            self.wrong(prefix + name, answer.words)
        elif isinstance(answer, GradtraceError):
            self.tally.cells["refused"] += 1
            self.tally.refusals[f"{type(answer).__name__}: {answer}"[:110]] += 1
        else:
            self.tally.cells["answered"] += 1

    def answers(self, asked: Asked, questions: Sequence[Question], prefix: str) -> dict[str, Any]:
        size = sum(v.numel for call in asked.tape.calls for v in call.outputs if v is not None)
        found: dict[str, Any] = {}
        for question in questions:
            if size > question.most:
                self.tally.left_out[f"more than {question.most:,} scalars: {question.name}"] += 1
                continue
            began = time.perf_counter()
            found[question.name] = attempt(lambda q=question: q.ask(asked))
            spent = time.perf_counter() - began
            self.tally.slow[question.name] = self.tally.slow.get(question.name, 0.0) + spent
            self.count(question.name, found[question.name], prefix)
        return found

    def batch(self, questions: Sequence[Question], plain: dict[str, Any], answers: dict[str, Any]) -> None:
        """The batch's answers are the same bit for bit, refusals included."""
        for q in questions:
            if not q.of_batch or q.name not in plain or q.name not in answers:
                continue
            a, b = plain[q.name], answers[q.name]
            if isinstance(a, Wrong) or isinstance(b, Wrong):
                continue
            self.tally.compared["with examples and without"] += 1
            if not same(a, b):
                self.wrong(q.name, f"other with examples than without: {_first_difference(a, b)}")

    def by_example(self, asked: Asked, answers: dict[str, Any]) -> None:
        """An example's answers are those of it alone, or what connects the examples is named."""
        told = answers.get("influence best by example")
        if told is None or isinstance(told, (GradtraceError, Wrong)):
            self.tally.compared["examples: refused"] += 1
            return
        relation = self.subject.relation(self.training)
        if told[0].connected:
            self.tally.compared[f"examples: named as connected, and {relation}"] += 1
        elif relation == CONNECTED:
            self.wrong("influence by example", "examples are connected, and no call is named")
        elif relation != APART or self.program().alone is None:
            self.tally.compared["examples: no example alone to compare with"] += 1
        else:
            assert asked.tape.record.examples is not None
            for b in range(min(asked.tape.record.examples, MOST_EXAMPLES)):
                self.alone(b, answers, asked.leaves)

    def alone(self, b: int, answers: dict[str, Any], leaves: list[str]) -> None:
        asked = self.recording(examples=False, part=b)
        if asked is None:
            return
        program = self.program()
        wanted = [i for i, n in enumerate(leaves) if n in asked.leaves and n in (program.compared or leaves)]
        for kind in ("best", "greedy"):
            ours = answers.get(f"forest {kind} by example")
            if isinstance(ours, (GradtraceError, Wrong)) or ours is None:
                continue
            theirs = attempt(lambda k=kind: _log2(asked, k, leaves))
            self.tally.compared[f"examples: as alone, {kind}"] += 1
            if isinstance(theirs, (GradtraceError, Wrong)):
                self.wrong(
                    f"forest {kind} by example", f"example {b} alone is refused: {getattr(theirs, 'words', theirs)}"
                )
                continue
            # a whole leaf's gradient may cancel (an attention's key bias): it is noise of numbers as large as others'
            floor = 1e-4 * max((float(g.exp2().max()) for g in theirs.values() if g.numel()), default=0.0)
            for i in wanted:
                mine, alone = ours[i][1], theirs[leaves[i]]
                if len(mine) > 1:
                    mine = mine[b]
                elif leaves[i] == batch_leaf(program):  # its rows are the examples' own
                    mine, alone = mine[0, b], alone[b]
                else:
                    mine = mine[0]
                difference = off(mine, alone, kind, floor)
                if difference > _tolerance(self.dtype, program.exact):
                    words = f"example {b} of {leaves[i]} is off by {difference:.1e} from it alone"
                    self.wrong(f"forest {kind} by example", words)


def batch_leaf(program: Program) -> str | None:
    """Name the leaf that is the tensor of examples, if one is."""
    return next((n for n, t in program.names.items() if t is program.examples), None)


def _log2(asked: Asked, kind: str, leaves: list[str]) -> dict[str, Tensor]:
    forest = asked.trace.forest(kind)
    return {n: forest.log2[forest.record.leaves[n].id][0] for n in leaves if n in asked.tape.leaves}


def off(ours: Tensor, theirs: Tensor, kind: str, floor: float = 0.0) -> float:
    """How far weights are off: best ones each relative to itself, gradients (which cancel) to the largest."""
    if ours.numel() == 0:
        return 0.0
    if kind == "best":
        both = (ours == theirs) | (ours.isneginf() & theirs.isneginf())
        return float((ours - theirs).abs().masked_fill(both, 0).nan_to_num(torch.inf, posinf=torch.inf).max())
    a, b = ours.exp2(), theirs.exp2()
    scale = max(float(torch.maximum(a, b).max()), floor)
    return float((a - b).abs().max()) / scale if scale else 0.0


def _tolerance(dtype: torch.dtype, exact: bool) -> float:
    """The same numbers, by the same forward pass or by one whose sums are rounded otherwise."""
    if dtype == torch.float64:
        return 1e-9 if exact else 1e-6
    return 1e-5 if exact else 1e-2


def _first_difference(a: Any, b: Any) -> str:
    if isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            if not same(x, y):
                return f"[{i}] {_first_difference(x, y)}"
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
        at = (a != b).nonzero()[:1].flatten().tolist()
        return f"{a[tuple(at)].tolist()} became {b[tuple(at)].tolist()} at {at} of {tuple(a.shape)}"
    return f"{str(a)[:150]!r} became {str(b)[:150]!r}"


__all__ = ["Hang", "Tally", "Wrong", "judge"]
