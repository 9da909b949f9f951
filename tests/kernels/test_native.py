"""Which kernels run: the compiled ones, the reference on request, and the reference where nothing was compiled."""

from __future__ import annotations

import warnings

import pytest
import torch
from checks import leaf, recorded

from gradtrace.forest import Forest
from gradtrace.kernels import native


def _planted() -> tuple[Forest, torch.Tensor]:
    weights = torch.tensor([[1.0, 2.0], [3.0, 0.5]], dtype=torch.float64)
    tape, loss = recorded(lambda x: (x @ weights).sum(), {"x": leaf(2)})
    trace = tape.trace(loss)
    return trace.forest("best"), trace.strength["x"]


def test_without_the_compiled_module_a_trace_says_so_once_and_is_right(monkeypatch):
    monkeypatch.setattr(native, "lib", None)
    monkeypatch.setattr(native, "_state", {"on": True, "said": False})
    with pytest.warns(RuntimeWarning, match="without its compiled kernels"):
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
