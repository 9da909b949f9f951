"""Every class of error has its entry in docs/errors.md, whose example raises it, and every message ends with it."""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

import gradtrace
from gradtrace import GradtraceError

PAGE = (Path(__file__).parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
PRELUDE = re.findall(r"```python\n(.*?)```", PAGE.split("\n## ")[0], re.DOTALL)[0]
EXAMPLES = {name: text for name, text in ENTRIES.items() if "```python" in text}


UNIMPORTED = {f"gradtrace.{name}" for name in ("__main__", "_native", "kernels.triton_source")}
UNIMPORTED |= {"gradtrace.monitor.trainer", "gradtrace.monitor.lightning"}  # need a library


def block(text: str, language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return found


def classes() -> set[type[GradtraceError]]:
    """All of them, wherever in the package."""
    for module in pkgutil.walk_packages(gradtrace.__path__, "gradtrace."):
        if module.name not in UNIMPORTED:
            import_module(module.name)
    found, waiting = set(), [GradtraceError]
    while waiting:
        kind = waiting.pop()
        found.add(kind)
        waiting += kind.__subclasses__()
    return {kind for kind in found if kind.__module__.split(".")[0] == "gradtrace"}


def test_every_class_has_an_entry_and_an_example():
    names = {kind.__name__ for kind in classes()}
    assert names == set(ENTRIES)
    assert names - {"GradtraceError"} == set(EXAMPLES)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch.func.jvp itself
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_raises_it_and_the_message_ends_with_the_entry(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    torch.manual_seed(0)  # else all units may be off, and no gradient is wrong
    exec(PRELUDE, names)
    with pytest.raises(GradtraceError) as error:
        exec(block(EXAMPLES[name], "python"), names)
    assert type(error.value).__name__ == name
    message = str(error.value)
    parts = [part.strip() for part in block(EXAMPLES[name], "text").split("…")]
    assert re.search(".*".join(map(re.escape, parts)), message, re.DOTALL), message
    assert message == f"{error.value.said} (docs/errors.md#{name.lower()})"


def test_a_users_own_class_goes_by_its_base():
    class Mine(gradtrace.errors.Unused):
        pass

    assert str(Mine("mine")) == "mine (docs/errors.md#unused)"
    assert str(GradtraceError()) == "GradtraceError (docs/errors.md#gradtraceerror)"
