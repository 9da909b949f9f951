"""What a person reads, in a terminal and in a file."""

import io
import os
import pty
import re
import struct
import sys
import termios
from fcntl import ioctl
from subprocess import Popen

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gradtrace.experiments.results import conclude
from gradtrace.report.document import of_results, of_trace
from gradtrace.report.show import LINES, show
from gradtrace.report.snapshot import Question
from gradtrace.report.tables import fitted, put
from gradtrace.report.terminal import (
    Screen,
    figures_of,
    narrowed,
    percent,
    show_answer,
    show_competition,
    show_findings,
    show_trace,
)


def console(*, terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def text_of(shown):
    return shown.file.getvalue()


def row(kind, component, share):
    measures = {"share": share, "weighted_share": share / 2, "dead_share": 0.25}
    return {"kind": kind, "component": component, "examples": 4, "inside": False} | measures


def run(without, losses):
    evaluations = [{"step": i, "samples": i * 8, "loss": x, "perplexity": 10 * x} for i, x in enumerate(losses)]
    rows = [row(k, c, s) for k in ("best", "greedy") for c, s in (("rnn", 0.7), ("gru", 0.3))]
    traces = [] if without else [{"step": 0, "influence": rows}]
    said = {"seed": 1, "without": without, "absent": [without] if without else [], "components": ["rnn", "gru"]}
    return said | {"parameters": 1234, "evaluations": evaluations, "traces": traces}


RESULTS = conclude(
    {
        "complete": True,
        "options": {"components": ["rnn", "gru"], "ablate": "each"},
        "components": ["rnn", "gru"],
        "corpus": {
            "name": "[bold]text",
            "words": 5000,
            "vocabulary": 300,
            "unknown_share_held_out": 0.125,
            "unigram_perplexity": 99.9,
        },
        "runs": [run(None, [3.0, 2.0, 2.5]), run("rnn", [3.0, 2.2, 2.1]), run("gru", [3.0, 1.5, 2.4])],
    }
)


def test_competition_tables():
    shown = console(terminal=False)
    show_competition(RESULTS, shown)
    text = text_of(shown)
    assert max(map(len, text.splitlines())) <= 100
    assert "[bold]text: 5,000 words, 300 in the vocabulary, 12.5% of the held-out words unknown" in text
    assert text.count("70.0% (35.0%)") == 4  # one trace and the mean, best and greedy
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert [cell.strip() for cell in lines["full model"].split("│")[2:-1]] == ["–", "1,234", "8", "20.0", "25.0", "–"]
    assert [cell.strip() for cell in lines["without rnn"].split("│")[2:-1]] == [
        *("70.0%", "1,234", "not reached", "21.0", "21.0", "+0.000")
    ]
    assert [cell.strip() for cell in lines["without gru"].split("│")[2:-1]] == [
        *("30.0%", "1,234", "8", "15.0", "24.0", "-0.275")
    ]
    assert "(rnn > gru) agreed with the order of ablation damage (rnn > gru)" in " ".join(text.split())


def test_trace_tables():
    shown = console(terminal=False)
    influence = [row("best", "head", 1.0) | {"inside": True}, row("best", "[x]", float("nan"))]
    options = {"of": "*", "kind": "best"}
    paths = [{"text": "best path from w[0]: [0, 1]"}]
    snapshot = {"findings": [{"text": "98.8 % of the paths from [stem] go around conv at the 8 additions. " * 2}]}
    results = {"options": options, "influence": influence, "connected": ["norm"], "paths": paths, "snapshot": snapshot}
    show_trace(results, shown)
    show_findings(results, shown)
    text = text_of(shown)
    verdict = text[text.index("What stands out:") :].splitlines()  # last, and whole
    assert " ".join(line[2:] for line in verdict[1:]) == snapshot["findings"][0]["text"].strip()
    assert max(map(len, verdict)) <= shown.width
    assert "parameters inside" in text
    assert "examples are connected at norm" in text
    assert "best path from w[0]: [0, 1]" in text
    assert "–" in text


def test_percent():
    assert [percent(x) for x in (0.5, None, float("nan"))] == ["50.0%", "–", "–"]


def test_lines_where_there_is_no_terminal():
    shown = console(terminal=False)
    with Screen(shown) as screen:
        for step in range(100):
            screen.show("full model", step, 100)
        screen.show("full model", 100, 100, "perplexity 12")
    assert text_of(shown) == "full model, step 100 of 100: perplexity 12\n"


def test_bars_in_a_terminal():
    shown = console(terminal=True)
    with Screen(shown) as screen:
        screen.show("full model", 50, 100, "perplexity 12")
        screen.show("full model", 51, 100)
    assert "51/100" in text_of(shown)
    assert "perplexity 12" in text_of(shown)


def test_bars_end_with_an_exception():
    shown = console(terminal=True)
    screen = Screen(shown)
    try:
        with screen:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert screen.bars.finished or not screen.bars.live.is_started


def test_what_is_being_done_stands_there_until_something_else_is():
    shown = console(terminal=True)
    with Screen(shown) as screen:
        screen.doing("reading train.py")
        screen.bars.refresh()
        assert "reading train.py" in text_of(shown)
        screen.doing("the strongest paths")
        assert [task.description for task in screen.bars.tasks] == ["the strongest paths"]
        seen = [screen.bars.tasks[-1].completed for _ in screen.track("best paths", range(1000))]
        assert len(seen) == 1000
        assert len(set(seen)) > 100  # the bar moved
    assert not screen.bars.tasks
    for lines in (True, False):
        quiet = console(terminal=False)
        with Screen(quiet, lines=lines) as screen:
            screen.doing("reading train.py")
            assert [*screen.track("best paths", [1, 2])] == [1, 2]
        assert text_of(quiet) == "reading train.py\n" * lines


WORDS = st.text("abc.%0", min_size=1, max_size=9)
CELLS = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=2, max_size=4)))
def test_no_word_of_a_table_is_broken(rows):
    columns = [*zip(*rows, strict=True)]
    least = [max(len(word) for cell in column for word in cell.split()) for column in columns]
    room = sum(least) + 3
    widths, found = fitted(columns, room)
    assert sum(widths) <= room
    assert all(map(int.__ge__, widths, least))
    assert found == columns  # and no name is cut
    shown = Console(file=io.StringIO(), width=room + 3 * len(columns) + 1)
    put(shown, rows[0], rows[1:])
    lines = text_of(shown).splitlines()
    assert max(map(len, lines)) <= shown.width
    printed = [word for line in lines for word in re.split(r"[┃│\s]+", line) if word]
    assert sorted(w for w in printed if not set(w) & set("━─┏┡└┓┩┘")) == sorted(" ".join(map(" ".join, rows)).split())


