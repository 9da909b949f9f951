"""Contractions that are products, maxima along axes, pointwise products, or views."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..jacobians.index_maps import Affine
from ..jacobians.structure import FORMS, Closed, Constant, Contraction, Shape
from ..recording.layouts import contiguous
from . import native
from .product import Plan, Product, plan, product, spread
from .shared_exponent import OutOfRange, Plane, Pulled, by_reference, kept, made, precisely, wide


def contraction(s: Contraction, g: Plane) -> Pulled | Product:
    """Carry values along a contraction, as whichever of these it is."""
    if 0 in s.y_shape or 0 in s.x_shape:
        return by_reference(s, g)
    if s.y == s.x and (s.weight is None or s.w == s.y):
        return _each(s, g)
    p = plan(s.y, s.x, s.w if s.weight is not None else "", s.y_shape, s.x_shape, s.weight is not None)
    batch = g.shape[0]
    if g.data.shape[1:] != s.y_shape:
        g = g.view(g.data.reshape(batch, *s.y_shape))
    if p.kind == "scale":
        return Pulled(_scaled(p, s.weight, g, p.y), None, p.way)
    if p.kind == "view":
        return Pulled(g.view(spread(g.data, p.y, p)), None, p.way)
    if p.kind == "product":
        return product(p, s.weight, g)
    if p.kind == "reduce":
        return _reduced(p, s.weight, g)
    if s.weight is None and batch == 1 and p.y.startswith(p.merged):
        data = g.data.reshape(1, p.count(p.merged), p.count(p.y[len(p.merged) :]))
        return Product(p, batch, g.view(data), None)
    plane, raw = merged(p, g)
    left = "".join(c for c in p.y if c not in p.merged)
    plane = plane.view(spread(plane.data, left, p)) if s.weight is None else _scaled(p, s.weight, plane, left)
    return Pulled(plane, spread(raw, left, p), p.way)


def _each(s: Contraction, g: Plane) -> Pulled:
    """Multiply scalar by scalar, nothing being repeated or added up."""
    data, shape, way = g.data, s.y_shape, straight(s.x_shape)
    if data.shape[1:] != shape:
        data = data.reshape(len(data), *shape)
    weight = s.weight
    if weight is None:
        return Pulled(g.view(data), None, way)
    if isinstance(weight, Constant):
        same = abs(weight.value) == 1
        return Pulled(g.view(data) if same else _times(data, g, "constant", None, weight.value), None, way)
    form, w = (weight.form, weight.of()) if isinstance(weight, Closed) else ("given", weight())
    return Pulled(_times(data, g, form, wide(w if w.shape == shape else w.reshape(shape)), 1.0), None, way)


@lru_cache(maxsize=4096)
def straight(shape: Shape) -> Affine:
    """Lead each scalar to the one in its place."""
    return Affine(shape, contiguous(shape))


def _scaled(p: Plan, weight: Any, g: Plane, have: str) -> Plane:
    """Multiply by a weight with letters among x's."""
    data = spread(g.data, have, p)
    if isinstance(weight, Constant):
        if abs(weight.value) == 1:
            return g.view(data)
        return _times(data, g, "constant", None, weight.value)
    form, w = (weight.form, weight.of()) if isinstance(weight, Closed) else ("given", weight())
    if p.w != p.x:
        order = [p.w.index(c) for c in p.x if c in p.w]
        w = w.reshape(p.shape(p.w)).permute(order).reshape([p.size[c] if c in p.w else 1 for c in p.x])
    elif w.shape != data.shape[1:]:
        w = w.reshape(p.shape(p.w))
    return _times(data, g, form, wide(w), 1.0)


def _times(data: Tensor, g: Plane, form: str, w: Tensor | None, constant: float) -> Plane:
    shift = g.shift
    if w is None or w.dtype is data.dtype:  # nearly always, and nearly always enough
        out, found = native.scale(data, data.shape, form, w, constant, 2.0**shift)
        plane = made(out, g.exponent - shift, found)
        if kept(plane, g):
            return plane
    if w is not None and w.dtype is not torch.float64:  # a weight is what it is in its own precision
        form, w = "given", (w if form == "given" else FORMS[form](w)).to(torch.float64)
    out, found = native.scale(data.to(torch.float64), data.shape, form, w, constant, 2.0**shift)
    plane = made(out, g.exponent - shift, found)
    if not kept(plane, g):
        raise OutOfRange
    return plane


def merged(p: Plan, g: Plane) -> tuple[Plane, Tensor]:
    """Take the maximum along the merged axes: batch × (the other letters of y)."""
    kept = [c for c in p.y if c not in p.merged]
    blocks = _blocks(p, g.data)
    shift = g.shift

    def run(g: Plane) -> tuple[Plane, Tensor]:
        there = blocks if blocks.dtype is g.data.dtype else blocks.to(g.data.dtype)
        out, arg, found = native.reduce_max(there, None, 2.0**shift)
        shape = (g.data.shape[0], *p.shape("".join(kept)))
        return made(out.reshape(shape), g.exponent - shift, found), arg.reshape(shape)

    return precisely(run, g)


def _blocks(p: Plan, data: Tensor) -> Tensor:
    """View batch × y as outer × merged × inner, the merged axes together, or as two where they lie apart."""
    batch = data.shape[0]
    start = p.y.find(p.merged)
    if start >= 0:
        outer, inner = p.count(p.y[:start]), p.count(p.y[start + len(p.merged) :])
        return data.reshape(batch * outer, p.count(p.merged), inner)
    kept = [1 + i for i, c in enumerate(p.y) if c not in p.merged]
    gone = [1 + i for i, c in enumerate(p.y) if c in p.merged]
    cut = len(gone) - 1  # where their last run begins, which is one axis in memory
    while cut > 0 and gone[cut - 1] + 1 == gone[cut]:
        cut -= 1
    first, last = p.count(p.merged[:cut]), p.count(p.merged[cut:])
    return data.permute(0, *kept, *gone).reshape(-1, first, last, 1)


def _reduced(p: Plan, weight: Any, g: Plane) -> Pulled:
    """Take the maximum of weighted values along axes that the weight has, where nothing else is new."""
    w = wide(weight())
    if p.w == p.y and len(g.data) == 1:
        w = w.reshape(g.data.shape)
    else:
        beyond = [i for i, c in enumerate(p.w) if c not in p.y]  # of size 1 here
        w = w.reshape(p.shape(p.w)).permute([p.w.index(c) for c in p.y if c in p.w] + beyond)
        w = w.reshape([p.size[c] if c in p.w else 1 for c in p.y]).unsqueeze(0).expand(g.data.shape)
    values, weights, shift = _blocks(p, g.data), _blocks(p, w), g.shift
    left = "".join([c for c in p.y if c not in p.merged])
    shape = (len(g.data), *p.shape(left))

    def run(g: Plane) -> tuple[Plane, Tensor]:
        kind = g.data.dtype
        out, arg, found = native.reduce_max(values.to(kind), weights.to(kind), 2.0**shift)
        return made(out.view(shape), g.exponent - shift, found), arg.view(shape)

    plane, raw = precisely(run, g, double=w.dtype is torch.float64)
    plane.data = spread(plane.data, left, p)
    return Pulled(plane, spread(raw, left, p), p.way)
