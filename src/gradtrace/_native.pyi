"""Signatures of the C++ kernels, made by `python -m nanobind.stubgen -D -m gradtrace._native`."""

from collections.abc import Mapping, Sequence
from typing import overload

def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...

class Prepared:
    pass

def max_product(
    double_: bool,
    batch: int,
    m: int,
    n: int,
    k: int,
    a_ptr: int,
    a_sb: int,
    a_sm: int,
    a_sk: int,
    w_ptr: int,
    w_sb: int,
    w_sn: int,
    w_sk: int,
    out_ptr: int,
    arg_ptr: int,
    prepared: Prepared | None,
    threads: int,
    short_arg: bool = False,
) -> tuple[float, float, int]: ...
def prepare(double_: bool, batch: int, n: int, k: int, w_ptr: int, w_sb: int, w_sn: int, w_sk: int) -> Prepared: ...
def use_variant(name: str) -> None: ...
def conv_input(
    double_: bool,
    transposed: bool,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    y_shape: Sequence[int],
    groups: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    w_ptr: int,
    g_ptr: int,
    f: float,
    out_ptr: int,
    arg_ptr: int,
    threads: int,
) -> tuple[float, float, int]: ...
def conv_weight(
    double_: bool,
    transposed: bool,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    y_shape: Sequence[int],
    groups: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    x_ptr: int,
    g_ptr: int,
    f: float,
    out_ptr: int,
    arg_ptr: int,
    threads: int,
) -> tuple[float, float, int]: ...
def scale(
    double_: bool,
    kind: int,
    shape: Sequence[int],
    g_ptr: int,
    g_strides: Sequence[int],
    w_ptr: int,
    w_strides: Sequence[int],
    c: float,
    f: float,
    out_ptr: int,
    threads: int,
) -> tuple[float, float, int]: ...
def merge(
    double_: bool,
    n: int,
    a_ptr: int,
    fa: float,
    b_ptr: int,
    fb: float,
    a_index_ptr: int,
    b_index_ptr: int,
    choice_ptr: int,
    ordinal: int,
    wide_choice: bool,
    threads: int,
) -> tuple[float, float, int]: ...
@overload
def reduce_max(
    double_: bool,
    outer: int,
    n: int,
    inner: int,
    g_ptr: int,
    g_strides: Sequence[int],
    w_ptr: int,
    w_strides: Sequence[int],
    f: float,
    out_ptr: int,
    index_ptr: int,
    threads: int,
) -> tuple[float, float, int]: ...
@overload
def reduce_max(
    double_: bool,
    outer: int,
    n: Sequence[int],
    inner: int,
    g_ptr: int,
    g_strides: Sequence[int],
    w_ptr: int,
    w_strides: Sequence[int],
    f: float,
    out_ptr: int,
    index_ptr: int,
    threads: int,
) -> tuple[float, float, int]: ...
def segment_max(
    double_: bool,
    batch: int,
    rows: int,
    inner: int,
    size: int,
    g_ptr: int,
    index_ptr: int,
    f: float,
    out_ptr: int,
    arg_ptr: int,
    init: bool,
    choice_ptr: int,
    ordinal: int,
    wide_choice: bool,
    threads: int,
) -> tuple[float, float, int]: ...
def rank_one(
    double_: bool,
    kind: int,
    rows: int,
    n1: int,
    n2: int,
    g_ptr: int,
    g_strides: Sequence[int],
    own_ptr: int,
    own_strides: Sequence[int],
    left_ptr: int,
    left_strides: Sequence[int],
    right_ptr: int,
    right_strides: Sequence[int],
    f: float,
    out_ptr: int,
    out_strides: Sequence[int],
    arg_ptr: int,
    threads: int,
) -> tuple[float, float, int]: ...
def rank_two(
    double_: bool,
    rows: int,
    n1: int,
    n2: int,
    g_ptr: int,
    g_strides: Sequence[int],
    own_ptr: int,
    own_strides: Sequence[int],
    left0_ptr: int,
    left0_strides: Sequence[int],
    left1_ptr: int,
    left1_strides: Sequence[int],
    t_ptr: int,
    t_strides: Sequence[int],
    f: float,
    out_ptr: int,
    out_strides: Sequence[int],
    arg_ptr: int,
    threads: int,
) -> tuple[float, float, int]: ...
def standard(
    double_: bool,
    double_factors: bool,
    rows: int,
    n1: int,
    n2: int,
    g_ptr: int,
    g_strides: Sequence[int],
    hat_ptr: int,
    hat_strides: Sequence[int],
    gamma_ptr: int,
    gamma_strides: Sequence[int],
    scale_ptr: int,
    scale_strides: Sequence[int],
    count: float,
    f: float,
    out_ptr: int,
    out_strides: Sequence[int],
    arg_ptr: int,
    short_arg: bool,
    threads: int,
) -> tuple[float, float, int]: ...
def meeting(
    double_: bool,
    rows: int,
    n1: int,
    n2: int,
    left0_ptr: int,
    left0_strides: Sequence[int],
    left1_ptr: int,
    left1_strides: Sequence[int],
    right0_ptr: int,
    right0_strides: Sequence[int],
    right1_ptr: int,
    right1_strides: Sequence[int],
    threads: int,
) -> int: ...
def tally(
    double_: bool, bits_ptr: int, strength_ptr: int, n: int, threads: int
) -> list[tuple[int, int, float]] | None: ...
def inherit(
    shape: Sequence[int],
    raw_ptr: int,
    raw_stride: Sequence[int],
    short_raw: bool,
    choice_ptr: int,
    choice_stride: Sequence[int],
    wide_choice: bool,
    ordinal_ptr: int,
    local_ptr: int,
    sources: list,
    begin: int,
    end: int,
    word: int,
    widen: bool,
    out_ptr: int,
    threads: int,
) -> None: ...
def absolute(double_: bool, data_ptr: int, n: int, threads: int) -> tuple[float, float, int]: ...
def any_nan(double_: bool, tensors: Sequence[tuple[int, int]], threads: int) -> bool: ...