def test_names_that_do_not_fit_keep_their_ends():
    rows = [["encoder.layers.11.self_attn.in_proj_weight", "decoder.layers.0.linear1", "100.0%"]]
    shown = Console(file=io.StringIO(), width=50)
    put(shown, ["from", "to", "share"], rows, text=2)
    text = text_of(shown)
    assert max(map(len, text.splitlines())) <= 50
    assert re.search(r"│ …[\w.]+_weight\s+│ …[\w.]+linear1 │ 100.0% │", text)


def test_a_path_leaves_out_what_there_is_no_room_for():
    path = (
        "best path from w[0]: |weight| = 2^-1.00, 1 steps\n  layer  mul.Tensor[0]  ×0.5         2^-1.00     train.py:12"
    )
    assert narrowed(path, 80) == path
    assert narrowed(path, 50).splitlines() == [path.splitlines()[0], "  layer  mul.Tensor[0]  ×0.5         2^-1.00"]


def test_figures_that_no_float_holds():
    assert figures_of({"parameter": "w", "spectrum": [1.0, None]}) == {"0": "–", "1": "–"}


def test_semirings_are_tables(residual):
    for answer in residual[1]["semirings"]:
        shown = Console(file=io.StringIO(), width=80)
        show_answer(answer, shown, 4, batches=2)
        lines = text_of(shown).splitlines()
        assert lines[1].startswith(answer["semiring"])
        assert lines[1].endswith(f"batch {answer['batch']}")
        assert sum(line.startswith("│") for line in lines) >= min(4, len(answer["rows"]))
        assert max(map(len, lines)) <= 80
    entropy = next(a for a in residual[1]["semirings"] if a["semiring"] == "entropy")
    shown = Console(file=io.StringIO(), width=80)
    show_answer(entropy, shown, 99)
    for row in entropy["layers"]:
        mean = f"{row['mean']:.4g}" if row["live"] else "–"
        assert re.search(rf"│ {re.escape(row['layer'])}\s+│\s+{re.escape(mean)} │", text_of(shown))


@pytest.fixture(params=["competition", "residual", "gpt2"])
def document(request):
    made = request.getfixturevalue(request.param)
    if request.param == "gpt2":
        return of_trace(made[0], Question(kinds=("best",), paths=5, each=1, per_example=False))
    return of_results(made[1])


def test_what_is_shown_fits_two_screens_and_ends_with_what_was_found(document):
    shown = Console(file=io.StringIO(), width=80)
    show(document, shown)
    lines = text_of(shown).splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("┏") for line in lines) >= 2  # tables
    text = " ".join(" ".join(lines).split())
    *_, verdict = text.partition("What was found")
    assert all(sentence in verdict.replace(" - ", " ") for sentence in document["headline"])
    assert verdict.endswith(("as well, and longer tables", "--all shows longer tables"))
    whole = Console(file=io.StringIO(), width=80)
    show(document, whole, whole=True)
    for row in document["snapshots"][-1]["influence"]:
        assert percent(row["share"]) in text_of(whole)
    assert "Provenance" in text_of(whole)


def test_a_terminal_of_80_columns_sees_what_is_done_and_the_verdict_last(tmp_path):
    (tmp_path / "model.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n"
        "    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)\n"
        "    model = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))\n"
        "    return model, [torch.randn(3, 5, 4)], lambda m, x: m(x).square().mean()\n"
    )
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "gradtrace", "trace", "model.py:build", "--semiring", "entropy,graded"]
    known = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "CI", "NO_COLOR")} | {"TERM": "xterm"}
    with Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=known) as made:
        os.close(theirs)
        read = b""
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            read += more
        assert made.wait() == 0
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read.decode()).replace("\r\n", "\n")
    assert text.lstrip().startswith("reading model.py:build")
    assert "the forward pass" in text
    assert "best paths" in text
    lines = [line.rpartition("\r")[2] for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    at = next(n for n, line in enumerate(lines) if line == "What stands out:")
    assert all(not line.startswith("┏") for line in lines[at:])
    assert lines[-1] == "Report: gradtrace-trace/report.html"
