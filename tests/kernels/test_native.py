"""Which kernels run (the compiled ones, or the reference on request and where none are), and what they say of NaN."""

from __future__ import annotations

import warnings

import pytest
import torch
from checks import leaf, recorded

from gradtrace.kernels import native
from gradtrace.queries.forest import Forest


def _planted() -> tuple[Forest, torch.Tensor]:
    weights = torch.tensor([[1.0, 2.0], [3.0, 0.5]], dtype=torch.float64)
    tape, loss = recorded(lambda x: (x @ weights).sum(), {"x": leaf(2)})
    trace = tape.trace(loss)
    return trace.forest("best"), trace.strength["x"]


def test_without_the_compiled_module_a_trace_says_so_once_and_is_right(monkeypatch):
    monkeypatch.setattr(native, "lib", None)
    monkeypatch.setattr(native, "MISSING", "no such file")
    monkeypatch.setattr(native, "_state", {"on": True, "said": False})
    with pytest.warns(RuntimeWarning, match=r"without its compiled kernels \(no such file\)"):
        forest, strength = _planted()
    assert forest.compact is None
    assert strength.exp2().tolist() == [2.0, 3.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _planted()


def test_who_asks_for_the_reference_is_not_warned(monkeypatch):
    monkeypatch.setattr(native, "lib", None)
    monkeypatch.setattr(native, "_state", {"on": False, "said": False})
    assert _planted()[0].compact is None


@pytest.mark.skipif(native.lib is None, reason="no compiled kernels")
def test_the_reference_serves_inside_a_block_only():
    with native.using("native"):
        with native.using("reference"):
            assert not native.available()
            assert _planted()[0].compact is None
        assert native.available()
        assert _planted()[0].compact is not None


def test_kernels_are_restored_after_an_error():
    before = native.available()
    with pytest.raises(RuntimeError, match="inside"), native.using("reference"):
        raise RuntimeError("inside")
    assert native.available() is before


def test_unknown_kernels():
    with pytest.raises(ValueError, match=r"unknown kernels 'fast'; there are native, reference"), native.using("fast"):
        pass


LAID_OUT = {
    "rows": lambda x: x,
    "columns": lambda x: x.T.contiguous().T,
    "turned": lambda x: x.reshape(5, 3, 2).permute(2, 0, 1),
    "steps": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0],  # NaN between, which is not its own
    "a window": lambda x: torch.nn.functional.pad(x, (2, 2), value=torch.nan)[:, 2:-2],
    "repeated": lambda x: x[:1].expand(4, 6),
}


@pytest.mark.parametrize("layout", LAID_OUT)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_nan_is_found_wherever_it_lies_and_none_beside(layout, kind):
    for place in (None, *range(6)):
        x = torch.arange(30, dtype=kind).reshape(5, 6)
        if place is not None:
            x[0, place] = torch.nan
        others = [torch.ones(3, dtype=kind), torch.ones(0, dtype=kind)]
        assert native.any_nan([*others, LAID_OUT[layout](x)]) == (place is not None)
