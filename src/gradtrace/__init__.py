"""gradtrace: where does the gradient actually go?

with gradtrace.record(model, examples=x) as tape:
    loss = loss_function(model(x), y)
trace = tape.trace(loss)
print(trace.influence(of="embedding*"))
"""

from importlib import import_module
from typing import Any

from .api import Tape, Trace, record
from .errors import GradtraceError
from .queries.paths import Path
from .ranks import reduced
from .recording.components import Slice
from .recording.scopes import component
from .saved import compare, load
from .semirings import AbsSum, Count, Entropy, Graded, Max, Power, Semiring, SignedMax, Sum, Through, TopK

__version__ = "0.1.0"
__all__ = [
    "AbsSum",
    "Count",
    "Entropy",
    "Graded",
    "GradtraceError",
    "Max",
    "Path",
    "Power",
    "Semiring",
    "SignedMax",
    "Slice",
    "Sum",
    "Tape",
    "Through",
    "TopK",
    "Trace",
    "compare",
    "component",
    "load",
    "record",
    "reduced",
]


def __getattr__(name: str) -> Any:
    """Import what most programs do without when it is first used: `gradtrace.scalar` brings networkx."""
    if name in ("scalar", "monitor"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
