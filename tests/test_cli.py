"""The `cascade` command: what it calls, what it prints, and the exit code of everything that can go wrong.

Models and Ray are replaced by small fakes where a command would load them; recordings and recipes are the real ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cascade_runtime.api import Answer, Timings
from cascade_runtime.errors import CapacityError, PromptTooLong
from cascade_runtime.events import Events, write_events
from cascade_runtime.metrics import EdgeCounters
from cluster import cli, doctor

ROOT = Path(__file__).parents[1]
EDGE = EdgeCounters("light->mid")
EDGE.observe(drafted=2, accepted=1)
ANSWER = Answer(
    request_id="r",
    text="a car",
    token_ids=(5, 9),
    pieces=("a", " car"),
    finish_reason="stop",
    levels=("light", "mid", "heavy"),
    masks=(0b111, 0b100),
    timings=Timings(ttft_ms=12.0, total_ms=40.0),
    edges=(EDGE,),
    target_passes=1,
)


class FakeClient:
    """Remembers what it was asked; answers, or raises what it was told to."""

    raises: Exception | None = None
    made: dict
    asked: tuple

    def __init__(self, **made):
        FakeClient.made = made

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def generate(self, events, question, *, sampling):
        FakeClient.asked = (events, question, sampling)
        if FakeClient.raises:
            raise FakeClient.raises
        return ANSWER


@pytest.fixture
def fake_client(monkeypatch):
    monkeypatch.setattr("cascade_runtime.client.CascadeClient", FakeClient)
    FakeClient.raises = None
    return FakeClient


@pytest.fixture
def recording(tmp_path):
    rng = np.random.default_rng(0)
    count = 500
    events = Events(
        np.sort(rng.integers(0, 40_000, count)),
        rng.integers(0, 64, count).astype(np.uint16),
        rng.integers(0, 48, count).astype(np.uint16),
        rng.integers(0, 2, count).astype(np.uint8),
        width=64,
        height=48,
    )
    path = tmp_path / "clip.npz"
    write_events(path, events)
    return path


def test_generate_asks_what_the_options_say(fake_client, recording, capsys):
    options = ["--recipe", "light_heavy", "--set", "cascade.window=47", "--set", "cascade.slots=2", "--target", "ray"]
    options += ["--max-tokens", "9", "--temperature", "0.5", "--top-k", "3", "--top-p", "0.9", "--seed", "11"]
    assert cli.main(["generate", str(recording), "-q", "What moves?", *options]) == cli.OK
    assert fake_client.made["target"] == "ray"
    cascade = fake_client.made["recipe"].cascade
    assert (cascade.name, cascade.window, cascade.slots) == ("light_heavy", 47, 2)
    events, question, sampling = fake_client.asked
    assert (len(events), question) == (500, "What moves?")
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (9, 0.5, 3)
    assert (sampling.top_p, sampling.seed) == (0.9, 11)
    out, err = capsys.readouterr()
    assert out == "a car\n"  # a pipe gets the answer and nothing else
    assert "2 tokens in 40 ms" in err and "light 1, mid 0, heavy 1" in err and "light->mid accepted 50%" in err


def test_a_terminal_gets_tokens_in_the_colour_of_their_stage(fake_client, recording, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_color", lambda: True)
    assert cli.main(["generate", str(recording), "-q", "What moves?"]) == cli.OK
    answer, legend = capsys.readouterr().out.splitlines()
    assert answer == ANSWER.colored() and "a" in answer and "\x1b[" in answer
    assert all(level in legend for level in ANSWER.levels)


def test_generate_json_is_one_line_that_holds_the_answer(fake_client, recording, capsys):
    assert cli.main(["generate", str(recording), "-q", "What moves?", "--json"]) == cli.OK
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == ANSWER.to_dict()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate", "no-such-file.npz", "-q", "What?"], cli.BAD_FILE, "no-such-file.npz"),
        (["events", "info", "no-such-file.npz"], cli.BAD_FILE, "no-such-file.npz"),
        (["events", "info", "."], cli.BAD_FILE, "."),
        (["generate", "{clip}", "-q", "What?", "--temperature", "99"], cli.USAGE, "temperature"),
        (["generate", "{clip}", "-q", "What?", "--recipe", "huge"], cli.USAGE, "three_level"),
        (["generate", "{clip}", "-q", "What?", "--set", "cascade.windw=3"], cli.USAGE, "cascade.windw"),
        (["demo", "--set", "gate.accept=2"], cli.USAGE, "gate.accept"),
        (["trace", "-o", "trace.png"], cli.USAGE, ".json or .svg"),
        (["trace", "--streams", "0"], cli.USAGE, "streams"),
        (["trace", "--requests", "-1"], cli.USAGE, "requests"),
        (["events", "render", "{clip}", "-o", "/no/such/folder/x.png"], cli.FAILED, "/no/such/folder/x.png"),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(fake_client, recording, capsys, arguments, code, words):
    assert cli.main([str(recording) if part == "{clip}" else part for part in arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("cascade: ") and err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize(
    ("error", "code"),
    [(PromptTooLong("prompt", 9, "8"), cli.USAGE), (CapacityError("full"), cli.FAILED), (KeyboardInterrupt(), 130)],
)
def test_errors_of_the_cascade_keep_their_exit_code(fake_client, recording, capsys, error, code):
    fake_client.raises = error
    assert cli.main(["generate", str(recording), "-q", "What?"]) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_an_error_line_cannot_move_the_cursor(capsys):
    assert cli.main(["events", "info", "evil\x1b[2Jname\n.npz"]) == cli.BAD_FILE
    err = capsys.readouterr().err
    assert "\x1b" not in err and err.count("\n") == 1


def test_a_bug_is_not_hidden_behind_an_exit_code(fake_client, recording):
    fake_client.raises = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cli.main(["generate", str(recording), "-q", "What?"])


@pytest.mark.parametrize("content", [b"", b"not a recording", b"\x93NUMPY\x01\x00\xff\xff", b"PK\x03\x04broken"])
def test_a_file_that_is_no_recording_is_a_bad_file(tmp_path, capsys, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    assert cli.main(["events", "info", str(path)]) == cli.BAD_FILE
    assert "bad.npz" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["generate", "x"], ["events"], ["train"], ["demo", "--target", "mars"], ["demo", "--seed", "x"]]
)
def test_wrong_usage_exits_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == cli.USAGE
    assert "usage: cascade" in capsys.readouterr().err


def test_info_says_what_the_recording_holds(recording, capsys):
    assert cli.main(["events", "info", str(recording), "--json"]) == cli.OK
    facts = json.loads(capsys.readouterr().out)
    assert cli.main(["events", "info", str(recording)]) == cli.OK
    printed = capsys.readouterr().out
    assert facts and all(name in printed for name in facts)
    assert 500 in facts.values()


def test_render_writes_a_picture_and_previews_it(recording, tmp_path, capsys):
    picture = tmp_path / "clip.png"
    assert cli.main(["events", "render", str(recording), "-o", str(picture)]) == cli.OK
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(capsys.readouterr().out.splitlines()) > 4
    assert cli.main(["events", "render", str(recording), "-o", str(picture), "--quiet"]) == cli.OK
    assert capsys.readouterr().out == ""


def test_trace_passes_its_options_and_returns_its_code(monkeypatch):
    seen = []
    module = ModuleType("cluster.traced_run")
    module.run_trace = lambda *given: seen.append(given) or 0
    monkeypatch.setitem(sys.modules, "cluster.traced_run", module)
    options = ["-o", "a.json", "-o", "b.svg", "--metrics", "m.prom", "--streams", "2", "--requests", "5", "--seed", "9"]
    assert cli.main(["trace", *options, "--recipe", "light_heavy"]) == cli.OK
    assert cli.main(["trace"]) == cli.OK
    (recipe, *given, out), (_, *defaults, _) = seen
    assert (recipe.cascade.name, given, out) == (
        "light_heavy",
        [[Path("a.json"), Path("b.svg")], Path("m.prom"), 2, 5, 9],
        sys.stdout,
    )
    assert defaults == [[], None, 4, 3, 0]


def test_demo_passes_its_options_and_returns_its_code(monkeypatch):
    seen = {}
    module = ModuleType("cluster.demo")
    module.run_demo = lambda **given: seen.update(given) or 1
    monkeypatch.setitem(sys.modules, "cluster.demo", module)
    assert cli.main(["demo", "--seed", "4", "-q", "What?", "--set", "cascade.window=48"]) == 1
    assert (seen["target"], seen["seed"], seen["question"], seen["color"]) == ("in-process", 4, "What?", False)
    assert seen["recipe"].cascade.window == 48


def test_train_family_is_called_with_its_folder(monkeypatch, tmp_path):
    seen = []
    module = ModuleType("cascade_runtime.training")
    module.train_family = lambda out, *, quick: seen.append((out, quick))
    monkeypatch.setitem(sys.modules, "cascade_runtime.training", module)
    assert cli.main(["train", "family", "--out", str(tmp_path), "--quick"]) == cli.OK
    assert seen == [(tmp_path, True)]


def test_help_and_events_load_no_heavy_library(recording):
    code = (
        "import sys; from cluster.cli import main; main(['events', 'info', sys.argv[1]]);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'ray')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(recording)], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 0


def _need(stage: str, size: int) -> doctor.Need:
    return doctor.Need(stage, size, 2 * size)


def _device(name: str, size: int) -> doctor.Device:
    return doctor.Device(name, "x", size, size)


@pytest.mark.parametrize(
    ("needs", "devices", "placement"),
    [
        ({"heavy": 80, "light": 20}, {"cuda:0": 100, "cpu": 0}, None),  # a tenth of the device stays free
        ({"heavy": 80, "light": 10}, {"cuda:0": 100, "cpu": 0}, {"heavy": "cuda:0", "light": "cuda:0"}),
        ({"heavy": 80, "light": 20}, {"cuda:0": 100, "cpu": 50}, {"heavy": "cuda:0", "light": "cpu"}),
        ({"heavy": 80, "light": 20}, {"cuda:0": 100, "cpu": 40}, None),  # float32 on the CPU: twice the bytes
        ({"light": 20, "heavy": 80}, {"cuda:0": 30, "cuda:1": 100, "cpu": 0}, {"heavy": "cuda:1", "light": "cuda:0"}),
        ({"heavy": 80}, {"cuda:0": 60, "cuda:1": 60, "cpu": 0}, None),  # a stage is never split
        ({}, {"cpu": 0}, {}),
    ],
)
def test_stages_are_placed_whole_and_largest_first(needs, devices, placement):
    found = doctor.place([_need(*item) for item in needs.items()], [_device(*item) for item in devices.items()])
    assert found == placement


def test_doctor_reports_this_machine_as_text_and_json(capsys):
    code = cli.main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (cli.OK if report["healthy"] else cli.FAILED)
    assert report["versions"]["numpy"] == np.__version__
    assert report["cores"] >= 1 and 0 < report["memory"]["free_bytes"] <= report["memory"]["total_bytes"]
    names = [setup["name"] for setup in report["setups"]]
    assert names[:5] == ["edge_drafts", "heavy", "light_heavy", "lookup_heavy", "three_level"]
    assert any("72b" in name for name in names)
    cli.main(["doctor"])
    text = capsys.readouterr().out
    assert all(name in text for name in names)


def test_parameters_are_counted_without_loading_a_weight(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros((3, 5), np.float16), "b": np.zeros(7, np.float32)}, tmp_path / "model.safetensors")
    assert doctor.parameters(tmp_path) == 22
    assert doctor.parameters(tmp_path / "nothing") == 0
