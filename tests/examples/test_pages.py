"""Seven models, and what an expert says of each, which is written down in their files: the summary has to say it."""

from __future__ import annotations

import re
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
        model, batches, loss, *_ = example(f"pages/{name}").build()
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


def _texts(name: str) -> str:
    return "\n".join(finding.text for finding in _summary(name).findings)


def test_gpt2_goes_around_attention_and_feed_forward_in_all_layers():
    said = _texts("gpt2")
    for branch in ("attn", "mlp"):
        assert re.search(rf"9[89]\.\d% of .* go around {branch} at the 12 additions of transformer\.h\.\*", said)
    assert re.search(
        r"start at the matrix product of lm_head as its weight, \d.*% by transformer", said
    )  # whose output is tied to the embedding


def test_the_stem_of_a_residual_network_takes_the_skips():
    said = _texts("resnet")
    assert re.search(
        r"\d% of the paths from conv1 .* go around conv1 → conv2 at 5 of the 8 additions of layer\*\.\*", said
    )
    assert re.search(r"take downsample at 3 of the 8 additions of layer\*\.\*.*, \d.*% by conv1 → conv2", said)


def test_the_first_level_of_a_unet_takes_its_skip():
    summary = _summary("unet")
    said = "\n".join(finding.text for finding in summary.findings)
    assert "of the paths from down.0.0 (one for each scalar) go around down.1 → … → rise.0 at the concatenation" in said
    assert len([j for j in summary.whole.rows if j.operator == "cat"]) == 3
    assert all(j.around is not None and j.around > 0.9 for j in summary.whole.rows)


def test_a_graph_networks_first_layer_has_a_short_way_and_vertices_keep_to_themselves():
    said = _texts("graph_network")
    assert re.search(r"paths from embed .* go around layers\.0, .* at the concatenation", said)
    assert re.search(r"take own at the 4 additions of layers\.\*.*, \d.*% by neighbours", said)


def test_a_trained_bert_has_its_skips_inside_its_modules_and_idle_heads():
    said = _texts("bert")
    assert re.search(r"layer\.\d\.attention differs from its siblings: \d.*% go around, and 8\d.*% at the median", said)
    assert re.search(r"additions of encoder\.layer\.\*: around 7\d.*% \(5\d.*% to 8\d.*%\)", said)
    assert re.search(r"of the \d+ heads in encoder\.layer\.\*\.attention\.self carry next to nothing", said)
    assert said.startswith(
        "pooler gets no gradient (2 of the 103 parameters): the loss is not computed from the result of"
    )


def test_the_encoder_of_a_translator_comes_by_the_cell_and_mostly_to_the_first_step():
    summary = _summary("seq2seq")
    said = "\n".join(finding.text for finding in summary.findings)
    assert re.search(r"of the paths from source take cell at the 3 gated sums of decoder", said)
    assert re.search(r"at the stack of decoder: part 0 5\d.*%, part 2 .* and part 1", said)


def test_an_expert_without_words_is_named_and_dead():
    said = _texts("experts")
    assert re.search(r"of the paths from embed .* go around blocks\.\* at the 2 additions", said)
    assert "expert 3 of blocks.0" in said
    assert re.search(r"Experts in blocks\.\* by load: ", said)
    assert said.startswith(
        "blocks.0.experts.3 gets no gradient (4 of the 43 parameters): index in blocks.0 picks nothing"
    )