class Scratch:
    def __init__(self) -> None: ...

class Departures:
    def __init__(
        self,
        scratch: Scratch,
        winners: tuple[
            Sequence[int], tuple[int, int, Sequence[int]], tuple[int, int, Sequence[int]], tuple[int, int], list
        ],
        rows: int,
        double_: bool,
        weight_ptr: int,
        live_ptr: int,
        threads: int,
    ) -> None: ...
    def open(self) -> list: ...
    def place(self, number: int, places_ptr: int, size: int) -> None: ...
    def totals(self, rows: int) -> list[tuple[float, float]]: ...
    def tally(
        self, word: int, sources: Sequence[tuple[int, int, bool, int]]
    ) -> list[tuple[int, int, float, float]]: ...

class Units:
    def __init__(self) -> None: ...
    def leave(
        self,
        departures: Departures,
        ways: Sequence[tuple[Sequence[tuple[int, int]], int, bool, bool]],
        groups: Sequence[Sequence[int]],
        shift: float,
    ) -> None: ...
    def leave_straight(
        self, hops: Sequence[tuple[int, int]], target: int, group: int, count: float, weight: float, shift: float
    ) -> None: ...
    def groups_at(self, value: int) -> list[int]: ...
    def regroup(self, value: int, numel: int, groups: Mapping[int, int]) -> None: ...
    def parts(self, value: int, size: int, count: int) -> list[tuple[int, int, float, float]]: ...
    def send(
        self,
        value: int,
        winners: tuple[
            Sequence[int], tuple[int, int, Sequence[int]], tuple[int, int, Sequence[int]], tuple[int, int], list
        ],
    ) -> list: ...
    def pass_on(self, value: int, hop: tuple[int, int], target: int, rows: bool) -> None: ...
    def send_straight(self, value: int, hop: tuple[int, int], target: int) -> None: ...
    def place(self, number: int, places_ptr: int) -> None: ...
    def waits(self, value: int) -> bool: ...
    def waits_straight(self, value: int) -> bool: ...
    def found(self) -> list[tuple[int, int, int, float, float]]: ...

