"""What an installation does without a C++ compiler, and when the kernels do not compile; and what is no part of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.full  # some ten seconds of pip and CMake


@pytest.fixture
def sources(tmp_path):
    """The package's sources, with kernels that no compiler takes."""
    for name in ("src", "examples", "cpp"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    for kernel in tmp_path.glob("cpp/*/*.cpp"):
        kernel.write_text("#error broken on purpose\n", encoding="utf-8")
    return tmp_path


def wheel(sources: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", "out", ".", *options]
    variables = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment}
    return subprocess.run(command, cwd=sources, env=variables, capture_output=True, text=True, check=False)


def said(sources: Path) -> str:
    """What the package in the only wheel says of its kernels when it first needs them."""
    (path,) = (sources / "out").glob("*.whl")
    ZipFile(path).extractall(sources / "installed")
    code = "from gradtrace.kernels import native; print(native.__file__, native.available())"
    command = [sys.executable, "-S", "-W", "always", "-c", code]  # -S: no editable gradtrace, which would come first
    paths = [sources / "installed", Path(torch.__file__).parents[1]]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(command, cwd=sources, env=variables, capture_output=True, text=True, check=True)
    assert str(sources / "installed") in done.stdout
    assert done.stdout.endswith("False\n")
    return done.stderr


def test_kernels_that_do_not_compile_fail_the_installation_unless_it_is_told_to_go_without(sources):
    failed = wheel(sources)
    assert failed.returncode != 0
    output = failed.stdout + failed.stderr
    assert "broken on purpose" in output
    assert "gradtrace's C++ kernels were not built: what stopped CMake or the compiler is above." in output
    assert "-C cmake.define.GRADTRACE_NATIVE=OFF" in output
    without = wheel(sources, "-C", "cmake.define.GRADTRACE_NATIVE=OFF")
    assert without.returncode == 0, without.stderr
    assert "(GRADTRACE_NATIVE was OFF when it was installed)" in said(sources)


def test_without_a_compiler_the_package_is_installed_and_says_that_there_was_none(sources):
    done = wheel(sources, CXX=str(sources / "no-such-compiler"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(no working C++ compiler was found when it was installed)" in said(sources)


def test_a_module_that_was_built_in_place_goes_into_no_wheel(sources):
    (sources / "src/gradtrace/_native.cpython-311-x86_64-linux-gnu.so").touch()
    done = wheel(sources, "-C", "cmake.define.GRADTRACE_NATIVE=OFF")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (sources / "out").glob("*.whl")
    assert not [name for name in ZipFile(path).namelist() if name.endswith(".so")]
