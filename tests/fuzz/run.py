"""Run random programs against the oracle.

    python tests/fuzz/run.py --programs 2000 --seed 7
    python tests/fuzz/run.py --programs 1 --seed 31415     # one program again

Program number n of seed s has seed s + n. Without a seed a fresh one is drawn, and printed. Of a program that fails, the
seed is printed, and the shortest listing that still fails in the same way.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch
from compare import compare
from generate import Builder, Generator, ends_of, loss_step
from oracle import Oracle
from program import Program, Step

PATIENCE = 20.0  # seconds for one failure
Found = tuple[str, str]  # where a failure was noticed, and what it said


@dataclass(frozen=True)
class Failure:
    """A program that came out wrong: as drawn, and as short as it gets."""

    seed: int
    said: str
    program: Program
    short: Program

    def __str__(self) -> str:
        return f"# seed {self.seed}: {self.said}\n{self.short.listing()}\n"


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


def shrink(program: Program, kind: str) -> Program:
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
            found = failure(*made)
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args(argv)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**9)
    print(f"seed {seed}", flush=True)
    began, failures = time.perf_counter(), []

    def heard(found: Failure) -> None:
        failures.append(found)
        print(f"\n{found}", flush=True)

    kinds = fuzz(seed, options.programs, heard)
    taken = time.perf_counter() - began
    print(f"{options.programs} programs, {len(kinds)} kinds of operator, {len(failures)} failures, {taken:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
