"""Inside other people's training loops: which components the gradient crosses, as training goes on.

`Monitor` is for a loop of one's own; `gradtrace.monitor.trainer` and `gradtrace.monitor.lightning` have callbacks for
transformers and Lightning, `gradtrace.monitor.sinks` ways to other programs' dashboards.
"""

from .monitor import Monitor

__all__ = ["Monitor"]
