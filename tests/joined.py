"""Networks whose joins are known, and how a finding is read off the tables again."""

from __future__ import annotations

import math
import re
from statistics import fmean, median

import pytest
import torch
from checks import F64
from torch import Tensor, nn

import gradtrace
from gradtrace import Trace
from gradtrace.queries.findings import FEW, IDLE, Finding
from gradtrace.queries.join_rows import Join
from gradtrace.queries.join_text import cell
from gradtrace.queries.joins import JoinTable
from gradtrace.queries.lost import FAINT, NEARLY_DEAD
from gradtrace.queries.summary import Summary


def traced(model: nn.Module, x: Tensor) -> Trace:
    with gradtrace.record(model) as tape:
        loss = model(x).sum()
    return tape.trace(loss)


class Residual(nn.Module):
    """A block that holds its own addition, as a BertOutput does: the skip comes in from outside."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 3, bias=False).double()
        self.dense.weight.data = scale * torch.eye(3, **F64)

    def forward(self, hidden: Tensor, skip: Tensor) -> Tensor:
        return self.dense(hidden) + skip


class Stack(nn.Module):
    """Residual blocks, each weaker or stronger than its skip."""

    def __init__(self, *scales: float) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3).double()
        self.layer = nn.ModuleList(
            nn.ModuleDict({"inner": nn.Linear(3, 3).double(), "output": Residual(s)}) for s in scales
        )
        for layer in self.layer:
            nn.init.eye_(layer["inner"].weight)  # type: ignore[index,union-attr]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layer:
            x = layer["output"](layer["inner"](x), x)  # type: ignore[index,operator]
        return x


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4).double()
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True).double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.attn(x, x, x, need_weights=False)[0]


class Stuck(nn.Module):
    """A ReLU that is off behind a layer, and a gate that is nearly shut before two others."""

    def __init__(self, bias: float = -9.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.squeeze, self.out = (nn.Linear(3, 3).double() for _ in range(3))
        self.value, self.gate, self.hidden = (nn.Linear(3, 3).double() for _ in range(3))
        nn.init.constant_(self.below.bias, -90.0)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(self.below(x).relu())
        return self.out(self.hidden(torch.sigmoid(self.gate(x)) * torch.tanh(self.value(x))).tanh())


def assert_read_off_its_tables(summary: Summary, trace: Trace) -> None:
    """Work out every cell and figure of a summary's findings again, and look for all figures of the sentences."""
    kind = summary.early.kind
    early = trace.joins(list(summary.early.of), per_example=False, kind=kind)
    fresh = {"early": early, "all": trace.joins(per_example=False, kind=kind)}
    for finding in summary.findings:
        for one in finding.cells:
            if one.table == "dead":
                (row,) = trace.influence("", one.row, per_example=False, kind=kind).rows
                assert one.value == pytest.approx(row.dead_share), finding.text
            else:
                assert (one.value, one.paths) == _in_table(fresh[one.table], int(one.row), one.column)[one.column], (
                    finding.text
                )
        _assert_figure(finding, fresh)
        if finding.kind == "vanished":
            _assert_vanishes(finding, trace, summary)
        assert set(re.findall(r"([<>]?[\d.]+)%", finding.text)) <= _figures(finding, fresh), finding.text


def _in_table(table: JoinTable, call: int, branch: str) -> dict[str, tuple[float, float]]:
    """Give the branches of a call's join that has one of that name: a call that joins heads may be a join itself."""
    return {b.name: (b.share, b.paths) for b in _join(table, call, branch).branches}


def _join(table: JoinTable, call: int, branch: str) -> Join:
    joins = [j for g in table.grids() for j in g.joins if j.call == call]
    (join,) = [j for j in joins if any(b.name == branch for b in j.branches)]
    return join


