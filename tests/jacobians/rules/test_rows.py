"""One row for each rule row: a small program whose calls are compared with autograd under Sum, Max and AbsSum.

The programs are in `rule_programs.py`; those of complex numbers are tried in `test_complex_numbers.py`.
"""

from __future__ import annotations

import warnings

import pytest
import torch

pytest.importorskip("expecttest")
pytest.importorskip("torch.testing._internal.common_methods_invocations")

from op_samples import Found, check, check_jacobian
from rule_programs import DATABASE, OWN, prove, x
from test_op_db import covered, programs, title

from gradtrace.jacobians.rules import TABLE, structures
from gradtrace.recording.record import Call, Input, Record, Saved, Slot

FEW = 6  # samples of the database

PSEUDO = {"gradtrace.overlay", "gradtrace.alias"}  # calls that no program makes: tests/test_storage.py
ELSEWHERE = {"_fused_rms_norm"}  # on a CPU it comes down to other operators


def test_no_row_is_missing():
    real = {name for name in TABLE if not name.startswith("complex.")}
    assert real == set(DATABASE) | set(OWN) | PSEUDO | ELSEWHERE


def test_fused_rms_norm():
    tensors = [x(3, 4), x(4)]
    record = Record()
    values = [record.value(t) for t in tensors]
    inputs = [
        Input(v, v.shape, t.stride(), 0, t.dtype, t.device, Saved(t)) for v, t in zip(values, tensors, strict=True)
    ]
    op = torch.ops.aten._fused_rms_norm.default
    call = Call(0, op, str(op), "_fused_rms_norm", tuple(inputs), (Slot(0), [4], Slot(1), 1e-5), {}, (), "")
    call.outputs = (record.value(tensors[0]), None)
    for position in (0, 1):
        mine = [s for p, n, s in structures(call) if (p, n) == (position, 0)]
        assert check_jacobian(call, position, 0, mine) is None


@pytest.mark.parametrize("name", OWN)
def test_own_program(name):
    function, args = OWN[name]
    found = Found()
    check(function, args, {}, found, name)
    assert not found.refused
    prove(name, found)


@pytest.mark.parametrize("name", DATABASE)
def test_database(name):
    op = next(op for op in covered() if title(op) == DATABASE[name])
    found, count = Found(), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for function, args, kwargs in programs(op, None):
            count += 1
            if count > FEW and found.recorded[name]:
                break
            check(function, args, kwargs, found, f"{DATABASE[name]}[{count - 1}]")
    prove(name, found)
