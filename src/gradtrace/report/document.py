"""What the page is given: one JSON document, from a trace or from results.json (docs/results.md describes both)."""

from __future__ import annotations

import json
import math
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import GradtraceError
from ..queries.group_names import listed
from ..queries.summaries import answers
from ..semirings import named
from . import headline
from .snapshot import Question, Traced, graph_of, is_apart, snapshot

SCHEMA = "gradtrace.report/1"
SCHEMA_OF_RESULTS = "gradtrace.results/1"
EMBEDDING = "embedding*"
MEASURED = "measured.json"
COMPARED = "derivatives compared with autograd's"
# options of `gradtrace trace` that a reader can do something with, in words
ASKED = {
    "components": "components",
    "of": "from parameters",
    "kind": "kind of path",
    "batches": "batches traced",
    "semirings": "semirings",
}
PLAIN = frozenset((int, str, bool, type(None)))  # there is nothing to replace in them
NUMBERS = PLAIN | {float}


class BadResults(GradtraceError):
    """A file that is not results.json of a version that can be shown."""


def of_trace(trace: Traced, question: Question, title: str | None = None) -> dict[str, Any]:
    """Make the document of a trace."""
    taken = snapshot(trace, question)
    said = answers(trace, [named(s) for s in question.semirings], question.only, question.components)
    name = title or "gradtrace report"
    return finite(
        {
            "schema": SCHEMA,
            "kind": "trace",
            "title": name,
            "headline": headline.of_trace(taken),
            "graph": graph_of(trace),
            "snapshots": [{"step": None} | taken],
            "semirings": [{"batch": 0} | answer for answer in said],
            "provenance": provenance(trace, apart=is_apart(trace.tape.record, question), connected=taken["connected"]),
        }
    )


