"""Run Triton kernels through Triton's interpreter, in a process of their own.

Triton reads TRITON_INTERPRET when it is first imported. Set in the process of the tests it would reach everything
that runs after them.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any


def begin() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    import numpy as np

    np.seterr(all="ignore")  # 0·∞ is meant


def call(content: bytes) -> bytes:
    # as bytes: multiprocessing would send tensors through shared memory, and lose their strides
    name, args, kwargs = pickle.loads(content)
    from gradtrace.kernels import triton_product

    return pickle.dumps(getattr(triton_product, name)(*args, **kwargs))


@contextmanager
def interpreter() -> Iterator[Callable[..., Any]]:
    """Give a function that calls one of `gradtrace.kernels.triton_product` by its name, in that process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=begin) as pool:

        def run(name: str, *args: Any, **kwargs: Any) -> Any:
            return pickle.loads(pool.submit(call, pickle.dumps((name, args, kwargs))).result())

        yield run
