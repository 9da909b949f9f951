"""Every public question × every program, with and without examples, in train and eval mode, in float32 and float64.

The programs: the zoo's architectures, an input of every module of PyTorch's `module_db`, a seeded sample of the
operators of its `op_db`, and random programs and networks. Functional ones have one mode. `make test` takes a seeded
sample of them, `make test-matrix` all: 852 programs in a mode and a precision, each asked 43 questions without examples
and 49 with them, 73,522 cells in 12 minutes on two cores. Each run prints how many it had and how long they took, and
what was left out and why: questions whose cost is several paths or one object an edge are not put to the largest
programs.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
import torch
from matrix.judge import Tally, judge
from matrix.questions import BY_EXAMPLE, QUESTIONS, public
from matrix.subjects import Subject, drawn_programs, models, modules, operators

from gradtrace import Tape, Trace, semirings

pytest.importorskip("expecttest")  # PyTorch's databases need it

SAMPLE = 24  # items in the default run
Item = tuple[Subject, bool, torch.dtype]


@cache
def items() -> list[Item]:
    subjects = [*models(), *modules(), *operators(), *drawn_programs()]
    return [(s, mode, kind) for s in subjects for mode in ((True, False) if s.modal else (False,)) for kind in s.dtypes]


def sample() -> list[Item]:
    """Draw from each source alike; architectures are large, and only in the full run."""
    draw, by_source = random.Random(1), dict[str, list[Item]]()
    for item in items():
        by_source.setdefault(item[0].name.partition("/")[0], []).append(item)
    small = [found for source, found in by_source.items() if source != "zoo"]
    few = [item for item in by_source["zoo"] if item[0].name in ("zoo/neural ODE", "zoo/tied and reused")]
    return [*draw.sample(few, 2), *(i for found in small for i in draw.sample(found, SAMPLE // len(small)))]


def title(item: Item) -> str:
    subject, training, dtype = item
    mode = ("train-" if training else "eval-") if subject.modal else ""
    return f"{subject.name}-{mode}{str(dtype)[6:]}"


def ask(item: Item, folder: Path, tally: Tally) -> None:
    found = judge(*item, folder)
    tally += found
    assert not found.wrong, found.report()


@pytest.mark.parametrize("item", sample(), ids=title)
def test_some_programs(item, tmp_path, tally):
    ask(item, tmp_path, tally)


@pytest.mark.matrix
@pytest.mark.parametrize("item", items(), ids=title)
def test_every_program(item, tmp_path, tally):
    ask(item, tmp_path, tally)


def test_no_public_question_is_missing():
    asked = {name for question in (*QUESTIONS, *BY_EXAMPLE) for name in question.covers}
    assert public(Trace) | public(Tape) <= asked | {"Tape.trace"}
    assert {name for name in asked if name.startswith(("Trace.", "Tape."))} <= public(Trace) | public(Tape) | INSTANCE


INSTANCE = {"Trace.loss", "Trace.root", "Trace.tape", "Trace.certificate"}  # set when one is made


def test_no_semiring_is_missing():
    asked = {q.name for q in QUESTIONS if "Tape.grad" in q.covers}
    for name in semirings.__all__:
        if name not in NO_SEMIRINGS:
            assert any(name.lower() in question.lower() for question in asked), f"no row asks for grad under {name}"


NO_SEMIRINGS = {"BrokenAxiom", "Folded", "Semiring", "check_axioms", "make", "named"}
