"""The notebook's widget: the form in a browser, the trace in a kernel of its own, Jupyter's messages between them."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

from gradtrace import GradtraceError, load
from gradtrace.queries.forest import FIRST

pytest.importorskip("anywidget")

PROGRAM = """
import torch, gradtrace
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
x = torch.randn(5, 3)
with gradtrace.record(model, examples=x) as tape:
    loss = model(x).square().mean()
trace = tape.trace(loss)
"""
# what every front end of anywidget gives a widget: its state, and word of what changes in it
HOST = """async ([esm, css, state]) => {
    const heard = {}, changed = {};
    const model = {
        get: (key) => state[key],
        set: (key, value) => { state[key] = changed[key] = value; },
        on: (event, run) => (heard[event] ??= new Set()).add(run),
        off: (event, run) => heard[event]?.delete(run),
        save_changes: async () => {
            const back = await window.toKernel(JSON.stringify(changed));
            for (const key in changed) delete changed[key];
            Object.assign(state, back);
            for (const key in back) heard[`change:${key}`]?.forEach((run) => run());
        },
    };
    const widget = await import(URL.createObjectURL(new Blob([esm], {type: "text/javascript"})));
    const el = document.body.appendChild(document.createElement("div"));
    el.append(Object.assign(document.createElement("style"), {textContent: css}));
    window.leave = widget.default.render({ model, el });
    window.listeners = () => Object.values(heard).reduce((n, some) => n + some.size, 0);
}"""


@pytest.fixture(scope="module")
def trace() -> Any:
    known: dict[str, Any] = {}
    exec(PROGRAM, known)
    return known["trace"]


@pytest.fixture
def widget(trace) -> Any:
    return trace.widget(kinds=("best",))


def ask(widget, **what: str) -> dict[str, Any]:
    widget.set_state({"asked": {"number": widget.answer.get("number", 0) + 1, **what}})
    return widget.answer


def data_of(page: str) -> dict[str, Any]:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_other_parameters_make_another_page(trace, widget):
    before = widget.page
    assert ask(widget, ask="page", of="0.*", components="1, 2") == {"number": 1, "page": "0.*"}
    taken = data_of(widget.page)["snapshots"][0]
    assert {flow["of"] for flow in taken["flows"]} == {"0.*"}
    shares = {row["component"]: row["share"] for row in taken["influence"]}
    assert shares == {row.component: row.share for row in trace.influence(["1", "2"], of="0.*").rows}
    assert widget.leaves == {"0.weight": [4, 3], "0.bias": [4], "2.weight": [1, 4], "2.bias": [1]}
    ask(widget, ask="page", of="", components="")
    assert data_of(widget.page)["snapshots"] == data_of(before)["snapshots"]


@pytest.mark.parametrize("example", ["", "4"])
def test_the_path_of_a_scalar_is_the_traces(trace, widget, example):
    said = ask(widget, ask="path", parameter="0.weight", index="1, 2", example=example, kind="best")
    assert said["path"] == str(trace.path("0.weight", (1, 2), example=int(example) if example else None))


def test_a_trace_that_was_read_from_a_file_answers(trace, tmp_path):
    widget = load(trace.save(tmp_path / "kept.gradtrace")).widget(kinds=("best",))
    said = ask(widget, ask="path", parameter="0.weight", index="1, 2", example="", kind="best")
    assert said["path"] == str(trace.path("0.weight", (1, 2)))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"ask": "page", "of": "no*", "components": ""}, "no"),
        ({"ask": "path", "parameter": "0.weight", "index": "9, 9", "example": "", "kind": "best"}, "9, 9"),
        (
            {"ask": "path", "parameter": "0.weight", "index": "one", "example": "", "kind": "best"},
            "an index is numbers",
        ),
        ({"ask": "path", "parameter": "0.weight", "index": "0,0", "example": "7", "kind": "best"}, "example"),
        ({"ask": "path", "parameter": "0.weight", "index": "0,0", "example": "", "kind": "worst"}, "greedy, best"),
        ({"ask": "path"}, "KeyError"),
    ],
)
def test_what_cannot_be_answered_is_said(widget, what, said):
    page, answer = widget.page, ask(widget, **what)
    assert said in answer["error"]
    assert "\n" not in answer["error"]
    assert widget.page == page


def test_without_anywidget_it_says_what_to_install(trace, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "gradtrace.report.widget", raising=False)
    with pytest.raises(GradtraceError, match=r"pip install 'gradtrace\[widget\]'"):
        trace.widget()


class Kernel:
    """A kernel, as a front end talks to it."""

    def __init__(self, client: Any) -> None:
        self.client, self.opened = client, {}

    def run(self, code: str) -> None:
        self._until(self.client.execute(code))

    def change(self, comm: str, state: dict[str, Any]) -> dict[str, Any]:
        """Send changed state to a model, and give what it changes."""
        said = {"comm_id": comm, "data": {"method": "update", "state": state, "buffer_paths": []}}
        message = self.client.session.msg("comm_msg", said)
        self.client.shell_channel.send(message)
        return self._until(message["header"]["msg_id"])

    def _until(self, asked: str) -> dict[str, Any]:
        """Read what is published about a message, until all is done."""
        state: dict[str, Any] = {}
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            assert kind != "error", content["traceback"]
            if kind == "comm_open":
                self.opened[content["comm_id"]] = content["data"]["state"]
            elif kind == "comm_msg" and content["data"].get("method") == "update":
                state |= content["data"]["state"]
            elif kind == "status" and content["execution_state"] == "idle":
                return state


@pytest.fixture
def kernel():
    manager = pytest.importorskip("jupyter_client.manager")
    started, client = manager.start_new_kernel(kernel_name="python3")
    try:
        yield Kernel(client)
    finally:
        client.stop_channels()
        started.shutdown_kernel(now=True)


def test_a_notebook_asks_the_live_trace(trace, kernel, browser):
    kernel.run(PROGRAM + "shown = trace.widget()\nshown")
    comm, state = next((c, s) for c, s in kernel.opened.items() if "_esm" in s)
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto("about:blank")
    page.expose_function("toKernel", lambda changed: kernel.change(comm, json.loads(changed)))
    page.evaluate(HOST, [state["_esm"], state["_css"], state])
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for()

    page.get_by_label("One scalar of").fill("0.weight")
    page.get_by_label("at", exact=True).fill("1, 2")
    page.get_by_label("example").fill("4")
    page.keyboard.press("Enter")
    page.locator("pre:not([hidden])").wait_for()
    assert (
        page.locator("pre").text_content().splitlines()[0]
        == str(trace.path("0.weight", (1, 2), example=4, kind=FIRST)).split("\n")[0]
    )

    page.get_by_label("Parameters").fill("2.*")
    page.get_by_role("button", name="Show").click()
    frame.locator("#group option", has_text="2.*").wait_for(state="attached")
    assert frame.locator("#paths .pathlist button").first.get_attribute("data-path").startswith("2.")

    page.get_by_label("Parameters").fill("nothing")
    page.keyboard.press("Enter")
    page.locator("p.error").wait_for()
    assert "nothing" in page.locator("p.error").text_content()
    assert page.evaluate("listeners()") == 2
    page.evaluate("leave()")
    assert page.evaluate("listeners()") == 0
    assert complaints == []
    page.close()
