"""What a report takes down of a trace: the same numbers as the trace's own answers."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from gradtrace import record
from gradtrace.errors import GradtraceError
from gradtrace.recording.components import select_leaves
from gradtrace.report import snapshot as snapshots
from gradtrace.report.fold import label_of, links_at
from gradtrace.report.snapshot import (
    MOST_STEPS,
    Question,
    default_components,
    default_groups,
    graph_of,
    paths_of,
    short_source,
    snapshot,
    starts_of,
)


@pytest.fixture(scope="module")
def taken(gpt2):
    trace, tokens = gpt2
    return trace, graph_of(trace), snapshot(trace, Question(tokens=tokens, paths=5, each=1))


def test_groups_and_components_of_a_transformer(taken):
    trace = taken[0]
    groups = default_groups(trace.tape.record)
    assert list(groups)[:3] == ["transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0"]
    assert list(groups)[-1] == "all parameters"
    assert len(groups) == 16
    components = default_components(trace)
    assert {"transformer.h.0", "transformer.h.11", "transformer.ln_f", "lm_head"} <= set(components)
    assert {"transformer.h.*.attn", "transformer.h.*.mlp"} <= set(components)


def test_influence_is_the_traces_own(taken):
    trace, _, seen = taken
    groups = default_groups(trace.tape.record)
    for row in seen["influence"][::37]:
        (own,) = trace.influence(row["component"], groups[row["of"]], kind=row["kind"]).rows
        assert (row["share"], row["dead_share"], row["examples"]) == (own.share, own.dead_share, own.examples)


@pytest.mark.parametrize("kind", ["best", "greedy"])
def test_what_flows_into_a_module_is_its_influence(taken, kind):
    _, graph, seen = taken
    flow = next(f for f in seen["flows"] if f["kind"] == kind and f["of"] == "transformer.wpe.weight")
    into = Counter()
    for (_, target), (paths, _) in links_at(graph, flow).items():
        into[label_of(graph, target)] += paths
    for row in seen["influence"]:
        name = row["component"]
        if (row["of"], row["kind"]) == (flow["of"], kind) and name in into and "*" not in name and not row["inside"]:
            assert into[name] / flow["total"] == pytest.approx(row["share"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_any_cut_conserves_what_flows(taken, data):
    _, graph, seen = taken
    flow = data.draw(st.sampled_from(seen["flows"]))
    kinds = graph["modules"]["kind"]
    folders = sorted({p for p in graph["modules"]["parent"] if p >= 0 and kinds[p] != "condensed"})
    opened = {0, *data.draw(st.lists(st.sampled_from(folders), max_size=20))}
    into, out = Counter(), Counter()
    weights_in, weights_out = Counter(), Counter()
    for (source, target), (paths, weight) in links_at(graph, flow, opened).items():
        into[target] += paths
        out[source] += paths
        weights_in[target] += weight
        weights_out[source] += weight
    assert into["loss"] == flow["total"] == sum(n for end, n in out.items() if end[0] == "p")
    assert weights_in["loss"] == pytest.approx(flow["weight"])
    for end in into:
        if end != "loss":
            assert into[end] == pytest.approx(out[end])
            assert weights_in[end] == pytest.approx(weights_out[end])


@pytest.mark.parametrize("kind", ["best", "greedy"])
def test_paths_are_the_traces_own(taken, kind):
    trace, graph, seen = taken
    paths = seen["paths"][kind]
    for leaf, index, example, first, log2 in list(zip(*paths["starts"].values(), strict=True))[::20]:
        own = trace.path(graph["parameters"]["name"][leaf], tuple(index), kind=kind, example=example)
        at, steps = first, []
        while at >= 0:
            steps.append(
                (paths["steps"]["call"][at], tuple(paths["steps"]["index"][at]), paths["steps"]["derivative"][at])
            )
            at = paths["steps"]["next"][at]
        assert [s[1:] for s in steps] == [(s.index, s.derivative) for s in own.steps]
        assert log2 == pytest.approx(own.log2_weight)
        names = dict(zip(graph["calls"]["number"], graph["calls"]["operator"], strict=True))
        assert [names[s[0]] for s in steps] == [s.operator for s in own.steps]


def test_each_example_has_the_traces_own_shares_and_paths(taken):
    trace, _, seen = taken
    groups, tokens = default_groups(trace.tape.record), [example["tokens"] for example in seen["examples"]]
    assert len(tokens) == 2
    assert tokens[0][0].startswith("word")
    tables = {
        (of, kind): trace.influence(default_components(trace), groups[of], kind=kind, per_example=True)
        for of in ("transformer.wte.weight", "transformer.h.3")
        for kind in ("best", "greedy")
    }
    for n, example in enumerate(seen["examples"]):
        for row, (share, weighted, dead) in zip(seen["influence"], example["influence"], strict=True):
            if (row["of"], row["kind"]) in tables:
                table = tables[row["of"], row["kind"]]
                own = next(r for r in table.by_example[n] if r.component == row["component"])
                found = [math.nan if x is None else x for x in (share, weighted, dead)]
                assert found == pytest.approx([own.share, own.weighted_share, own.dead_share], rel=1e-3, nan_ok=True)
        for table, grids in zip(seen["joins"], example["joins"], strict=True):
            own = trace.joins(table["of"], kind=table["kind"], by_example=True)
            at = {(j.call, j.operator): j.by_example[n] for j in own.rows}
            for grid, rows in zip(table["grids"], grids, strict=True):
                for join, row in zip(grid["joins"], rows, strict=True):
                    counts = sorted(b.paths for b in at[join["call"], grid["operator"].split(" of ")[0]])
                    assert sorted(paths for paths, *_ in row) == counts
    # what all examples have is what each has, together
    for table, *each in zip(seen["joins"], *(e["joins"] for e in seen["examples"]), strict=True):
        for grid, *own in zip(table["grids"], *each, strict=True):
            for join, *rows in zip(grid["joins"], *own, strict=True):
                assert join["paths"] == sum(paths for row in rows for paths, *_ in row)
    starts = seen["paths"]["best"]["starts"]
    assert Counter(starts["example"])[0] >= 5
    assert Counter(starts["example"])[1] >= 5
    assert max(Counter(zip(starts["leaf"], map(tuple, starts["index"]), starts["example"], strict=True)).values()) == 1


def test_each_example_has_its_own_flow(gpt2, taken):
    trace, _ = gpt2
    _, _, seen = taken
    forest, groups = trace.forest("best", per_example=True), default_groups(trace.tape.record)
    for at, flow in enumerate(seen["flows"]):
        each = [example["flows"][at] for example in seen["examples"]]
        assert sum(own["total"] for own in each) == flow["total"]
        assert sum(own["weight"] for own in each) == pytest.approx(flow["weight"])
        for key, near in (("paths", 0), ("weights", 1e-3)):
            summed = [sum(column) for column in zip(*(own[key] for own in each), strict=True)]
            assert summed == pytest.approx(flow[key], rel=near)
    # what an example sends on its own is what it sends traced alone
    at = next(n for n, f in enumerate(seen["flows"]) if (f["of"], f["kind"]) == ("transformer.h.3", "best"))
    live = sum(
        int((forest.winners[v.id][1] != -1).sum()) for v in select_leaves(forest.record, groups["transformer.h.3"])
    )
    assert seen["examples"][1]["flows"][at]["total"] == live


def test_own_flows_have_no_more_room_than_there_is(gpt2, monkeypatch):
    trace, _ = gpt2
    monkeypatch.setattr(snapshots, "MOST_OWN", 2 * len(trace.flow("*").edges))
    seen = snapshot(trace, Question(kinds="best", cover=0))
    own = seen["examples"][0]["flows"]
    assert "paths" in own[0]
    assert "paths" not in own[-1]
    assert all(flow["total"] > 0 for flow in own)


def test_a_recurrent_layer_that_shows_its_steps_is_a_component():
    model, x = nn.ModuleDict({"rnn": nn.GRU(4, 4), "out": nn.Linear(4, 2)}), torch.randn(6, 3, 4)
    with record(model) as tape:
        loss = model["out"](model["rnn"](x)[0]).square().sum()
    assert default_components(tape.trace(loss)) == ["rnn", "out"]


def test_paths_cover_parameters_and_strengths_as_far_as_there_is_room(gpt2):
    trace, _ = gpt2
    some = snapshot(trace, Question(kinds="best", paths=0, each=0, cover=1000, examples=0))["paths"]["best"]
    per_leaf = Counter(some["starts"]["leaf"])
    names = list(trace.tape.record.leaves)
    assert {names[leaf] for leaf in per_leaf} == {n for n, v in trace.tape.record.leaves.items() if v.numel}
    assert set(per_leaf.values()) <= {1000 // len(names)}
    leaf = names.index("transformer.h.5.mlp.c_fc.weight")
    own = [log2 for n, log2 in zip(some["starts"]["leaf"], some["starts"]["log2"], strict=True) if n == leaf]
    every = trace.forest("best", per_example=True).log2[trace.tape.record.leaves[names[leaf]].id].amax(0)
    every = every[every > -math.inf]
    assert max(own) == pytest.approx(float(every.max()), abs=1e-4)
    assert min(own) == pytest.approx(float(every.min()), abs=1e-4)
    asked = Question(kinds="best", cover=10**9, paths=0, each=0, examples=0)
    forest = trace.forest("best", per_example=True)
    full = paths_of(forest, starts_of(forest, asked, {}), None, MOST_STEPS)
    assert len(full["steps"]["call"]) >= MOST_STEPS
    assert len(json.dumps(full, separators=(",", ":"))) < 2_000_000


def test_the_strongest_come_first_and_every_parameter_has_some(taken):
    trace, graph, seen = taken
    starts = seen["paths"]["best"]["starts"]
    assert starts["log2"] == sorted(starts["log2"], reverse=True)
    assert starts["log2"][0] == pytest.approx(
        float(max(trace.forest("best", per_example=True).log2[v.id].max() for v in trace.tape.leaves.values()))
    )
    assert set(starts["leaf"]) == set(range(len(graph["parameters"]["name"])))


def test_tokens_stand_at_their_positions(taken, gpt2):
    _, graph, seen = taken
    _, tokens = gpt2
    steps = seen["paths"]["best"]["steps"]
    names = dict(zip(graph["calls"]["number"], graph["calls"]["operator"], strict=True))
    rows = zip(steps["call"], steps["index"], steps["token"], strict=True)
    scores = [(index, token) for call, index, token in rows if names[call] == "aten._log_softmax.default"]
    assert scores
    for (row, _), token in scores:
        batch, time = divmod(row, 16)
        assert token == tokens[batch][time]


def test_tokens_must_be_as_long_as_each_other():
    with pytest.raises(GradtraceError, match="equal length"):
        Question(tokens=[["a"], ["b", "c"]])
    with pytest.raises(GradtraceError, match="greedy, best"):
        Question(kinds=("signed",))


def test_sources_name_no_folder_of_this_machine(taken, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not tmp_path.is_relative_to(p or Path.cwd())])
    assert short_source(f"{tmp_path}/train.py:7") == "train.py:7"
    assert short_source("") == ""
    assert not any(s.startswith("/") for s in taken[1]["calls"]["source"])


def test_functional_code_shows_its_operators():
    from gradtrace import record

    w = torch.tensor([1.0, 2.0], requires_grad=True)
    with record(names={"w": w}) as tape:
        loss = (w.sin() * w).sum()
    trace = tape.trace(loss)
    graph, seen = graph_of(trace), snapshot(trace, Question())
    links = {(label_of(graph, a), label_of(graph, b)) for a, b in links_at(graph, seen["flows"][0])}
    assert ("sum", "loss") in links
    assert {b for a, b in links if a == "w"} <= {"sin", "mul"}


def test_a_scalar_with_a_best_path_and_no_greedy_one():
    from gradtrace import record

    w = torch.tensor([1.0, 2.0], requires_grad=True)
    with record(names={"w": w}) as tape:
        h = w * 1
        loss = h.sum() - h.sum()  # its gradient cancels, so no step from w to it is worth anything
    seen = snapshot(tape.trace(loss), Question())
    assert len(seen["paths"]["best"]["starts"]["leaf"]) == 2
    assert seen["paths"]["greedy"] == {"steps": {k: [] for k in seen["paths"]["greedy"]["steps"]}, "starts": {}}