def top_product(
    is_double: bool,
    batch: int,
    n: int,
    a_ptrs: Sequence[int],
    a_batch_stride: int,
    a_row_axes: Sequence[tuple[int, int]],
    a_list_axes: Sequence[tuple[int, int]],
    w_ptr: int,
    w_strides: Sequence[int],
    keep: int,
    out_ptr: int,
    threads: int,
) -> int: ...
def top_low_rank(
    is_double: bool,
    batch: int,
    rows: int,
    n: int,
    g_ptrs: Sequence[int],
    g_strides: Sequence[int],
    factor_ptrs: Sequence[int],
    factor_strides: Sequence[Sequence[int]],
    keep: int,
    out_ptr: int,
    threads: int,
) -> int: ...
def top_weigh(is_double: bool, n: int, g_ptrs: Sequence[int], w_ptr: int, out_ptr: int, threads: int) -> int: ...
def top_merge(
    is_double: bool, n: int, a_ptrs: Sequence[int], b_ptrs: Sequence[int], out_ptrs: Sequence[int], threads: int
) -> None: ...
def top_reduce(
    is_double: bool,
    rows: int,
    n: int,
    g_ptrs: Sequence[int],
    row_stride: int,
    stride: int,
    keep: int,
    out_ptr: int,
    threads: int,
) -> None: ...
def top_segment(
    is_double: bool,
    rows: int,
    n: int,
    g_ptrs: Sequence[int],
    g_strides: Sequence[int],
    index_ptr: int,
    index_row_stride: int,
    size: int,
    keep: int,
    out_ptr: int,
) -> int: ...
def top_depth(
    is_double: bool,
    batch: int,
    g_ptrs: Sequence[int],
    g_batch_stride: int,
    g_row_axes: Sequence[tuple[int, int]],
    g_list_axes: Sequence[tuple[int, int]],
    keep: int,
) -> int: ...
def sum_units(
    arg0: bool,
    arg1: Sequence[int],
    arg2: Sequence[int],
    arg3: int,
    arg4: bool,
    arg5: int,
    arg6: int,
    arg7: int,
    arg8: int,
    /,
) -> int: ...
def sum_raise(
    arg0: bool,
    arg1: bool,
    arg2: Sequence[int],
    arg3: Sequence[int],
    arg4: int,
    arg5: bool,
    arg6: int,
    arg7: int,
    arg8: int,
    arg9: int,
    /,
) -> int: ...
def sum_shares(
    arg0: bool,
    arg1: bool,
    arg2: Sequence[int],
    arg3: Sequence[int],
    arg4: int,
    arg5: int,
    arg6: bool,
    arg7: int,
    arg8: int,
    arg9: int,
    arg10: int,
    /,
) -> int: ...
def sum_prepare(
    arg0: bool,
    arg1: bool,
    arg2: Sequence[int],
    arg3: Sequence[int],
    arg4: int,
    arg5: int,
    arg6: bool,
    arg7: int,
    arg8: int,
    arg9: int,
    arg10: int,
    arg11: int,
    arg12: int,
    /,
) -> int: ...
def sum_settle(
    arg0: bool,
    arg1: bool,
    arg2: Sequence[int],
    arg3: int,
    arg4: int,
    arg5: int,
    arg6: int,
    arg7: float,
    arg8: int,
    arg9: int,
    /,
) -> int: ...
def sum_settle_shares(
    arg0: bool,
    arg1: bool,
    arg2: Sequence[int],
    arg3: int,
    arg4: int,
    arg5: int,
    arg6: int,
    arg7: float,
    arg8: int,
    arg9: int,
    arg10: int,
    /,
) -> int: ...
def sum_join(
    arg0: bool, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: int, arg8: int, arg9: int, /
) -> int: ...
def sum_reduce(
    arg0: bool,
    arg1: Sequence[int],
    arg2: Sequence[int],
    arg3: int,
    arg4: int,
    arg5: bool,
    arg6: int,
    arg7: int,
    arg8: int,
    arg9: int,
    /,
) -> int: ...
def sum_one_rows(
    arg0: bool,
    arg1: int,
    arg2: int,
    arg3: int,
    arg4: int,
    arg5: int,
    arg6: int,
    arg7: int,
    arg8: int,
    arg9: int,
    arg10: int,
    arg11: int,
    arg12: int,
    /,
) -> int: ...
def sum_two_rows(
    arg0: bool,
    arg1: int,
    arg2: int,
    arg3: int,
    arg4: int,
    arg5: int,
    arg6: int,
    arg7: int,
    arg8: int,
    arg9: int,
    arg10: int,
    arg11: int,
    arg12: int,
    arg13: int,
    /,
) -> int: ...
def sum_standard_rows(
    arg0: bool,
    arg1: int,
    arg2: int,
    arg3: int,
    arg4: int,
    arg5: Sequence[int],
    arg6: int,
    arg7: Sequence[int],
    arg8: int,
    arg9: Sequence[int],
    arg10: int,
    arg11: Sequence[int],
    arg12: int,
    arg13: Sequence[int],
    arg14: int,
    arg15: Sequence[int],
    arg16: int,
    arg17: Sequence[int],
    arg18: float,
    arg19: int,
    arg20: int,
    /,
) -> int: ...
def sum_added_rows(
    arg0: int,
    arg1: int,
    arg2: int,
    arg3: int,
    arg4: Sequence[int],
    arg5: int,
    arg6: Sequence[int],
    arg7: int,
    arg8: Sequence[int],
    arg9: int,
    arg10: Sequence[int],
    arg11: int,
    arg12: Sequence[int],
    arg13: float,
    arg14: int,
    /,
) -> int: ...
def signed_product(
    is_double: bool,
    batch: int,
    m: int,
    n: int,
    k: int,
    a_ptrs: Sequence[int],
    a_strides: Sequence[int],
    w_ptr: int,
    w_strides: Sequence[int],
    out_ptrs: Sequence[int],
    threads: int,
) -> int: ...
def signed_low_rank(
    is_double: bool,
    batch: int,
    rows: int,
    n: int,
    g_ptrs: Sequence[int],
    g_strides: Sequence[int],
    factor_ptrs: Sequence[int],
    factor_strides: Sequence[Sequence[int]],
    out_ptrs: Sequence[int],
    threads: int,
) -> int: ...
def signed_scale(
    is_double: bool, n: int, w_ptr: int, g_ptrs: Sequence[int], out_ptrs: Sequence[int], threads: int
) -> int: ...
