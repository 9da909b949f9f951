"""The command line: what it says when something is wrong, and what `gradtrace trace` writes."""

import json
import re
import subprocess
import sys
import textwrap

import pytest

from gradtrace import __version__, cli
from gradtrace.experiments.components import COMPONENTS

MODEL = """
import torch

def build():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    batches = [{"x": torch.randn(5, 3), "y": [torch.randn(5, 1)]} for _ in range(3)]
    return model, batches, lambda model, batch: (model(batch["x"]) - batch["y"][0]).square().mean()

def raises():
    raise ValueError("a message\\nof two lines")

def gives_two():
    return 1, 2

def gives_none():
    pass

def not_a_model():
    return "model", [], print

def not_batches():
    return torch.nn.Linear(1, 1), 5, print

def not_a_loss():
    return torch.nn.Linear(1, 1), [], "loss"

def no_words():
    return *build(), 5

def wrong_words():
    return *build(), lambda batch: 1 / 0

def uneven_words():
    return *build(), lambda batch: [["a"], ["b", "c"]]

def no_batches():
    return torch.nn.Linear(1, 1), [], print

def empty_batch():
    return torch.nn.Linear(1, 1), ["text"], print

def bad_batches():
    def generate():
        yield torch.ones(2, 1)
        raise OSError("disk on fire")
    return torch.nn.Linear(1, 1), generate(), lambda model, batch: model(batch).sum()

def bad_loss():
    return torch.nn.Linear(1, 1), [torch.ones(2, 1)], lambda model, batch: model(batch, batch)

def one_batch():
    return torch.nn.Linear(3, 1), (torch.ones(2, 3), torch.ones(2)), lambda model, batch: model(batch[0]).sum(batch[1])

def vector_loss():
    return torch.nn.Linear(1, 1), [torch.ones(2, 1)], lambda model, batch: model(batch)

def number_loss():
    return torch.nn.Linear(1, 1), [torch.ones(2, 1)], lambda model, batch: 1.0

def cut():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    return model, [torch.ones(2, 3)], lambda model, batch: model[1](model[0](batch).detach()).sum()

def layers():
    class Stack(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
        def forward(self, x):
            return self.layers[1](self.layers[0](x))
    return Stack(), [torch.ones(3, 2)], lambda model, batch: model(batch).sum()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "broken.py").write_text("import no_such_package")
    (tmp_path / "syntax.py").write_text("def f(:")
    (tmp_path / "short.txt").write_text("just a few words")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_model", "broken", "syntax"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def run(capsys, *arguments):
    """Exit code, output and errors."""
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    out, errors = capsys.readouterr()
    return code, out, errors


WRONG = {
    "compete --steps 0": "--steps must be at least 1, not 0",
    "compete --steps -5": "--steps must be at least 1, not -5",
    "compete --steps many": "invalid int value: 'many'",
    "compete --hidden 0": "--hidden must be at least 1",
    "compete --hidden 1000000": "--hidden must be at most 4096",
    "compete --bptt 0": "--bptt must be at least 1",
    "compete --batch -1": "--batch must be at least 1",
    "compete --trace-every 0": "--trace-every must be at least 1",
    "compete --trace-examples 0": "--trace-examples must be at least 1",
    "compete --eval-every 0": "--eval-every must be at least 1",
    "compete --checkpoint-every 0": "--checkpoint-every must be at least 1",
    "compete --vocab 1": "--vocab must be at least 2",
    "compete --seed -1": "--seed must be from 0",
    "compete --lr 0": "--lr must be above 0",
    "compete --lr nan": "--lr must be above 0",
    "compete --components rnn,lstn": "unknown component 'lstn'; there are rnn, lstm, gru, attention",
    "compete --components rnn,,gru": "unknown component ''",
    "compete --components rnn,rnn": "--components names rnn more than once",
    "compete --components=": "--components names none; there are rnn, lstm, gru, attention",
    "compete --components rnn,nothing.py:Conv": "there is no file nothing.py",
    "compete --components rnn,short.txt:Conv": "there is no module 'short",
    "compete --task copies": "unknown task 'copies'; there are text, copy, reversal",
    "compete --task copy --corpus short.txt": "--corpus is for --task text, and this is --task copy",
    "compete --ablate some": "--ablate must be one of each, cumulative, all, not some",
    "compete --seeds 0": "--seeds must be from 1 to 1000, not 0",
    "compete --parameters 0": "--parameters must be at least 1, not 0",
    "compete --corpus nothing.txt": "corpus nothing.txt: No such file or directory",
    "compete --corpus empty.txt": "corpus empty.txt is empty",
    "compete --corpus short.txt": "corpus short.txt is too short: it has 4 words",
    "compete --corpus binary": "corpus binary is not UTF-8 text",
    "compete --corpus .": "Is a directory",
    "compete --out short.txt": "cannot write to the folder short.txt",
    "compete --out short.txt/below": "cannot write to the folder short.txt/below",
    "compete --nonsense": "unrecognized arguments: --nonsense",
    "trace my_model": "'my_model' is not MODULE:FUNCTION",
    "trace :build": "is not MODULE:FUNCTION",
    "trace nothing:build": "there is no module 'nothing'",
    "trace nothing.py:build": "there is no file nothing.py",
    "trace broken:build": "importing broken raised ModuleNotFoundError: No module named 'no_such_package'",
    "trace broken.py:build": "importing broken.py raised ModuleNotFoundError",
    "trace syntax.py:build": "importing syntax.py raised SyntaxError",
    "trace my_model:nothing": "my_model has no function 'nothing'; there are build, raises",
    "trace my_model:raises": "my_model:raises raised ValueError: a message of two lines",
    "trace my_model:gives_two": "must return (model, batches, loss function), not 2 values",
    "trace my_model:gives_none": "must return (model, batches, loss function), not NoneType",
    "trace my_model:not_a_model": "must be a torch.nn.Module, not str",
    "trace my_model:not_batches": "must be iterable, not int",
    "trace my_model:not_a_loss": "must be callable, not str",
    "trace my_model:no_words": "for the words of a batch must be callable, not int",
    "trace my_model:wrong_words": "the function that gives a batch's words raised ZeroDivisionError",
    "trace my_model:uneven_words": "tokens must be lists of equal length",
    "trace my_model:no_batches": "my_model:no_batches returned no batches",
    "trace my_model:empty_batch": "this one is of type str",
    "trace my_model:bad_batches --batches 2": "the batches raised OSError: disk on fire",
    "trace my_model:one_batch": "if that is one batch, return [batch]",
    "trace my_model:bad_loss": "the loss function raised TypeError",
    "trace my_model:vector_loss": "the loss must have one element",
    "trace my_model:number_loss": "the loss must be a tensor, not float",
    "trace my_model:build --components 0,nothing": "unknown component 'nothing'; there are 0, 1, 2",
    "trace my_model:build --of nothing": "no parameter matches 'nothing'",
    "trace my_model:build --batches 0": "--batches must be at least 1",
    "trace my_model:build --paths -1": "--paths must be at least 0",
    "trace my_model:build --kind worst": "invalid choice: 'worst'",
    "trace my_model:build --semiring entropie": "unknown semiring 'entropie'; one of sum, abssum, max, count, entropy,",
    "trace my_model:build --semiring entropy,power:0.5": "semiring 'power:0.5': Power(p) needs a p from 1",
    "why my_model:build nobody": "unknown parameter 'nobody'; there are 0.weight, 0.bias, 2.weight, 2.bias",
    "why my_model:no_batches": "my_model:no_batches returned no batches",
    "trace my_model:build --out short.txt": "cannot write to the folder short.txt",
    "": "the following arguments are required: COMMAND",
    "trance": "invalid choice: 'trance'",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_every_error_is_one_line_and_exit_code_2(folder, capsys, arguments):
    code, _, errors = run(capsys, *arguments.split())
    assert code == 2
    assert WRONG[arguments] in errors
    assert errors.count("\n") == 1
    assert "Traceback" not in errors


def test_wrong_options_leave_no_folder_behind(folder, capsys):
    run(capsys, "compete", "--steps", "0", "--out", "made")
    run(capsys, "trace", "my_model:raises", "--out", "made")
    assert not (folder / "made").exists()


def test_version_and_module(folder):
    command = [sys.executable, "-m", "gradtrace", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"gradtrace {__version__}\n"


def test_error_in_a_process_of_its_own(folder):
    command = [sys.executable, "-m", "gradtrace", "compete", "--components", "rnn,x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "reading the text\n")
    known = f"there are {', '.join(COMPONENTS)}, and FILE.py:CLASS of your own"
    said = f"unknown component 'x'; {known} (docs/errors.md#unknownname)"
    assert done.stderr == f"gradtrace: {said}\n"


@pytest.mark.parametrize("command", [[], ["compete"], ["trace"], ["why"], ["report"], ["show"]])
def test_help_teaches_with_examples(capsys, command):
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert out.count("  gradtrace ") >= 2
    assert max(map(len, out.splitlines())) <= 110


def test_help_names_every_default(capsys):
    _, out, _ = run(capsys, "compete", "--help")
    assert " ".join(out.split()).count("(default") == 19


def test_the_component_in_the_help_can_compete(folder, capsys):
    _, out, _ = run(capsys, "compete", "--help")
    example = textwrap.dedent(out[out.index("  # mine.py") : out.index("--ablate each leaves")])
    (folder / "mine.py").write_text(example)
    command = "compete --task copy --components rnn,mine.py:Conv --hidden 4 --steps 2 --batch 4 --trace-examples 1"
    code, out, errors = run(capsys, *command.split(), "--ablate", "cumulative", "--seeds", "2", "--out", "run")
    assert (code, errors) == (0, "")
    results = json.loads((folder / "run" / "results.json").read_text())
    assert (results["components"], results["options"]["components"]) == (["rnn", "Conv"], ["rnn", "mine.py:Conv"])
    assert results["ablation"]["cumulative"]["sentence"] in " ".join(out.split())
    code, shown, errors = run(capsys, "show", "run/results.json")
    assert (code, errors) == (0, "")
    assert results["ablation"]["cumulative"]["sentence"] in " ".join(shown.split())


def trace(capsys, folder, *arguments):
    code, out, errors = run(capsys, "trace", *arguments)
    assert (code, errors) == (0, "")
    return json.loads((folder / "gradtrace-trace" / "results.json").read_text()), out


def test_trace_of_a_users_model(folder, capsys):
    results, out = trace(capsys, folder, "my_model:build", "--check")
    assert (results["schema"], results["kind"]) == ("gradtrace.results/1", "trace")
    rows = {r["component"]: r for r in results["influence"]}
    assert set(rows) == {"0", "1", "2"}
    assert rows["2"]["share"] == 1  # every path goes through the last layer
    assert rows["0"]["share"] == rows["1"]["share"] < 1  # the last layer's own parameters do not cross the first
    assert [rows[n]["inside"] for n in "012"] == [True, False, True]
    assert {r["examples"] for r in rows.values()} == {5}
    assert results["influence"][0]["component"] == "2"
    assert len(results["paths"]) == 3
    weights = [p["log2_weight"] for p in results["paths"]]
    assert weights == sorted(weights, reverse=True)
    assert results["paths"][0]["text"] in out
    assert "Strongest paths" in out


def test_why_says_what_is_not_healthy(folder, capsys):
    assert run(capsys, "why", "my_model:build") == (0, "all 4 parameters get a gradient\n", "")
    _, out, _ = run(capsys, "why", "my_model:build", "0.bias")
    assert out.startswith("0.bias: healthy: its largest gradient is 2^")
    _, out, _ = run(capsys, "why", "my_model:cut")
    assert [line.split(":")[0] for line in out.splitlines() if not line.startswith(" ")] == ["0.weight", "0.bias"]
    assert out.count("model[1](model[0](batch).detach()).sum()") == 2


def test_trace_by_file_glob_kind_and_batches(folder, capsys):
    results, out = trace(
        capsys,
        folder,
        *("my_model.py:build", "--of", "0.*", "--components", "2"),
        *("--kind", "greedy", "--batches", "9", "--paths", "0"),
    )
    (row,) = results["influence"]
    assert (row["kind"], row["component"], row["share"]) == ("greedy", "2", 1)
    assert (row["examples"], row["inside"], results["traced_batches"]) == (15, False, 3)
    assert results["paths"] == []
    assert "Strongest paths" not in out


def test_module_lists_stand_for_their_members(folder, capsys):
    results, _ = trace(capsys, folder, "my_model:layers")
    assert {r["component"] for r in results["influence"]} == {"layers.0", "layers.1"}
    assert "connected" in results


def test_several_semirings_in_the_json_and_on_the_terminal(folder, capsys):
    asked = "entropy,power:8,graded,graded:1:abssum,through,count,topk:4,signedmax"
    results, out = trace(capsys, folder, "my_model:build", "--semiring", asked, "--batches", "2")
    found = {(a["batch"], a["semiring"]): a["rows"] for a in results["semirings"]}
    names = asked.split(",")
    assert {name for _, name in found} == set(names)
    assert len(results["semirings"]) == 2 * len(asked.split(","))
    entropy, power, count = ({r["parameter"]: r for r in found[0, n]} for n in ("entropy", "power:8", "count"))
    assert set(entropy) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for name, row in entropy.items():
        assert 0 <= row["max"] <= count[name]["log2_max"] + 1e-6
        assert 0 <= power[name]["gap_median"] <= power[name]["gap_max"] <= count[name]["log2_max"] / 8 + 1e-6
    (through, *_) = [r["components"] for r in found[1, "through"] if r["parameter"] == "0.weight"]
    assert {c["component"]: c["share"] for c in through} == {"0": 1, "1": 1, "2": 1}
    (spectrum, *_) = [r["spectrum"] for r in found[0, "graded"] if r["parameter"] == "0.weight"]
    assert [s > 0 for s in spectrum] == [False, False, False, True, False]  # every path crosses all three
    weights = [r["log2_weight"] for r in found[0, "topk:4"]]
    assert (len(weights), weights) == (4, sorted(weights, reverse=True))
    assert "entropy, bits, batch 0" in out
    assert re.search(r"│ 0 │ 0.0% │\s+0.0% │ 0.0% │ 100.0% │", out)  # of the layer 0, by how many they cross


def test_interrupted_before_anything_was_done(folder, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "compete", interrupted)
    code, _, errors = run(capsys, "compete")
    assert (code, errors) == (130, "gradtrace: stopped before anything was done\n")


def test_output_that_is_not_a_terminal_has_no_control_codes(folder, capsys):
    (folder / "text.txt").write_text("to be or not to be that is the question " * 40)
    command = "compete --corpus text.txt --components gru --steps 2 --hidden 4 --bptt 4 --batch 2 --trace-examples 1"
    code, out, errors = run(capsys, *command.split())
    assert (code, errors) == (0, "")
    assert "\x1b" not in out
    assert "\r" not in out
    assert "full model, step 2 of 2: held-out perplexity" in out
    assert "only one component took part" in " ".join(out.split())


SMALL = (
    "compete --corpus text.txt --components gru --steps 2 --hidden 4 --bptt 4 --batch 2 --trace-examples 1 --out run"
)


LONG = ["--hidden", "128", "--steps", "500", "--trace-every", "500"]  # two seconds or so, of which tenths say enough


def text(folder):
    (folder / "text.txt").write_text("to be or not to be that is the question " * 40)


def test_a_competition_says_what_share_of_its_time_tracing_took(folder, capsys):
    text(folder)
    code, out, _ = run(capsys, *SMALL.split(), *LONG)
    said = re.search(r"2 traces, best and greedy, took (\d+)% of \d+ s\.", out)
    assert (code, said is not None) == (0, True)
    measured = json.loads((folder / "run" / "measured.json").read_text())
    assert 0 < measured["tracing_seconds"] <= measured["seconds"]  # both rounded to a tenth
    assert abs(float(said[1]) / 100 - measured["tracing_seconds"] / measured["seconds"]) < 0.1


def test_an_exception_in_the_users_code_has_its_line_and_all_of_it_on_request(folder, capsys):
    line = 1 + MODEL.splitlines().index('    raise ValueError("a message\\nof two lines")')
    code, _, errors = run(capsys, "trace", "my_model.py:raises")
    assert (code, errors.count("\n")) == (2, 1)
    assert f"ValueError: a message of two lines (my_model.py:{line})" in errors
    code, _, errors = run(capsys, "trace", "my_model.py:raises", "--traceback")
    assert code == 2
    assert 'raise ValueError("a message' in errors
    assert errors.splitlines()[-1].startswith("gradtrace: my_model.py:raises raised ValueError")
    code, _, errors = run(capsys, "trace", "my_model:bad_loss")
    assert "my_model.py:" in errors  # the lambda's line, not torch's
    code, _, errors = run(capsys, "trace", "my_model:build", "--traceback", "--of", "nothing")
    assert (code, "Traceback" in errors) == (2, True)


def test_a_script_that_ends_itself_is_an_error_of_the_user(folder, capsys):
    (folder / "ends.py").write_text("import sys\nsys.exit(3)\n")
    code, _, errors = run(capsys, "trace", "ends.py:build")
    assert (code, errors.count("\n")) == (2, 1)
    assert "importing ends.py raised SystemExit: 3 (ends.py:2)" in errors


def test_an_error_that_nobody_foresaw_is_one_line_too(folder, capsys, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(cli, "load_subject", fail)
    code, _, errors = run(capsys, "trace", "my_model:build")
    assert (code, errors.count("\n")) == (2, 1)
    assert "ZeroDivisionError: division by zero (test_cli.py:" in errors
    assert "--traceback" in errors


def test_nothing_to_resume_and_no_options(folder, capsys):
    code, _, errors = run(capsys, "compete", "--resume", "--out", "run")
    assert (code, errors.count("\n")) == (2, 1)
    assert "run has no checkpoint to go on from" in errors
    assert not (folder / "run").exists()


def test_results_whose_checkpoint_is_gone_are_not_written_over(folder, capsys):
    text(folder)
    assert run(capsys, *SMALL.split())[0] == 0
    (folder / "run" / "checkpoint.safetensors").unlink()
    before = (folder / "run" / "results.json").read_bytes()
    code, _, errors = run(capsys, *SMALL.replace("--steps 2", "--steps 3").split(), "--resume")
    assert (code, "its checkpoint is missing" in errors) == (2, True)
    assert (folder / "run" / "results.json").read_bytes() == before
    (folder / "run" / "checkpoint.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    code, _, errors = run(capsys, *SMALL.split(), "--resume")
    assert (code, "is not a checkpoint of gradtrace compete" in errors) == (2, True)


def nested(depth):
    return "[" * depth + "]" * depth


STRANGE = {
    "of another schema": ('{"schema": "gradtrace.results/2", "kind": "trace", "graph": {}}', "'gradtrace.results/2'"),
    "nested too deeply": (nested(100_000), "nested too deeply"),
    "nested inside": (f'{{"schema": "gradtrace.results/1", "kind": "trace", "graph": {nested(50_000)}}}', "nested"),
    "not JSON": ("{", "is not JSON"),
    "not UTF-8": (b"\xff\xfe", "is not JSON"),
    "a list": ("[]", "holds no object"),
    "nothing inside": ('{"schema": "gradtrace.results/1", "kind": "trace", "graph": {}}', "damaged"),
    "runs that are none": ('{"schema": "gradtrace.results/1", "kind": "compete", "graph": {}, "runs": []}', "damaged"),
    "of something else": ('{"schema": "x", "kind": "y"}', "not the results.json"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_files_that_are_no_results(folder, capsys, name):
    content, message = STRANGE[name]
    path = folder / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for command in ("show", "report"):
        code, _, errors = run(capsys, command, "results.json")
        assert (code, errors.count("\n")) == (2, 1), errors
        assert message in errors
    assert not (folder / "report.html").exists()
    if message in ("damaged", "nested"):
        return
    before = path.read_bytes()
    code, _, errors = run(capsys, "trace", "my_model:build", "--out", ".")  # nobody else's file is written over
    assert (code, errors.count("\n")) == (2, 1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["results.json", "report.html", "checkpoint.safetensors", "measured.json"])
def test_a_folder_where_a_file_belongs(folder, capsys, name):
    (folder / "run" / name).mkdir(parents=True)
    for command in ("trace my_model:build --out run", "compete --out run"):
        code, _, errors = run(capsys, *command.split())
        assert (code, errors.count("\n")) == (2, 1), errors
        assert name in errors
    assert [p.name for p in (folder / "run").iterdir()] == [name]


def test_a_page_where_a_folder_is(folder, capsys):
    assert run(capsys, "trace", "my_model:build")[0] == 0
    (folder / "page").mkdir()
    code, _, errors = run(capsys, "report", "gradtrace-trace/results.json", "--out", "page")
    assert (code, errors.count("\n")) == (2, 1)
    assert "cannot write page" in errors
    code, _, errors = run(capsys, "show", "gradtrace-trace")
    assert (code, "cannot read gradtrace-trace: Is a directory" in errors) == (2, True)


def test_two_processes_with_one_folder(folder, capsys):
    run(capsys, "trace", "my_model:build", "--out", "run")
    before = (folder / "run" / "results.json").read_bytes()
    hold = "import sys; from pathlib import Path; from gradtrace.experiments.folder import owned\n"
    hold += "with owned(Path('run')):\n print('mine', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "mine\n"
    for command in ("trace my_model:build --out run", "compete --steps 1 --out run"):
        code, _, errors = run(capsys, *command.split())
        assert (code, errors.count("\n")) == (2, 1)
        assert "another gradtrace is writing to run" in errors
    assert (folder / "run" / "results.json").read_bytes() == before
    other.kill()  # the lock dies with it
    other.communicate()
    assert run(capsys, "trace", "my_model:build", "--out", "run")[0] == 0


def test_a_full_disk_leaves_what_was_there(folder, capsys):
    run(capsys, "trace", "my_model:build", "--out", "run")
    before = {p.name: p.read_bytes() for p in (folder / "run").iterdir()}
    small = "import resource, signal, sys; from gradtrace.cli import main\n"
    small += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
    small += "sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", small, *("trace", "my_model:build", "--out", "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "cannot write run/results.json: File too large" in done.stderr
    assert {p.name: p.read_bytes() for p in (folder / "run").iterdir()} == before


def test_output_that_cannot_be_written(folder, capsys):
    run(capsys, "trace", "my_model:build", "--out", "run")
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        command = [sys.executable, "-m", "gradtrace", "show", "run/results.json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "gradtrace: cannot write: No space left on device\n")


def test_a_model_without_submodules(folder, capsys):
    (folder / "plain.py").write_text(
        "import torch\ndef build():\n"
        "    return torch.nn.Linear(3, 1), [torch.ones(4, 3)], lambda m, x: m(x).square().mean()\n"
    )
    results, out = trace(capsys, folder, "plain.py:build", "--semiring", "through")
    assert {r["component"] for r in results["influence"]} == {"aten::addmm", "aten::pow", "aten::mean"}
    assert "No path leads" not in (folder / "gradtrace-trace" / "report.html").read_text(encoding="utf-8")
    assert "aten::addmm" in out


def test_layers_prints_a_row_a_module(tmp_path, capsys):
    (tmp_path / "train.py").write_text(MODEL)
    assert cli.main(["layers", f"{tmp_path / 'train.py'}:build"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["(all)", "0", "1", "2"]
    assert max(map(len, lines)) <= 80