def _assert_figure(finding: Finding, tables: dict[str, JoinTable]) -> None:
    told = sum(c.paths for c in finding.cells)
    calls = {(c.table, int(c.row), c.column) for c in finding.cells if c.table != "dead"}
    whole = sum(paths for table, call, name in calls for _, paths in _in_table(tables[table], call, name).values())
    if finding.kind in ("around", "through", "divided", "load"):
        assert finding.figure == pytest.approx(told / whole)
        assert f"{cell(finding.figure)}%" in finding.text
    elif finding.kind == "odd":
        assert finding.figure in [c.value for c in finding.cells]
        assert f"{cell(finding.figure)}%" in finding.text
    elif finding.kind == "trend":
        _assert_trend(finding, tables)
    elif finding.kind == "idle":
        assert all(c.value < IDLE for c in finding.cells)
        assert finding.text.startswith(f"{len(finding.cells)} of the ")
    elif finding.kind == "dead" and "Nearly all" not in finding.text:
        assert all(c.value == 1 for c in finding.cells)
        assert finding.figure == len(finding.cells) / finding.paths
        assert f"({len(finding.cells)} of the {finding.paths:.0f} parameters)" in finding.text
    elif finding.kind == "dead":
        assert finding.figure == max(c.value for c in finding.cells)
        assert all(NEARLY_DEAD <= c.value < 1 for c in finding.cells)


def _assert_trend(finding: Finding, tables: dict[str, JoinTable]) -> None:
    """Look for where each branch begins and ends, at the first and the last join to which enough paths come."""
    columns: dict[str, list[float]] = {}
    for one in finding.cells:
        if _join(tables[one.table], int(one.row), one.column).paths >= FEW:
            columns.setdefault(one.column, []).append(one.value)
    for name, (first, *_, last) in columns.items():
        way = "rises" if last > first else "falls"
        assert f"{name} {way} from {cell(first)}% to {cell(last)}%" in finding.text
    assert finding.figure == next(iter(columns.values()))[-1]


def _figures(finding: Finding, tables: dict[str, JoinTable]) -> set[str]:
    """Give all that a sentence may say in percent, of the joins that its cells are of, from the tables again."""
    if any(c.table == "dead" for c in finding.cells):
        return {f"{100 * c.value:.1f}" for c in finding.cells}
    out, calls = set[str](), {(c.table, int(c.row), c.column) for c in finding.cells}
    for name in {c.table for c in finding.cells}:
        table = tables[name]
        joins = list(
            {id(j): j for t, call, branch in calls if t == name for j in [_join(table, call, branch)]}.values()
        )
        comes = [j.share for j in joins]
        weight = sum(j.weight for j in joins)
        found = [min(comes), max(comes), fmean(comes), weight / len(joins) / table.weight]
        total = sum(j.paths for j in joins)
        for branch in {b.name for j in joins for b in j.branches}:
            own = [b for j in joins for b in j.branches if b.name == branch]
            told = [b.share for j in joins if j.paths >= FEW for b in j.branches if b.name == branch]
            heavy = sum(b.weighted_share * j.weight for j in joins for b in j.branches if b.name == branch)
            share = sum(b.paths for b in own) / total
            found += [share, 1 - share, heavy / weight, *(b.share for b in own), *([median(told)] if told else [])]
        out |= {cell(number) for number in found}
    return out


def _assert_vanishes(finding: Finding, trace: Trace, summary: Summary) -> None:
    """Read the paths of all scalars of the earliest parameters, and what their steps at the named line weigh."""
    (line,) = re.findall(r"\(([^()]+:\d+)\)", finding.text)
    (power,) = re.findall(r"2\^(-\d+)", finding.text)
    leaves = {name: trace.tape.leaves[name] for name in summary.early.of}
    forest = trace.forest(summary.early.kind)
    paths = [
        trace.path(name, tuple(at), kind=summary.early.kind)
        for name, leaf in leaves.items()
        for at in torch.ones(leaf.shape).nonzero().tolist()
        if forest.traced(leaf, 0, int(torch.arange(leaf.numel).reshape(leaf.shape)[tuple(at)]))
    ]
    weights: dict[str, list[float]] = {}
    for path in paths:
        for step in path.steps:
            if step.source.endswith(line) and step.derivative:
                weights.setdefault(step.operator, []).append(math.log2(abs(step.derivative)))
    assert finding.paths == len(paths)  # few enough, so that all were read
    assert min(map(median, weights.values())) == pytest.approx(finding.figure)
    assert round(finding.figure) == int(power) <= FAINT
