"""What `results.json` says, and the conclusions drawn from it (docs/results.md has the schema).

Everything here is a function of the measurements in `runs`: no times, no paths of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from ..report.document import SCHEMA_OF_RESULTS as SCHEMA
from ..report.document import versions
from .agreement import Ablation, compare, sentence
from .corpus import Corpus, unigram_perplexity
from .options import Options

KINDS = ("best", "greedy")
MEASURES = ("share", "weighted_share")
HEADLINE = ("best", "share")  # the pair whose agreement the sentence is about: plain influence of best paths


def new_results(options: Options, corpus: Corpus) -> dict[str, Any]:
    """Begin the results of a competition."""
    said = asdict(options) | {"corpus": options.corpus and PurePath(options.corpus).name}
    return {
        "schema": SCHEMA,
        "kind": "compete",
        "complete": False,
        "versions": versions(),
        "options": said | {"components": list(options.components)},
        "corpus": {
            "name": corpus.text.name,
            "sha256": corpus.text.sha256,
            "words": len(corpus.text.words),
            "training_words": len(corpus.training),
            "held_out_words": len(corpus.held_out),
            "vocabulary": len(corpus.vocabulary),
            "unknown_share_training": corpus.unknown_share(corpus.training),
            "unknown_share_held_out": corpus.unknown_share(corpus.held_out),
            "unigram_perplexity": unigram_perplexity(corpus),
        },
        "runs": [],
    }


def conclude(results: Mapping[str, Any]) -> dict[str, Any]:
    """Add to the measurements what follows from them so far."""
    runs = results["runs"]
    means = mean_influence(runs[0]["traces"]) if runs else []
    known = dict(results) | {"influence": means, "ablation": None, "agreement": None}
    if results["complete"]:
        known["ablation"] = ablation_table(runs)
        known["agreement"] = agreement_table(means, known["ablation"]["rows"])
    return known


def mean_influence(traces: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average each component's influence over the traces made during training."""
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for trace in traces:
        for row in trace["influence"]:
            grouped.setdefault((row["kind"], row["component"]), []).append(row)
    return [
        {"kind": kind, "component": name}
        | {key: sum(r[key] for r in rows) / len(rows) for key in (*MEASURES, "dead_share")}
        | {"traces": len(rows)}
        for (kind, name), rows in grouped.items()
    ]


def ablation_table(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Say when each ablated model reached the full model's best held-out loss, and where it ended."""
    full = runs[0]["evaluations"]
    reference = min(e["loss"] for e in full)
    return {
        "reference_loss": reference,
        "reference_perplexity": next(e["perplexity"] for e in full if e["loss"] == reference),
        "full": _outcome(runs[0], reference),
        "rows": [{"component": run["without"]} | _outcome(run, reference) for run in runs[1:]],
    }


def _outcome(run: Mapping[str, Any], reference: float) -> dict[str, Any]:
    evaluations = run["evaluations"]
    return {
        "parameters": run["parameters"],
        "samples": next((e["samples"] for e in evaluations if e["loss"] <= reference), None),
        "best_perplexity": min(e["perplexity"] for e in evaluations),
        "final_perplexity": evaluations[-1]["perplexity"],
    }


def agreement_table(means: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare every measure of influence with the damage, and put the headline one into a sentence."""
    ablations = [Ablation(r["component"], r["samples"], r["final_perplexity"]) for r in rows]
    table = []
    said = ""
    for kind in KINDS:
        for measure in MEASURES:
            influence = {r["component"]: r[measure] for r in means if r["kind"] == kind}
            found = compare(influence, ablations)
            table.append({"kind": kind, "measure": measure} | asdict(found))
            if (kind, measure) == HEADLINE:
                said = sentence(found, ablations)
    return {"sentence": said, "rows": table}
