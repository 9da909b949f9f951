"""The how-to does what it says, in as few lines as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from checks import leaf, recorded

from gradtrace import AbsSum, Sum
from gradtrace.semirings import FORMS, BrokenAxiom

DOCS = Path(__file__).parent.parent.parent / "docs"


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL)


def test_the_how_to():
    first, second, broken, algebra = blocks("howto-semiring.md")
    assert len(first.splitlines()) < 30
    names: dict = {}
    exec(first, names)
    tape, loss = recorded(lambda weight: torch.softmax(weight, 1).prod(1).sum(), {"weight": leaf(2, 3)})
    names |= {"tape": tape, "loss": loss}
    exec(second, names)
    (gradient,), (flow,) = tape.grad(loss, "weight", [Sum, AbsSum])
    assert torch.allclose(names["up"] - names["down"], gradient)
    assert torch.allclose(names["cancelled"], 1 - gradient.abs() / flow)
    assert (tape.grad(loss, "weight", names["weakest"])[0] > 0).all()
    with pytest.raises(BrokenAxiom) as error:
        exec(broken, names)
    assert str(error.value) in (DOCS / "howto-semiring.md").read_text(encoding="utf-8")
    exec(algebra, names)
    assert names["longest"].calls["weight"] == len(tape.calls)  # softmax, prod, sum: one after the other


def test_every_name_has_its_row():
    page = (DOCS / "semirings.md").read_text(encoding="utf-8")
    for form in FORMS:
        assert f"`{form.split(':')[0].split('[')[0]}" in page, form
