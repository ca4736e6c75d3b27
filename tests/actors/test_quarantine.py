"""Who kills a stage is found and kept out; who was only there is not."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.quarantine import Quarantine


def test_alone_twice_is_guilty_once_is_not() -> None:
    quarantine = Quarantine()
    quarantine.crashed("heavy", {"a": 0})
    assert quarantine.admits("heavy", "a")
    quarantine.crashed("heavy", {"a": 0})
    assert quarantine.guilty("heavy", "a") and not quarantine.admits("heavy", "a")
    assert quarantine.admits("mid", "a")  # elsewhere it did no harm
    quarantine.left("a")
    assert not quarantine.admits("heavy", "a")  # and it stays so when it comes again


def test_who_gets_further_between_crashes_is_not_what_kills() -> None:
    quarantine = Quarantine()
    for reached in (0, 4, 5, 9, 30):  # a plug is pulled again and again
        quarantine.crashed("heavy", {"a": reached})
        assert quarantine.admits("heavy", "a")
    quarantine.crashed("heavy", {"a": 30})
    assert quarantine.guilty("heavy", "a")


def test_a_trial_that_gets_further_goes_on() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        quarantine.crashed("heavy", {"a": 7, "b": 7})
    assert quarantine.admits("heavy", "a") and not quarantine.admits("heavy", "b")
    quarantine.crashed("heavy", {"a": 8})
    assert quarantine.admits("heavy", "a") and not quarantine.guilty("heavy", "a")
    quarantine.crashed("heavy", {"a": 8})
    assert quarantine.guilty("heavy", "a") and quarantine.admits("heavy", "b")


def test_suspects_enter_one_at_a_time_and_who_ends_is_acquitted() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        quarantine.crashed("heavy", {"a": 0, "b": 0, "c": 0})
    assert quarantine.admits("heavy", "a") and quarantine.admits("heavy", "a")
    assert not quarantine.admits("heavy", "b") and quarantine.admits("heavy", "new")
    quarantine.left("a")
    assert quarantine.admits("heavy", "b")
    quarantine.crashed("heavy", {"b": 0, "new": 0})
    assert quarantine.guilty("heavy", "b") and not quarantine.guilty("heavy", "new")
    assert quarantine.admits("heavy", "c")
    quarantine.left("c")
    assert quarantine.admits("heavy", "c") and not quarantine.guilty("heavy", "c")


def test_two_suspects_of_two_stages_cannot_wait_for_each_other() -> None:
    quarantine = Quarantine()
    for stage in ("encoder", "heavy"):
        for _ in range(2):
            quarantine.crashed(stage, {"a": 0, "b": 0})
    assert quarantine.admits("heavy", "a") and not quarantine.admits("encoder", "b")
    assert quarantine.admits("encoder", "a")
    quarantine.left("a")
    assert quarantine.admits("encoder", "b") and quarantine.admits("heavy", "b")


@settings(max_examples=50, deadline=None)
@given(st.sets(st.sampled_from("abcdefgh")), st.sampled_from("abcdefgh"), st.randoms(use_true_random=False))
def test_a_killer_is_found_in_five_crashes_and_nobody_else_is_blamed(
    others: set[str], killer: str, rng: object
) -> None:
    quarantine, inside = Quarantine(), others | {killer}
    crashes = 0
    while inside:
        order = rng.sample(sorted(inside), len(inside))  # type: ignore[attr-defined]
        entered = [name for name in order if quarantine.admits("heavy", name)]
        assert entered, "somebody may always enter"
        if killer in entered:
            crashes += 1
            quarantine.crashed("heavy", dict.fromkeys(entered, 0))
            if quarantine.guilty("heavy", killer):
                inside.discard(killer)
                quarantine.left(killer)
        else:
            for name in entered:
                inside.discard(name)
                quarantine.left(name)
    assert 2 <= crashes <= 3
    assert not any(quarantine.guilty("heavy", name) for name in others - {killer})
