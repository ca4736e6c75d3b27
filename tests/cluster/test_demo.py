"""The demo: the caller's clock, turn about, "identical" only when it is so, and progress that leaves nothing behind."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from cascade_runtime.api import Answer
from cascade_runtime.api.answer import Timings
from cascade_runtime.config import load_recipe
from cluster import demo

ANSWER = Answer(
    request_id="a",
    text="a car",
    token_ids=(5, 6),
    pieces=("a", " car"),
    finish_reason="stop",
    levels=("light", "mid", "heavy"),
    masks=(0b111, 0b100),
    timings=Timings(ttft_ms=12.0, total_ms=1.0),  # the stages' own clock: far less than the caller waits
    target_passes=1,
)


class Clock:
    """A clock that only `ask` moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.asked: list[bool] = []
        monkeypatch.setattr(demo.time, "perf_counter", lambda: self.now_s)

    def ask(self, speculate: bool) -> Answer:
        self.asked.append(speculate)
        self.now_s += 0.04 if speculate else 0.1
        return ANSWER


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_screen(written: str) -> list[str]:
    """What a terminal shows after carriage returns overwrote: its lines, trailing blanks cut."""
    lines = []
    for line in written.split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


def test_answers_are_timed_by_the_callers_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = demo.compare(Clock(monkeypatch).ask, rounds=3)
    assert [round(timed.total_ms) for timed in comparison.alone] == [100] * 3
    assert [round(timed.total_ms) for timed in comparison.cascade] == [40] * 3
    assert comparison.speedup == pytest.approx(2.5) and comparison.identical


def test_both_are_warmed_up_once_and_then_asked_turn_about(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    seen: list[tuple[str, int, int, int]] = []
    demo.compare(clock.ask, rounds=2, show=lambda *where: seen.append(where))
    assert clock.asked == [False, True] + 2 * [False, True]
    warm = [("warming up", 0, 0, 1), ("warming up", 1, 0, 1)]
    assert seen == [*warm, *(("asking", a, c, 2) for a, c in [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)])]


def test_one_other_token_in_one_answer_is_not_identical() -> None:
    other = replace(ANSWER, token_ids=(5, 7))
    same = [demo.Timed(ANSWER, 1.0)] * 3
    assert demo.Comparison(same, same).identical
    assert not demo.Comparison(same, [*same[:2], demo.Timed(other, 1.0)]).identical


def test_a_terminal_has_one_line_that_is_rewritten_and_wiped() -> None:
    terminal = Terminal()
    with demo.Progress(terminal) as progress:
        progress.show("warming up", "heavy alone 0/1, cascade 0/1")
        progress.show("asking", "heavy alone 2/5")
        assert on_screen(terminal.getvalue()) == ["asking: heavy alone 2/5"]  # nothing left of the longer line
    assert on_screen(terminal.getvalue()) == [""]
    assert terminal.getvalue().endswith("\r") and "\n" not in terminal.getvalue()


def test_an_error_finds_the_line_wiped() -> None:
    terminal = Terminal()
    with pytest.raises(KeyboardInterrupt), demo.Progress(terminal) as progress:
        progress.show("asking", "heavy alone 2/5")
        raise KeyboardInterrupt
    assert on_screen(terminal.getvalue()) == [""]


def test_without_a_terminal_each_phase_is_a_line() -> None:
    log = io.StringIO()
    with demo.Progress(log) as progress:
        for phase in ("warming up", "warming up", "asking", "asking"):
            progress.show(phase, "heavy alone 1/5")
    assert log.getvalue() == "warming up ...\nasking ...\n"


@pytest.mark.parametrize("same", [True, False])
def test_the_demo_says_identical_only_when_it_is_and_exits_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], same: bool
) -> None:
    clock = Clock(monkeypatch)

    class Client:
        def __init__(self, **made: object) -> None:
            pass

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def generate(self, events: object, question: str, *, speculate: bool) -> Answer:
            answer = clock.ask(speculate)
            return answer if same or not speculate else replace(answer, token_ids=(5, 7))

    monkeypatch.setattr(demo, "CascadeClient", Client)
    code = demo.run_demo(target="ray", seed=1, question=None, recipe=load_recipe("three_level"), color=False)
    out, err = capsys.readouterr()
    assert code == (0 if same else 1)
    assert "heavy alone   2 tokens in 100 ms, 20 tokens/s" in out and "cascade       2 tokens in 40 ms" in out
    assert ("2.50x as fast, identical: 2 of 2 token ids, in 10 answers compared" in out) == same
    assert ("DIFFERENT" in out) != same
    assert "asking ...\n" in err and "asking" not in out and "\r" not in err
