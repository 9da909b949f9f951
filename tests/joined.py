"""Networks whose joins are known, and how a finding is read off the tables again."""

from __future__ import annotations

import pytest
import torch
from checks import F64
from torch import Tensor, nn

import gradtrace
from gradtrace import Trace
from gradtrace.queries.findings import IDLE, Finding
from gradtrace.queries.join_text import cell
from gradtrace.queries.joins import JoinTable
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


def assert_read_off_its_tables(summary: Summary, trace: Trace) -> None:
    """Work out every cell and figure of a summary's findings again, and look for the figure in the sentence."""
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


def _in_table(table: JoinTable, call: int, branch: str) -> dict[str, tuple[float, float]]:
    """Give the branches of a call's join that has one of that name: a call that joins heads may be a join itself."""
    found = [{b.name: (b.share, b.paths) for b in j.branches} for g in table.grids() for j in g.joins if j.call == call]
    (branches,) = [b for b in found if branch in b]
    return branches


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
    elif finding.kind == "idle":
        assert all(c.value < IDLE for c in finding.cells)
        assert finding.text.startswith(f"{len(finding.cells)} of the ")
    elif finding.kind == "dead" and finding.text.startswith("No path"):
        assert all(c.value == 1 for c in finding.cells)
        assert f"from {len(finding.cells)} of the {finding.paths:.0f} parameters" in finding.text
