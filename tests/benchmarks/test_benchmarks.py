"""Every benchmark runs, with tiny settings; what it measures is not looked at."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from matrix.questions import public

import gradtrace
from gradtrace.kernels import native
from gradtrace.kernels.triton_product import CONFIGS
from gradtrace.semirings.base import max_product

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SOURCE = Path(gradtrace.__file__).parents[1]


def start(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a benchmark in a process of its own, without the results of the repository."""
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", *flags],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": path},
    )


def results(folder: Path, name: str) -> dict:
    assert (folder / f"{name}.md").read_text(encoding="utf-8").count("\n") > 3
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def need(name: str) -> None:
    if find_spec(name) is None:
        why = f"{name} is not installed"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)


def test_trace_vs_backward(tmp_path):
    flags = ("--repeats", "1", "--seconds", "0")
    done = start("trace_vs_backward", *flags, "--workloads", "tiny MLP", "--out", str(tmp_path))
    assert not done.returncode, done.stderr
    assert len(results(tmp_path, "trace_vs_backward")["rows"]) == 1


def test_questions_vs_backward(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- questions_vs_backward -->\n<!-- end of questions_vs_backward -->\nafter\n", "utf-8")
    which = ("--workloads", "tiny MLP", "--rows", "flow,influence of one group, each*,torch.func*,_repr_html_")
    done = start("questions_vs_backward", "--repeats", "1", *which, "--out", str(tmp_path), "--docs", str(page))
    assert not done.returncode, done.stderr
    (found,) = results(tmp_path, "questions_vs_backward")["workloads"]
    derived = {"recorded forward / forward", "µs a call of the trace"}
    limits = {"trace", "grad Sum", "trace, greedy"}  # those that other limits lean on are measured without being asked
    assert {"flow", "_repr_html_"} | derived | limits < set(found["rows"])
    assert all(row["number"] for row in found["rows"].values()), found["rows"]
    table = (tmp_path / "questions_vs_backward.md").read_text("utf-8")
    marks = "<!-- questions_vs_backward -->\n", "<!-- end of questions_vs_backward -->"
    assert page.read_text("utf-8") == f"before\n{marks[0]}{table}{marks[1]}\nafter\n"


@pytest.fixture
def questions(monkeypatch):
    """The table of questions, and what makes a table of numbers of it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import questions
    import questions_vs_backward

    return questions, questions_vs_backward


def test_no_public_question_is_missing(questions):
    made = {"Trace.root", "Trace.loss", "Trace.tape", "Trace.certificate"}  # set when a trace is made
    assert questions[0].covered() == public(gradtrace.Trace) | public(gradtrace.Tape) | made


def test_every_row_that_limits_lean_on_is_there(questions):
    assert set(questions[0].LEANT_ON) <= {row.name for row in questions[0].ROWS}
    assert {peer.beside for peer in questions[0].PEERS} <= {row.name for row in questions[0].ROWS}


def test_the_table_tells_what_misses_its_goal(questions):
    cell = {"number": 2.0, "goal": 2.0, "must": 3.0, "note": ""}
    shown = questions[1].shown
    assert shown(cell) == "2.00"
    assert shown(cell | {"number": 2.5}) == "2.50 ●"
    assert shown(cell | {"number": 3.5, "note": "once"}) == "**3.50** ●● (once)"
    assert shown(cell | {"number": None, "note": "TypeError: a | b"}) == "not asked: TypeError: a / b"


def test_what_cannot_be_asked_and_what_takes_long_is_said(questions, monkeypatch):
    table, bench = questions
    refused = table.Row("refused", (), lambda _: 1 // 0)
    quick, slow = table.Row("quick", (), lambda _: None), table.Row("slow", (), lambda s: s.tape.trace(s.recorded))
    subject, asked = bench.WORKLOADS["tiny MLP"](), []
    monkeypatch.setattr(bench, "LONG", 0.0005)
    long, notes = bench.warmed(subject, [refused, quick, slow], 1, lambda: asked.append(1))
    assert notes == {"refused": "ZeroDivisionError: integer division or modulo by zero", "slow": "once"}
    assert list(long) == ["slow"]
    assert len(asked) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_estimate(tmp_path):
    done = start("estimate", "--repeats", "1", "--workloads", "tiny MLP", "--out", str(tmp_path))
    assert not done.returncode, done.stderr
    (found,) = results(tmp_path, "estimate")["workloads"].values()
    assert {"trace", "report", "grad, topk:8"} < set(found["questions"])
    again = start("estimate", "--workloads", "tiny MLP", "--out", str(tmp_path))  # which has nothing left to measure
    assert "| trace | " in again.stdout
    assert results(tmp_path, "estimate")["workloads"]["tiny MLP"] == found


def test_monitor(tmp_path):
    done = start("overhead", "--models", "GRU", "--scale", "0.02", "--out", str(tmp_path))
    assert not done.returncode, done.stderr
    every, budget = results(tmp_path, "overhead")["rows"]
    assert every["traces"] == every["steps"] == 3
    assert 0 < every["stated"] < 1
    assert budget["options"]["at_most"] == 0.05
    assert budget["traces"] == 0  # of 30 steps, which is too few
    assert not every["failures"]


def test_gpu_says_that_there_is_no_gpu(tmp_path):
    done = start("gpu", "--out", str(tmp_path))
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    assert "no CUDA device" in done.stdout


def test_the_check_of_a_gpus_answers_finds_what_is_wrong(monkeypatch):
    """On the CPU twice; the second time with another model, and as if its gradients should be elsewhere."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    assert not list(gpu.wrong("tiny MLP", "cpu"))
    here, there = gpu.both("tiny MLP", "cpu")
    with torch.no_grad():
        there.model[0].weight[0, 0] += 0.1
    monkeypatch.setattr(gpu, "both", lambda *_: (here, there))
    found = list(gpu.wrong("tiny MLP", "meta"))
    assert "strength of 0.bias" in found
    assert "sum: g of 0.bias is on cpu" in found
    assert "sum: g of 0.bias" in found


def test_scaling(tmp_path):
    need("matplotlib")
    done = start("scaling", "--quick", "--out", str(tmp_path), "--plots", str(tmp_path / "plots"))
    assert not done.returncode, done.stderr
    found = results(tmp_path, "scaling")
    assert [s["study"] for s in found["studies"]] == ["layers", "batch", "width", "graph", "vector"]
    plots = sorted((tmp_path / "plots").iterdir())
    assert len(plots) == 5
    assert all(p.stat().st_size < 150_000 for p in plots)


def test_product_vs_torch(tmp_path):
    # inductor is not among them: it needs a compiler, and half a minute
    need("torch_semiring_einsum")
    only = "gradtrace reference,torch_semiring_einsum"
    kept = tmp_path / "real.pt"
    flags = ("--quick", "--only", only, "--operands", str(kept), "--out", str(tmp_path))
    done = start("product_vs_torch", *flags)
    assert not done.returncode, done.stderr
    found = results(tmp_path, "product_vs_torch")
    kinds = {"Gaussian", "log-normal(σ=2)", "real, after 1 step", "real, after 2 steps"}
    assert {row["kind"] for row in found["rows"]} == kinds
    assert "gradtrace reference, index" in found["rows"][0]["seconds"]
    assert kept.exists()


@pytest.fixture
def product_vs_torch(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import product_vs_torch

    return product_vs_torch


def test_a_kernel_that_is_not_there_is_left_out(product_vs_torch, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradtrace.kernels.native", None)  # as if it had not been built
    found, missing = product_vs_torch.contestants(["gradtrace C++"])
    assert not found
    assert "left out: gradtrace C++" in capsys.readouterr().out
    assert list(missing) == ["gradtrace C++"]


@pytest.mark.skipif(native.lib is None, reason="no compiled kernels")
def test_the_native_kernel_gives_what_the_reference_gives(product_vs_torch):
    found, missing = product_vs_torch.contestants(["gradtrace C++"])
    assert not missing
    assert list(found) == ["gradtrace C++, index"]
    for given in product_vs_torch.random_operands(product_vs_torch.QUICK):
        product_vs_torch.check(found, given)


def test_a_wrong_product_is_noticed(product_vs_torch):
    given = next(product_vs_torch.random_operands(product_vs_torch.QUICK))

    def off(a, w):
        best, arg = max_product(a, w.abs())
        return best, arg + 1

    with pytest.raises(AssertionError, match="another index"):
        product_vs_torch.check({"gradtrace C++, index": off}, given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_gpu_product_says_that_there_is_no_gpu(tmp_path):
    done = start("gpu_product", "--out", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert "no CUDA device" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_product(tmp_path):
    done = start("gpu_product", "--quick", "--out", str(tmp_path))
    assert not done.returncode, done.stdout + done.stderr
    assert results(tmp_path, "gpu_product")["machine"]["gpu"]


@pytest.fixture
def gpu_product(monkeypatch, tmp_path):
    """The benchmark as a module, and the compiler with a cache of its own."""
    need("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_product

    return gpu_product


@pytest.mark.parametrize("config", CONFIGS[:2])
def test_a_product_on_the_gpu_takes_a_multiplication_and_a_maximum(gpu_product, config):
    """Without a GPU: the machine code for one."""
    row = gpu_product.code_row(config, "fp32", track=True)
    assert row["opcodes"]["FMUL"] == row["opcodes"]["FMNMX"] == 1
    assert row["opcodes"]["FSETP"] == 1 / config.block
    assert row["per_product"] < 3
    assert row["spilled_bytes"] == 0


@pytest.mark.parametrize("number", ["fp32", "fp64"])
def test_the_gpu_rounds_as_the_definition_does(gpu_product, number):
    """What makes the results exact there: no fused or flushed arithmetic, and a maximum that passes over a NaN."""
    code = gpu_product.compiled(CONFIGS[-1], number, track=True).asm["ptx"]
    kind = number.replace("p", "")
    assert f"mul.{kind}" in code
    assert f"max.{kind}" in code
    assert not re.search(r"\bfma\.|\.ftz|max\.NaN", code)


def test_the_check_on_a_gpu_finds_what_is_wrong():
    """Through Triton's interpreter, in a process of its own; the second time with another definition."""
    need("triton")
    program = """
import gpu_product as g
shape, configs = g.Shape("odd", 2, 5, 9, 7), (None, g.CONFIGS[0])
print(g.wrong(shape, "cpu", configs))
g.definition = lambda a, w: g.max_product(2 * a, w)
print(len(g.wrong(shape, "cpu", configs)))
"""
    path = os.pathsep.join([str(SOURCE), str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])
    surroundings = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=surroundings)
    assert done.stdout.split() == ["[]", "6"], done.stderr


def test_the_gpu_table(gpu_product):
    shape = gpu_product.SHAPES[-1]
    seconds = {"float32 mm": 0.02, "bfloat16 mm": 0.002, "with index": 0.05, "values only": 0.04}
    sizes = {"batch": 1, "rows": 8192, "columns": 8192, "inner": 8192}
    row = {"shape": shape.name, **sizes, "seconds": seconds, "seconds_by_config": [0.05, 0.04]}
    row["limit"] = gpu_product.limit(shape, 100, 1e9)  # 2^39 products by 100 · 64 · 10^9 a second
    on = {"gpu": "a GPU", "multiprocessors": 100, "clock": 1e9, "torch": "2", "triton": "3"}
    lines = gpu_product.markdown([row], on, 9).splitlines()
    assert lines[0].startswith("a GPU (100 multiprocessors at up to 1.00 GHz)")
    expected = "| 20.000 | 2.000 | 50.000 | 2.50× | 25.00× | 0.58× | 0.47× | 0.80 |"
    assert lines[-1] == f"| square, 8192 | 1 × 8192 × 8192 × 8192 {expected}"


def test_the_code_table_is_written(gpu_product):
    table = gpu_product.code_table(quick=True)
    assert table.count("\n| fp32 |") == 4
    assert table.count("\n| fp64 |") == 1
