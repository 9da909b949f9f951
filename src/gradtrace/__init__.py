"""gradtrace: where does the gradient actually go?

with gradtrace.record(model, examples=x) as tape:
    loss = loss_function(model(x), y)
trace = tape.trace(loss)
print(trace.influence(of="embedding*"))
"""

from .components import Slice
from .errors import GradtraceError
from .paths import Path
from .scopes import component
from .semiring import AbsSum, Max, Semiring, Sum
from .trace import Tape, Trace, record

__version__ = "0.1.0"
__all__ = [
    "AbsSum",
    "GradtraceError",
    "Max",
    "Path",
    "Semiring",
    "Slice",
    "Sum",
    "Tape",
    "Trace",
    "component",
    "record",
]