def of_results(results: Mapping[str, Any], measured: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Make the document of a results.json.

    Raises:
        BadResults: another version wrote it, it has no traces with a graph yet, or something is missing in it.
    """
    if results.get("kind") not in ("compete", "trace"):
        raise BadResults("this is not the results.json of gradtrace compete or gradtrace trace")
    schema = results.get("schema", SCHEMA_OF_RESULTS)
    if schema != SCHEMA_OF_RESULTS:
        raise BadResults(f"these results are of schema {schema!r}, and this version reads {SCHEMA_OF_RESULTS!r} only")
    if "graph" not in results:
        raise BadResults("these results hold no graph: an older version wrote them, or nothing has been traced yet")
    make = _of_competition if results["kind"] == "compete" else _of_subject
    try:
        return finite({"schema": SCHEMA} | make(results) | {"provenance": _provenance_of(results, measured or {})})
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise BadResults(f"these results are damaged: {type(error).__name__}: {error}") from error


def _of_competition(results: Mapping[str, Any]) -> dict[str, Any]:
    full = results["runs"][0]
    traces = [dict(t) | {"influence": [{"of": EMBEDDING} | row for row in t["influence"]]} for t in full["traces"]]
    return {
        "kind": "compete",
        "title": f"gradtrace: {listed(results.get('components') or results['options']['components'])} in competition",
        "headline": headline.of_competition(results),
        "graph": results["graph"],
        "snapshots": traces,
        "training": [{key: run[key] for key in ("name", "without", "evaluations")} for run in _drawn(results["runs"])],
        "influence": results["influence"],
        "ablation": results["ablation"],
        "agreement": results["agreement"],
    }


def _drawn(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Choose the runs whose curves are drawn: the first seed's full model, and those without one component."""
    return [run for run in runs if run.get("seed") == runs[0].get("seed") and len(run.get("absent", [])) < 2]


def _of_subject(results: Mapping[str, Any]) -> dict[str, Any]:
    taken = results["snapshot"]
    target = results["options"]["target"]
    return {
        "kind": "trace",
        "title": f"gradtrace: {target}",
        "headline": headline.of_trace(taken, results["influence"]),
        "graph": results["graph"],
        "snapshots": [{"step": None} | taken],
        "semirings": results.get("semirings", []),
    }


def read_results(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read results.json, and what was measured beside it.

    Raises:
        BadResults: there is no such file, or it is not JSON.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        beside = path.with_name(MEASURED)
        measured = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    except OSError as error:
        raise BadResults(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise BadResults(f"{path} is not JSON: {error}") from None
    except RecursionError:
        raise BadResults(f"{path} is not results.json: its JSON is nested too deeply") from None
    if not isinstance(results, dict):
        raise BadResults(f"{path} is not results.json: it holds no object")
    return results, measured if isinstance(measured, dict) else {}


Section = tuple[str, list[tuple[str, str]]]


def provenance(trace: Traced, *, apart: bool, connected: Sequence[str] = ()) -> list[Section]:
    """Tell where the numbers of a trace come from."""
    record, certificate = trace.tape.record, trace.certificate
    scalars = sum(v.numel for v in record.leaves.values())
    related = "connected" if connected else "each on its own"
    proved = "not asked for: trace(loss, check=True) does so"
    if certificate is not None:
        proved = (
            f"passed: {certificate.leaves} parameters equal autograd's gradient, largest relative difference "
            f"{certificate.difference:.1e} (allowed {certificate.tolerance:.0e})"
        )
    passes = {kind: sum(trace.forest(kind).seconds.values()) for kind in ("best",)}
    made = trace.origin or here()
    return [
        ("Versions", [*made["versions"].items()]),
        ("Run", [("command", made["command"]), ("seed", made["seed"])]),
        (
            "Model",
            [
                ("parameters", f"{scalars:,} scalars in {len(record.leaves)} tensors"),
                ("modules", f"{len(record.modules):,}"),
                ("operator calls recorded", f"{len(record.calls):,}"),
                ("examples", f"{record.examples}, {related}" if apart else "not told apart"),
            ],
        ),
        ("Proof", [(COMPARED, proved), served_by_fallback(trace.fallbacks)]),
        ("Cost", [(f"{k} pass", f"{s:.2f} s") for k, s in passes.items()] + [("peak memory", made["peak_memory"])]),
    ]


def here() -> dict[str, Any]:
    """Tell where a trace is made: what a saved one says of where it comes from."""
    return {
        "versions": versions(),
        "command": _command(),
        "seed": str(torch.initial_seed()),
        "peak_memory": peak_memory(),
    }


def versions() -> dict[str, str]:
    """Tell what besides the options decides the last digits."""
    own = sys.modules["gradtrace"].__version__
    return {"gradtrace": own, "torch": torch.__version__, "python": platform.python_version()}


def _command() -> str:
    """Give the command line without the folder of the program."""
    first, *rest = sys.orig_argv if not sys.argv[0] else sys.argv
    return shlex.join([Path(first).name, *rest])[:400]


def peak_memory() -> str:
    """Give the largest memory that this process has had."""
    try:
        import resource
    except ImportError:  # not on this platform
        return "unknown"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak / (1 << (20 if sys.platform == 'darwin' else 10)):,.0f} MiB"


def _provenance_of(results: Mapping[str, Any], measured: Mapping[str, Any]) -> list[Section]:
    options = {k: v for k, v in results["options"].items() if v is not None}
    if results["kind"] == "trace":
        options = {ASKED[k]: "all" if v == "*" else v for k, v in options.items() if k in ASKED}
    certificate = results.get("certificate")
    proved = "not asked for: --check does so" if results["kind"] == "trace" else "not asked for"
    if certificate is not None:
        proved = (
            f"passed at the first trace: {certificate['leaves']} parameters equal autograd's gradient, largest "
            f"relative difference {certificate['difference']:.1e} (allowed {certificate['tolerance']:.0e})"
        )
    sections: list[Section] = [
        ("Versions", rows_of(results["versions"])),
        ("Run", [("command", command_of(results)), *rows_of(options)]),
    ]
    sections += [
        (name, rows_of(results[key])) for key, name in (("corpus", "Text"), ("task", "Task")) if key in results
    ]
    sections.append(("Model", model_of(results["graph"])))
    sections.append(("Proof", [(COMPARED, proved), served_by_fallback(results.get("fallbacks") or {})]))
    return [*sections, ("Cost", rows_of(measured) or [("time and memory", "not recorded beside these results")])]


def model_of(graph: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tell how large a recorded model is."""
    shapes = graph["parameters"]["shape"]
    scalars = sum(math.prod(shape) for shape in shapes)
    rows = [("parameters", f"{scalars:,} scalars in {len(shapes)} tensors")]
    return [*rows, ("operator calls that lead to the loss", f"{len(graph['calls']['number']):,}")]


def command_of(results: Mapping[str, Any]) -> str:
    """Give the command that asks for these results."""
    options = results["options"]
    if results["kind"] == "trace":
        return shlex.join(["gradtrace", "trace", options["target"]])
    names = {"vocabulary": "vocab"}
    flags = [
        (f"--{str(names.get(k, k)).replace('_', '-')}", ",".join(v) if isinstance(v, list) else str(v))
        for k, v in options.items()
        if v is not None
    ]
    return shlex.join(["gradtrace", "compete", *(part for pair in flags for part in pair)])


def served_by_fallback(fallbacks: Mapping[str, int]) -> tuple[str, str]:
    """Name the operators that no exact rule served."""
    served = ", ".join(f"{name} ({count} calls)" for name, count in fallbacks.items())
    return "operators without a rule, whose derivatives autograd gave", served or "none"


def rows_of(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Write options or measurements as a reader wants them."""
    return [(name.replace("_", " "), text) for name, value in values.items() if (text := _text(value))]


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def finite(content: Any) -> Any:
    """Replace nan and inf by None, at any depth."""
    kind = type(content)
    if kind is float:
        return content if math.isfinite(content) else None
    if kind in PLAIN:
        return content
    if kind is list and (kinds := {*map(type, content)}) <= NUMBERS:
        return [x if type(x) is not float or x - x == 0 else None for x in content] if float in kinds else content
    if kind is dict or (kind is not list and isinstance(content, Mapping)):
        return {str(key): finite(value) for key, value in content.items()}
    # a version of torch is a kind of text
    if kind is list or (isinstance(content, Sequence) and not isinstance(content, str)):
        return [*map(finite, content)]
    return None if isinstance(content, float) and not math.isfinite(content) else content
