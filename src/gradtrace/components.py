"""Components, and the attention heads of a model (the public door to `recording.components`)."""

from .recording.components import Component, Slice, expand, heads

__all__ = ["Component", "Slice", "expand", "heads"]
