"""What a person reads, in a terminal and in a file."""

import io

from rich.console import Console

from gradtrace.experiments.results import conclude
from gradtrace.report.terminal import Screen, percent, show_competition, show_findings, show_trace


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
    assert "(rnn > gru) agreed with the order of ablation damage (rnn > gru)" in text


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
