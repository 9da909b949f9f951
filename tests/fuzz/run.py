"""Run random programs against the oracle.

    python tests/fuzz/run.py --programs 2000 --seed 7
    python tests/fuzz/run.py --programs 1 --seed 31415     # one program again

Program number n of seed s has seed s + n. Without a seed a fresh one is drawn, and printed. Of a program that fails,
the seed is printed, and the shortest listing that still fails in the same way; --keep makes it a test.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--at-most", type=int, default=0, help="so many failures are reported, and no error")
    parser.add_argument("--keep", action="store_true", help="add what fails to kept.jsonl")
    options = parser.parse_args(argv)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from fuzz.hunt import Failure, fuzz, keep

    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**9)
    print(f"seed {seed}", flush=True)
    began, failures = time.perf_counter(), []

    def heard(found: Failure) -> None:
        failures.append(found)
        print(f"\n{found}", flush=True)
        if options.keep:
            keep(found)

    kinds = fuzz(seed, options.programs, heard)
    taken = time.perf_counter() - began
    print(f"{options.programs} programs, {len(kinds)} kinds of operator, {len(failures)} failures, {taken:.0f} s")
    return int(len(failures) > options.at_most)


if __name__ == "__main__":
    raise SystemExit(main())
