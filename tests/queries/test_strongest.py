"""The strongest scalars, against a sort of all of them."""

from __future__ import annotations

import pytest
import torch
from checks import recorded

from gradtrace.kernels import native
from gradtrace.queries.strongest import strongest


@pytest.mark.parametrize("kind", ["native", "reference"])
@pytest.mark.parametrize("k", [0, 1, 7, 5000])
@pytest.mark.parametrize("levels", [3, 10_000])
def test_they_are_the_first_of_a_stable_sort(kind, k, levels):
    torch.manual_seed(0)
    leaves = {
        name: torch.zeros(size, dtype=torch.float64, requires_grad=True) for name, size in (("a", 3000), ("b", 70))
    }
    weights = {name: torch.randint(levels, (len(leaf),)).double() for name, leaf in leaves.items()}
    with native.using(kind):
        tape, loss = recorded(lambda a, b: (a * weights["a"]).sum() + (b * weights["b"]).sum(), leaves)
        found = strongest(tape.trace(loss).forest(), [tape.leaves["a"], tape.leaves["b"]], k)
    every = torch.cat([weights["a"], weights["b"]])
    order = [int(i) for i in every.sort(descending=True, stable=True).indices if every[i] > 0][:k]
    assert [flat + 3000 * leaf for _, leaf, flat in found] == order
    assert [log2 for log2, *_ in found] == pytest.approx([float(every[i].log2()) for i in order])
