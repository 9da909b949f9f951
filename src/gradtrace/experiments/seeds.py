"""Seeds of named parts, each independent of all others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import nn


def derived_seed(seed: int, name: str) -> int:
    """Give a seed for one named part, independent of all other parts."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1


def seeded(seed: int, name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Make a named module, whose weights depend on the seed and the name only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, name))
        return make()
