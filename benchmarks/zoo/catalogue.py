"""All rows of the zoo, by name: library/architecture."""

from __future__ import annotations

import of_diffusers
import of_geometric
import of_timm
import of_torch
import of_torchvision
import of_transformers
from rows import Build

LIBRARIES: dict[str, dict[str, Build]] = {
    "torch": of_torch.ROWS,
    "transformers": of_transformers.ROWS,
    "timm": of_timm.ROWS,
    "torchvision": of_torchvision.ROWS,
    "torch_geometric": of_geometric.ROWS,
    "diffusers": of_diffusers.ROWS,
}
ROWS: dict[str, Build] = {
    f"{library}/{name}": build for library, rows in LIBRARIES.items() for name, build in rows.items()
}

of_torchvision.define_operators()  # timm and transformers import torchvision too
