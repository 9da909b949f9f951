"""Seven models, and what an expert says of each, which is written down in their files: the summary has to say it."""

from __future__ import annotations

from typing import Any

import pytest
from joined import assert_read_off_its_tables
from loading import EXAMPLES, example

import gradtrace
from gradtrace.queries.summary import Summary

NAMES = sorted(path.stem for path in (EXAMPLES / "pages").glob("*.py"))


def _summary(name: str) -> Summary:
    if name in ("bert", "gpt2"):
        pytest.importorskip("transformers")
    try:
        model, batches, loss = example(f"pages/{name}").build()
    except ModuleNotFoundError as error:
        pytest.skip(f"{error}")
    with gradtrace.record(model) as tape:
        value = loss(model, batches[0])
    trace = tape.trace(value)
    summary = trace.summary()
    assert_read_off_its_tables(summary, trace)
    assert len(str(summary).splitlines()) <= 10
    return summary


def _figures(summary: Summary) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for finding in summary.findings:
        found.setdefault(finding.kind, []).append(finding)
    return found


def test_there_are_seven():
    assert len(NAMES) == 7
