"""`Recordings`: what questions are about, read once per group of questions and only from below one folder.

A row of a file must not make this process open what its author could not hand over: a name is a path below the root
after links were followed, never a URL. A name without suffix is looked for with the suffixes of videos.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from cascade_runtime.batch.question import Question
from cascade_runtime.client import to_events
from cascade_runtime.errors import CascadeError, InputError
from cascade_runtime.events import Events

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
_HELD_EVENTS = 40_000_000  # in the recordings kept for the questions to come: about 500 MB
_HELD_RECORDINGS = 64

_About = tuple[str, tuple[float, float] | None]


class Recordings:
    """The recordings below `root`. Keeps the last ones read, and what was wrong with those it could not read. Not for
    several threads at once.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.reads = 0
        self._held: OrderedDict[_About, Events | CascadeError] = OrderedDict()

    def find(self, name: str) -> Path:
        """The file or folder of a name. Raises `InputError` for one that is missing or not below the root."""
        if "://" in name:
            raise InputError("recording", name, "a path; nothing is fetched")
        try:
            asked = self.root / name
            tried = [asked] if asked.suffix else [asked, *(asked.with_name(asked.name + end) for end in VIDEO_SUFFIXES)]
            path = next((each.resolve() for each in tried if each.exists()), None)
        except (OSError, ValueError, RuntimeError) as error:  # too long, no such name, links in a circle
            raise InputError("recording", name, f"a path below {self.root} ({error})") from error
        if path is None:
            raise InputError("recording", name, f"an existing file below {self.root}")
        if not path.is_relative_to(self.root):
            raise InputError("recording", name, f"a path below {self.root}; --root names another folder")
        return path

    def read(self, question: Question) -> Events:
        """What a question is about. Raises `InputError` for what cannot be read, each time it is asked for."""
        about = question.about
        if about not in self._held:
            self._make_room()
            self.reads += 1
            try:
                self._held[about] = self._read(question)
            except CascadeError as error:
                self._held[about] = error
            except OSError as error:
                self._held[about] = InputError("recording", question.recording, f"a readable file ({error.strerror})")
        self._held.move_to_end(about)
        held = self._held[about]
        if isinstance(held, CascadeError):
            raise held
        return held

    def _read(self, question: Question) -> Events:
        events = to_events(self.find(question.recording))
        if question.cut is not None:
            start, end = question.cut
            events = events.window(int(1e6 * start), int(1e6 * end))
        if not len(events):
            raise InputError("recording", question.recording, "a recording with at least one event (where it is cut)")
        return events

    def _make_room(self) -> None:
        """Forget the oldest until there is room for one more."""
        sizes = [0 if isinstance(held, CascadeError) else len(held) for held in self._held.values()]
        while self._held and (len(self._held) >= _HELD_RECORDINGS or sum(sizes) > _HELD_EVENTS):
            self._held.popitem(last=False)
            sizes.pop(0)
