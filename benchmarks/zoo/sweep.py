"""Certify published architectures, random weights, each in a process of its own, and write docs/architectures.md.

What is done is kept in build/zoo/results.json and not done again, as long as the library and its surroundings are the
same. The table is written when every row has been tried; with `--only`, what was found is printed.

    python benchmarks/zoo/sweep.py --only 'transformers/*'
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "architectures.md"
BUILD = ROOT / "build" / "zoo"
PACKAGES = ("torch", "transformers", "timm", "torchvision", "torch_geometric", "diffusers")
SURROUNDINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
SURROUNDINGS["TORCH_COMPILE_DISABLE"] = "1"  # torchvision compiles its Python where it has no C++, for minutes


def versions() -> dict[str, str]:
    """Give the versions that the rows rest on, of what is installed."""
    installed = {d.metadata["Name"].replace("-", "_"): d.version for d in distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def check_torch() -> None:
    """Stop if an install has put another PyTorch in the place of the pinned one."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    installed = version("torch").split("+")[0]
    if installed != pins["torch"]:
        sys.exit(f"torch {installed} is installed, but constraints.txt pins {pins['torch']}: remove {sys.prefix}")


def state() -> dict[str, Any]:
    """Name what results hold for: versions, the library's sources and its kernels."""
    import gradtrace

    digest = hashlib.sha256()
    source = Path(gradtrace.__file__).parent
    for path in sorted([*source.rglob("*.py"), *source.rglob("*.so"), *Path(__file__).parent.glob("*.py")]):
        digest.update(path.read_bytes())
    return {"versions": versions(), "sources": digest.hexdigest()[:16]}


def run(name: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Examine one row in a process of its own; say how it ended if it has nothing to say itself."""
    from certify import child

    out = folder / f"{name.replace('/', '--').replace(' ', '_')}.json"
    out.unlink(missing_ok=True)
    process = CONTEXT.Process(target=child, args=(name, given.catalogue, out, given.memory << 30, given.double))
    process.start()
    process.join(given.timeout)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    if out.exists():
        return json.loads(out.read_text(encoding="utf-8"))
    how = f"longer than {given.timeout} s" if late else ended(process.exitcode or 0)
    return {"status": "crashed", "reason": f"{how}, while {last_step(out.with_suffix('.log'))}"}


def ended(code: int) -> str:
    """Say how a process ended."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def last_step(log: Path) -> str:
    """Read how far a process came."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    steps = [line.removeprefix("step: ") for line in lines if line.startswith("step: ")]
    return steps[-1] if steps else "starting"


CONTEXT = multiprocessing.get_context("forkserver")


def load(path: Path) -> dict[str, Any]:
    """Read earlier results, if they hold for what is installed now."""
    now = state()
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["of"] == now:
            return found
    return {"of": now, "rows": {}}


def keep(path: Path, results: dict[str, Any]) -> None:
    """Write the results so that a kill leaves the old or the new ones."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def sweep(names: list[str], results: dict[str, Any], given: argparse.Namespace) -> None:
    """Run what is not done yet, so many at a time, and keep every row at once."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    waiting = [name for name in names if name not in results["rows"]]
    with Progress(*columns) as progress, ThreadPoolExecutor(given.workers) as pool:
        task = progress.add_task("", total=len(names), completed=len(names) - len(waiting))
        running = {pool.submit(run, name, given.out, given): name for name in waiting}
        for done in as_completed(running):
            name, row = running[done], done.result()
            results["rows"][name] = row
            keep(given.out / "results.json", results)
            if row["status"] != "passed":
                progress.console.print(f"{name}: {row['status']}: {row.get('reason', '')[:300]}", markup=False)
            progress.update(task, advance=1, description=name)


def main() -> None:
    """Sweep, and write the table."""
    parser = argparse.ArgumentParser(description="Certify published architectures, each in a process of its own.")
    parser.add_argument("--only", default="*", help="a glob over rows (default: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for a row (default: %(default)s)")
    parser.add_argument("--memory", type=int, default=8, help="GiB for a row (default: %(default)s)")
    parser.add_argument("--catalogue", default="catalogue", help="a module with ROWS (default: %(default)s)")
    parser.add_argument("--double", action="store_true", help="in float64; needs an --out of its own")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    parser.add_argument("--out", type=Path, default=BUILD, help="where results are kept (default: build/zoo)")
    parser.add_argument("--table", type=Path, default=TABLE, help="the table (default: docs/architectures.md)")
    given = parser.parse_args()
    check_torch()
    os.environ.update(SURROUNDINGS)
    # what children are forked from does not look beside this file otherwise
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    CONTEXT.set_forkserver_preload(["preload" if given.catalogue == "catalogue" else "certify"])
    from table import counted, markdown

    rows_of = import_module(given.catalogue).ROWS
    given.out.mkdir(parents=True, exist_ok=True)
    results = load(given.out / "results.json")
    names = [name for name in rows_of if fnmatchcase(name, given.only)]
    if given.again:
        results["rows"] = {name: row for name, row in results["rows"].items() if name not in names}
    sweep(names, results, given)
    rows = {name: results["rows"][name] for name in rows_of if name in results["rows"]}
    print(counted({name: rows[name] for name in names}))
    if len(rows) == len(rows_of) and not given.double:
        given.table.write_text(markdown(rows, results["of"]), encoding="utf-8")
        print(f"wrote {given.table}")
    failed = Counter(rows[name]["status"] for name in names)
    sys.exit(1 if failed["crashed"] or failed["wrong"] else 0)


if __name__ == "__main__":
    main()
