"""The first experiment of Du et al.: its data, and its measure against paths searched for one by one."""

import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import first_token  # noqa: E402

from gradtrace import record  # noqa: E402
from gradtrace.experiments.study_analysis import between  # noqa: E402

pytest.importorskip("transformers")


def test_half_of_the_sequences_repeat_their_first_token_once():
    inputs, labels = first_token.sequences(1)
    again = (inputs[:, 1:] == inputs[:, :1]).sum(1)
    assert again.equal(labels)
    assert labels.sum() == first_token.POINTS // 2
    assert inputs.min() == 1
    assert inputs.max() == first_token.TOKENS - 1


def test_the_measure_is_what_the_strongest_paths_say():
    model = first_token.bert(3)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # away from the beginning, where attention has no gradient
    inputs, labels = first_token.sequences(1)
    found = first_token.branches(model, inputs[:2], labels[:2])
    # The same by the trace's own paths from what the embeddings give, in the network as it is.
    kept = {}
    hook = model.get_submodule("bert.embeddings").register_forward_hook(lambda m, a, r: kept.update(x=r))
    with record(model, examples=inputs[:2]) as tape:
        loss = model(input_ids=inputs[:2]).logits.gather(1, labels[:2, None]).sum()
    hook.remove()
    trace = tape.trace(loss)
    sums = dict.fromkeys(first_token.BRANCHES, 0.0)
    strength = trace.strength[kept["x"]]
    for b in range(2):
        for token in range(first_token.LENGTH):
            unit = int(strength[b, token].argmax())
            path = trace.path(kept["x"], (b, token, unit))
            modules = " ".join(step.module for step in path.steps)
            (branch,) = [n for n in ("key", "query", "value") if f"self.{n}" in modules] or ["skip"]
            sums[branch] += 2.0 ** float(strength[b, token, unit]) / (2 * first_token.LENGTH)
    assert found["absolute"] == pytest.approx(sums, rel=1e-4)
    assert all(found["positive"][n] >= 0 for n in first_token.BRANCHES)
    assert sum(v > 0 for v in sums.values()) > 1  # not one branch alone


@pytest.mark.skipif("GRADTRACE_RECOMPUTE" not in os.environ, reason="trains anew, and rounds as its machine does")
def test_the_page_has_these_numbers():
    page = ROOT / "docs/study.md"
    assert between(page, first_token.table(), first_token.MARKS) == page.read_text(encoding="utf-8")
