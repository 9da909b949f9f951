"""Let a tape outlive an optimizer's step: copy what it shares with the program's parameters."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .record import Record, Saved


def keep_leaves(record: Record) -> None:
    """Copy the leaves' data, each storage once, for all that the tape reads of it (a weight at 35 time steps).

    Activations and buffers are not copied: no optimizer writes to them.

    Raises:
        StaleTensor: a leaf has been written to already.
    """
    shared = {v.data.data.untyped_storage()._cdata for v in record.leaves.values() if v.data is not None}
    copies: dict[int, torch.UntypedStorage] = {}
    for saved in _saved(record):
        storage = saved.data.untyped_storage()
        if storage._cdata in shared and saved.is_shared:
            if storage._cdata not in copies:
                copies[storage._cdata] = storage.clone()
            saved.move(copies[storage._cdata])


def _saved(record: Record) -> Iterator[Saved]:
    for leaf in record.leaves.values():
        if leaf.data is not None:
            yield leaf.data
    for call in record.calls:
        yield from (i.saved for i in call.inputs if isinstance(i.saved, Saved))
        yield from (r for r in call.results if r is not None)
