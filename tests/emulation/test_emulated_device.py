"""Waits come from the profile, and one device does one thing at a time. By a clock of the test's own: no wall clock."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from emulated import emulated_table

from cascade_runtime.config import AdapterProfile, EncoderProfile, GateConfig, SamplingParams, recipe_from_dict
from cascade_runtime.decoding.row import Extension
from cascade_runtime.emulation.device import EmulatedDevice, InstantDevice
from cascade_runtime.emulation.level import EmulatedLevel
from cascade_runtime.emulation.tokens import tokens_of
from cascade_runtime.emulation.vision import SPACE, EmulatedBranch, EmulatedVerifier
from cascade_runtime.errors import CapacityError, FeatureSpaceError, PromptTooLong
from cascade_runtime.events import Events
from cascade_runtime.scheduling.cost import StepCost


class Clock:
    """Time that passes while somebody sleeps, and a microsecond per look. A sleep overruns as a real one does."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sleeps: list[float] = []

    def read(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds + 20e-6

    def device(self, name: str = "emulated") -> EmulatedDevice:
        return EmulatedDevice(name, clock=self.read, sleep=self.sleep)

    def taken(self, action: Any) -> float:
        before = self.now
        action()
        return self.now - before


PROFILE = {
    "base_ms": 20.0,
    "per_row_ms": 2.0,
    "per_token_ms": 0.5,
    "per_position_ms": 0.01,
    "prefill_ms": 80.0,
    "prompt_positions": 60,
}


def level(clock: Clock, *, index: int = 1, **cascade: Any) -> EmulatedLevel:
    table = emulated_table(["light"], {"agreement": [0.7]}, **cascade)
    table["stages"]["target"]["profile"] = PROFILE
    recipe = recipe_from_dict(table)
    tokens, ends, tag = tokens_of(recipe)
    return EmulatedLevel(
        recipe.stages[index],
        recipe.cascade,
        stage=index,
        tokens=tokens,
        ends=ends,
        tag=tag,
        device=clock.device(),
    )


def recording(seconds: float) -> Events:
    return Events([0, int(1e6 * seconds)], [1, 2], [1, 2], [0, 1], width=4, height=4)


def features(clock: Clock) -> Any:
    """What a level is given to see, made in no time."""
    view = EmulatedBranch(EncoderProfile(), InstantDevice(), encodes=True).view(recording(1.0))
    verifier = EmulatedVerifier(AdapterProfile(), InstantDevice(), GateConfig(), levels=2, adapts=True)
    return verifier.dense(view.frames, view.source)


def test_a_wait_ends_at_its_deadline_however_much_a_sleep_overruns() -> None:
    clock = Clock()

    def wait() -> None:
        with clock.device().busy(0.025):
            pass

    assert clock.taken(wait) == pytest.approx(0.025, abs=21e-6)
    assert clock.sleeps[0] == pytest.approx(0.025 - 100e-6, abs=2e-6)
    assert len(clock.sleeps) == 1


def test_what_is_done_meanwhile_is_part_of_the_time() -> None:
    clock = Clock()

    def wait() -> None:
        with clock.device().busy(0.025):
            clock.now += 0.010

    assert clock.taken(wait) == pytest.approx(0.025, abs=21e-6)


def test_a_pass_takes_what_the_profile_says() -> None:
    clock = Clock()
    target = level(clock)
    sampling = SamplingParams(max_tokens=40)
    rows = [target.admit(question, features(clock), sampling) for question in ("one?", "two?")]

    def extend(*extensions: Extension) -> list[list[int]]:
        return target.decoder.extend(extensions)

    def expect(ms: float, *extensions: Extension) -> None:
        assert 1000 * clock.taken(lambda: extend(*extensions)) == pytest.approx(ms, abs=0.03)

    expect(20 + 2 + 80, Extension(rows[0], []))  # its prompt
    assert (target.decoder.passes, target.decoder.tokens_fed, rows[0].held) == (1, 60, 60)
    expect(20 + 2 + 0.5 + 0.6, Extension(rows[0], [7]))  # one token beyond 60 positions
    expect(20 + 2 + 4 * 0.5 + 0.61, Extension(rows[0], [7, 8], [9, 9, 9]))  # three drafts more
    expect(20 + 2 * 2 + 2 * 80, Extension(rows[1], []), Extension(target.admit("3?", features(clock), sampling), []))
    expect(20 + 4 + 2 * 0.5 + 0.6 + 0.61, Extension(rows[0], [7, 5]), Extension(rows[1], [7]))  # [7, 8] rolled back
    target.decoder.release(rows[1])
    fresh = target.admit("4?", features(clock), sampling)
    expect(20 + 2 + 20, Extension(fresh, [], prompt=15))  # a quarter of its prompt
    expect(20 + 2 + 60 + 0.15, Extension(fresh, []))  # and the rest
    assert target.step_cost() == StepCost(0.02, 0.002, 0.0005, 1e-5)


def test_encoder_and_adapter_take_longer_for_longer_recordings() -> None:
    clock = Clock()
    profile = EncoderProfile(render_ms=4, render_per_second_ms=3, encode_ms=8)
    branch = EmulatedBranch(profile, clock.device(), encodes=True)
    assert 1000 * clock.taken(lambda: branch.view(recording(2.0))) == pytest.approx(4 + 6 + 8, abs=0.03)
    assert 1000 * clock.taken(lambda: branch.view(recording(20.0), encode=False)) == pytest.approx(64, abs=0.03)
    view = branch.view(recording(20.0))
    assert view.features is not None
    adapter = AdapterProfile(align_ms=1, gate_ms=2, dense_ms=30, dense_per_second_ms=49)
    verifier = EmulatedVerifier(adapter, clock.device(), GateConfig(), levels=2, adapts=True)
    assert 1000 * clock.taken(lambda: verifier.dense(view.frames, view.source)) == pytest.approx(1010, abs=0.03)
    assert 1000 * clock.taken(lambda: verifier.align(view.features)) == pytest.approx(1, abs=0.03)  # type: ignore[arg-type]
    aligned = verifier.align(view.features)
    assert 1000 * clock.taken(lambda: verifier.decide(view, aligned, None)) == pytest.approx(2, abs=0.03)
    assert verifier.decide(view, aligned, None).verdicts == ("accepted",)
    assert verifier.fill(view, aligned, verifier.decide(view, aligned, None), None) is aligned
    assert (aligned.space, aligned.transforms) == (SPACE, ("emulated", "adapter"))


def test_the_engines_device_takes_no_time_at_all() -> None:
    clock = Clock()
    device = InstantDevice("emulated", clock=clock.read, sleep=clock.sleep)
    with device.busy(1000.0):
        pass
    assert clock.now == 100.0 and not clock.sleeps


def test_slots_and_lengths_are_refused_as_by_a_real_level() -> None:
    clock = Clock()
    target, sampling = level(clock, slots=1), SamplingParams(max_tokens=40)
    row = target.admit("one?", features(clock), sampling)
    with pytest.raises(CapacityError):
        target.admit("two?", features(clock), sampling)
    target.decoder.release(row)
    assert target.decoder.free_slots == 1
    with pytest.raises(PromptTooLong, match="60"):
        target.admit("one?", features(clock), SamplingParams(max_tokens=197))
    view = EmulatedBranch(EncoderProfile(), InstantDevice(), encodes=True).view(recording(1.0))
    assert view.features is not None
    with pytest.raises(FeatureSpaceError, match="emulated:events"):  # not adapted yet
        target.admit("one?", view.features, sampling)


def test_one_device_does_one_thing_at_a_time_also_under_two_handles(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    one, same, other = (EmulatedDevice(f"emulated:{name}") for name in ("gpu0", "gpu0", "gpu1"))
    entered, leave = threading.Event(), threading.Event()

    def occupy(device: EmulatedDevice) -> None:
        with device.busy(0.0):
            entered.set()

    with one.busy(0.0):
        waiting = threading.Thread(target=occupy, args=(same,))
        waiting.start()
        occupy(other)  # another name: not held up
        entered.clear()
        assert not entered.wait(0.05)
        leave.set()
    assert entered.wait(10.0)
    waiting.join()
