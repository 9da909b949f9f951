"""Find failures, make them short, and keep them."""

from __future__ import annotations

import json
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from fuzz.compare import compare
from fuzz.generate import Builder, Generator, ends_of, loss_step
from fuzz.oracle import Oracle, run_parts
from fuzz.program import Part, Program, Step

KEPT = Path(__file__).with_name("kept.jsonl")

PATIENCE = 20.0  # seconds for one failure
Found = tuple[str, str]  # where a failure was noticed, and what it said
Failing = Callable[[Program, Oracle], Found | None]


@dataclass(frozen=True)
class Failure:
    """A program that came out wrong: as drawn, and as short as it gets."""

    seed: int
    said: str
    program: Program
    short: Program

    def __str__(self) -> str:
        return f"# seed {self.seed}: {self.said}\n{self.short.listing()}\n"


def keep(found: Failure, path: Path = KEPT) -> None:
    """Add a failure to the programs that are tests: the program itself, since a seed means another one next year."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"seed": found.seed, "said": found.said[:200], **asdict(found.short)}) + "\n")


def kept(path: Path = KEPT) -> dict[str, Program]:
    """Read the programs that failed once, by seed."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {str(saved["seed"]): _program(saved) for saved in map(json.loads, lines)}


def _program(saved: dict) -> Program:
    def step(s: dict) -> Step:
        return Step(s["kind"], s["text"], tuple(Part(p["mode"], tuple(p["outs"]), p["expr"]) for p in s["parts"]))

    return Program(
        tuple((n, t) for n, t in saved["inputs"]),
        tuple(saved["leaves"]),
        tuple(saved["examples"]),
        tuple(map(step, saved["steps"])),
        step(saved["loss"]),
        saved["intent"],
    )


def oracle_of(program: Program) -> Oracle:
    """Run a whole program in an oracle."""
    oracle, space = Oracle(), program.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, _ in program.inputs:
            oracle.give(name, space[name], leaf=name in program.leaves, example=name in program.examples)
        for step in (*program.steps, program.loss):
            run_parts(oracle, step.parts)
    return oracle


def failure(program: Program, oracle: Oracle) -> Found | None:
    """Give what is wrong with the library's answers on a program: (kind, sentence); None if nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compare(program, oracle)
        except Exception as error:  # whatever it is, it is a finding
            here = str(Path(__file__).with_name("compare.py"))
            where = [f.name for f in traceback.extract_tb(error.__traceback__) if f.filename == here]
            return f"{type(error).__name__} in {'>'.join(where)}", f"{type(error).__name__}: {str(error)[:600]}"
    return None


def rebuilt(program: Program, steps: list[Step], ends: list[str]) -> tuple[Program, Oracle] | None:
    """Make a program of fewer steps; those that cannot be without the others are left out as well."""
    builder = Builder(replace(program, steps=(), loss=Step("loss", "", ())))
    builder.apart = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in steps:
            builder.take(step)
        env = builder.oracle.env
        ends = [n for n in ends if n in env and env[n].followed()]
        if not ends:
            return None
        loss = loss_step(ends, [tuple(env[n].where.shape) for n in ends], "sum", 1.0)
        if not builder.take(loss):
            return None
    return replace(program, steps=tuple(builder.steps[:-1]), loss=loss), builder.oracle


def shrink(program: Program, kind: str, failing: Failing = failure) -> Program:
    """Leave out steps, ends and leaves for as long as the failure stays what it is."""
    best, changed, end = program, True, time.perf_counter() + PATIENCE
    while changed:
        changed = False
        for steps, ends in smaller(best):
            if time.perf_counter() > end:
                return best
            made = rebuilt(best, steps, ends)
            if made is None or (len(made[0].steps), len(ends)) >= (len(best.steps), len(ends_of(best.loss))):
                continue
            found = failing(*made)
            if found is not None and found[0] == kind:
                best, changed = made[0], True
                break
    return best


def smaller(program: Program) -> Iterator[tuple[list[Step], list[str]]]:
    steps, ends = list(program.steps), ends_of(program.loss)
    for k in range(len(ends)):
        if len(ends) > 1:
            yield steps, ends[:k] + ends[k + 1 :]
    made = list(dict.fromkeys(n for s in reversed(steps) for p in s.parts for n in p.outs))
    for k in reversed(range(len(steps))):
        left = steps[:k] + steps[k + 1 :]
        yield left, ends
        for n in made:
            if len(ends) == 1 and n not in ends:
                yield left, [n]


def fuzz(seed: int, count: int, heard: Callable[[Failure], None]) -> Counter[str]:
    """Run programs, report failures as they come, and count the kinds of operator in what was compared."""
    torch.set_num_threads(1)
    kinds: Counter[str] = Counter()
    for number in range(seed, seed + count):
        drawn = Generator(number).program()
        if drawn is None:
            continue
        program, oracle = drawn
        kinds.update({s.kind for s in program.steps})
        found = failure(program, oracle)
        if found is not None:
            heard(Failure(number, found[1], program, shrink(program, found[0])))
    return kinds
