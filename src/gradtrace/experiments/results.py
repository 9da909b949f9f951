"""What `results.json` says, and the conclusions drawn from it (docs/results.md has the schema).

Everything here is a function of the measurements in `runs`: no times, no paths of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import PurePath
from typing import Any

from ..queries.forest import KINDS
from ..report.document import SCHEMA_OF_RESULTS as SCHEMA
from ..report.document import versions
from .ablation import ORDERED_BY as HEADLINE
from .ablation import ablation_table, samples_of, seeds_of, shares_of
from .agreement import GOAL, Ablation, compare_seeds, sentence
from .components import label
from .corpus import Corpus, unigram_perplexity
from .intervals import SHARE, interval
from .options import OF_TEXTS, Options
from .tasks import TASKS

MEASURES = ("share", "weighted_share")


def new_results(options: Options, corpus: Corpus | None) -> dict[str, Any]:
    """Begin the results of a competition."""
    task = TASKS[options.task]
    said = asdict(options) | {"corpus": options.corpus and PurePath(options.corpus).name}
    for name in OF_TEXTS if corpus is None else ():
        del said[name]
    begun = {
        "schema": SCHEMA,
        "kind": "compete",
        "complete": False,
        "versions": versions(),
        "options": said | {"components": [_without_folder(name) for name in options.components]},
        "components": [label(name) for name in options.components],
    }
    about = {"name": options.task, "about": task.about, "lengths": [*task.lengths]}
    about |= {"beyond": task.beyond and [*task.beyond], "solved": task.solved}
    return begun | ({"task": about} if corpus is None else {"corpus": about_corpus(corpus)}) | {"runs": []}


def _without_folder(name: str) -> str:
    where, colon, own = name.rpartition(":")
    return f"{PurePath(where).name}{colon}{own}"


def about_corpus(corpus: Corpus) -> dict[str, Any]:
    """Say what a text is like."""
    return {
        "name": corpus.text.name,
        "sha256": corpus.text.sha256,
        "words": len(corpus.text.words),
        "training_words": len(corpus.training),
        "held_out_words": len(corpus.held_out),
        "vocabulary": len(corpus.vocabulary),
        "unknown_share_training": corpus.unknown_share(corpus.training),
        "unknown_share_held_out": corpus.unknown_share(corpus.held_out),
        "unigram_perplexity": unigram_perplexity(corpus),
    }


def conclude(results: Mapping[str, Any]) -> dict[str, Any]:
    """Add to the measurements what follows from them so far."""
    runs, components = results["runs"], results["components"]
    means = mean_influence([run["traces"] for run in runs if not run["absent"] and run["traces"]])
    known = dict(results) | {"influence": means, "ablation": None, "agreement": None}
    if results["complete"]:
        solved = results["task"]["solved"] if "task" in results else None
        known["ablation"] = ablation_table(runs, components, results["options"]["ablate"], solved)
        known["agreement"] = agreement_table(runs, components, solved)
    return known


def mean_influence(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Average each component's influence over the traces made during training, and then over seeds."""
    rows = []
    for kind, name in dict.fromkeys(
        (r["kind"], r["component"]) for traces in seeds for t in traces for r in t["influence"]
    ):
        by_seed = {key: [shares_of(traces, kind, key)[name] for traces in seeds] for key in (*MEASURES, "dead_share")}
        row = {"kind": kind, "component": name} | {key: sum(v) / len(v) for key, v in by_seed.items()}
        rows.append(row | {"traces": sum(map(len, seeds)), "over_seeds": interval(by_seed["share"], SHARE)})
    return rows


def agreement_table(
    runs: Sequence[Mapping[str, Any]], components: Sequence[str], solved: float | None
) -> dict[str, Any]:
    """Compare every measure of influence with the damage, and put the headline one into a sentence."""
    seeds = seeds_of(runs, components, solved)
    damaged = [
        [
            Ablation(name, samples_of(run, seed.reference, solved), run["evaluations"][-1]["perplexity"])
            for name in components
            if (run := seed.others.get((name,)))
        ]
        for seed in seeds
    ]
    table = []
    said = ""
    for kind in KINDS:
        for measure in MEASURES:
            shares = [shares_of(seed.full["traces"], kind, measure) for seed in seeds]
            found = compare_seeds([*zip(shares, damaged, strict=True)])
            table.append({"kind": kind, "measure": measure} | asdict(found))
            if (kind, measure) == HEADLINE:
                said = sentence(found, [*chain.from_iterable(damaged)], GOAL if solved is None else "solved the task")
    return {"sentence": said, "rows": table}
