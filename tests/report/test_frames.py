"""A trace for pandas and for Graphviz."""

from __future__ import annotations

import re

import pytest
import torch

from gradtrace import record


@pytest.fixture(scope="module")
def trace():
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({'a"b': torch.nn.Linear(3, 4), "c": torch.nn.Linear(4, 1)})
    x = torch.randn(5, 3)
    with record(model, examples=x) as tape:
        loss = model["c"](model['a"b'](x).relu()).square().mean()
    return tape.trace(loss)


def test_a_row_a_parameter_and_component(trace):
    frame = trace.to_dataframe()
    assert len(frame) == 4 * 2
    row = frame[(frame.parameter == 'a"b.bias') & (frame.component == "c")].iloc[0]
    (own,) = trace.influence("c", of='a"b.bias').rows
    assert (row.share, row.weighted_share, row.dead_share) == (own.share, own.weighted_share, own.dead_share)
    assert row.log2_strength == float(trace.strength['a"b.bias'].max())
    assert set(trace.to_dataframe("c").component) == {"c"}


def test_dot_has_every_link_with_its_share(trace):
    text = trace.to_dot()
    flow = trace.flow()
    assert text.startswith("digraph gradtrace {")
    assert len(re.findall("->", text)) == len(flow.links)
    assert '"a\\"b.weight"' in text
    for link in flow.links:
        assert f'label="{link.paths / flow.total:.1%}"' in text
