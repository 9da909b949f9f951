"""Imported once by the process that all children are forked from: libraries take seconds to import, a fork does not."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

import catalogue  # noqa: F401
import certify  # noqa: F401

for name in ("torchvision", "timm", "transformers.modeling_utils", "torch_geometric.nn", "diffusers"):
    with suppress(ImportError):
        import_module(name)
