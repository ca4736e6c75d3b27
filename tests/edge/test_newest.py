"""Of every window one message is held, the newest, and told once; again after a cut."""

from __future__ import annotations

from cascade_runtime.edge.newest import MAX_FRAME_BYTES, Newest, read_messages
from cascade_runtime.messages import DraftBlock


def block(window: int, count: int = 2) -> DraftBlock:
    return DraftBlock(window, 9, 0, tuple(range(count)), (1,) * count, 0)


def told(newest: Newest, **may: object) -> list[tuple[int, int]]:
    """(window, tokens) of one frame."""
    frame = newest.due(**may)  # type: ignore[arg-type]
    return [(each.request, len(each.tokens)) for each in read_messages(frame, DraftBlock)] if frame else []


def test_only_the_newest_of_a_window_is_told_and_once() -> None:
    newest = Newest()
    newest.open(4)
    newest.open(5)
    assert newest.put(4, block(77)) and newest.put(5, block(78)) and newest.put(4, block(77, 3))
    assert told(newest) == [(4, 3), (5, 2)]  # under the window's number, and epoch 0
    assert told(newest) == []
    newest.again()
    assert told(newest) == [(4, 3), (5, 2)]


def test_a_window_that_is_not_open_or_may_not_be_spoken_of_is_not_told() -> None:
    newest = Newest()
    assert not newest.put(1, block(1))
    newest.open(1)
    newest.open(2)
    newest.put(1, block(1))
    newest.put(2, block(2))
    assert told(newest, may=lambda window: window == 2) == [(2, 2)]
    newest.close(1)
    newest.again()
    assert told(newest) == [(2, 2)]


def test_frames_are_bounded_however_many_windows_have_news() -> None:
    newest = Newest()
    for window in range(40):
        newest.open(window)
        newest.put(window, block(window, 1000))
    frames = [frame for _ in range(9) if (frame := newest.due())]
    assert len(frames) > 1 and max(len(frame) for frame in frames) <= MAX_FRAME_BYTES
    assert [each.request for frame in frames for each in read_messages(frame, DraftBlock)] == list(range(40))
