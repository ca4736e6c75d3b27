"""Questions about a scene and their answers, made from its facts; and the facts read back from an answer.

Each of the eight kinds has several wordings of the question, and every wording has an answer of its own wording, so an
answer is fixed by (facts, question) while the English varies. An answer states the fact that was asked for and two or
three more. `read_facts` finds the facts that a text states, whatever its wording: it grades both training targets and
models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cascade_runtime.training.facts import AMBIGUOUS, CLASSES, Facts

KINDS = ("subject", "count", "direction", "speed", "region", "rate", "balance", "describe")
ASKED = {kind: (kind,) for kind in KINDS[:-1]} | {
    "describe": ("subject", "direction", "speed", "region", "rate", "balance")
}
"""The facts an answer of each kind is graded on; "direction" and "speed" only where something moves."""

_DIRECTION_TEXT = (
    *("to the right", "to the lower right", "downward", "to the lower left"),
    *("to the left", "to the upper left", "upward", "to the upper right"),
    *("outward from the center", "inward to the center"),
)
_REGION_TEXT = (
    *("in the upper left", "at the top", "in the upper right"),
    *("on the left side", "in the middle", "on the right side"),
    *("in the lower left", "at the bottom", "in the lower right"),
    "all over the view",
)
_SPEED_TEXT = ("slow", "medium", "fast")
_BALANCE_TEXT = ("OFF events dominate", "ON and OFF events are balanced", "ON events dominate")
_COUNT_TEXT = ("no", "one", "two", "three")

# Per kind: (questions that are answered alike, answer if shapes or camera move, answer if nothing moves).
_WORDINGS: dict[str, tuple[tuple[tuple[str, ...], str, str], ...]] = {
    "subject": (
        (
            ("What is moving?", "What moves in this recording?"),
            "{What} {is_} moving. The motion goes {direction} at a {speed} pace, and most of the activity is {region}.",
            "Nothing is moving. The events are only sensor noise, spread {region}, and their rate is {rate}.",
        ),
        (
            ("What objects are visible in the scene?", "Which objects can be seen?"),
            "I can see {what} moving {direction}. The activity is mainly {region}, and the event rate is {rate}.",
            "I can see no object, only sensor noise that is spread {region}. The event rate is {rate}.",
        ),
        (
            ("Identify the moving object.", "Name the thing that moves."),
            "The moving part is {what}. It goes {direction} at a {speed} pace, and the event rate is {rate}.",
            "There is no moving part. The view holds only sensor noise, spread {region}, and the event rate is {rate}.",
        ),
        (
            ("What kind of shape does the camera see?", "Which shape is it?"),
            "The events outline {what} moving at a {speed} pace. They are seen mainly {region}, and {balance}.",
            "The events outline nothing: there is only sensor noise. It is seen {region}, and {balance}.",
        ),
    ),
    "count": (
        (
            ("How many objects are moving?", "How many moving objects are there?"),
            "There {is_} {count} moving {objects}. I see {what}, and the motion goes {direction} at a {speed} pace.",
            "There are no moving objects. The events are only sensor noise at a {rate} rate, spread {region}.",
        ),
        (
            ("Count the objects in the scene.", "Give me the number of objects."),
            "I count {count} {objects}: {what} moving {direction}. The activity is mainly {region}, at a {rate} "
            "event rate.",
            "I count no objects: only sensor noise. The activity is spread {region}, at a {rate} event rate.",
        ),
        (
            ("Is there more than one object?", "Is it a single object or several?"),
            "The view contains {count} {objects}, and the event rate is {rate}. The motion is {speed} and goes "
            "{direction}.",
            "The view contains no objects, only sensor noise that is spread {region}, and the event rate is {rate}.",
        ),
    ),
    "direction": (
        (
            ("Which way is it moving?", "In which direction does it move?"),
            "The motion goes {direction}. What moves is {what}, at a {speed} pace and mainly {region}.",
            "There is no motion in any direction. The events are only sensor noise at a {rate} rate, and {balance}.",
        ),
        (
            ("Where is it heading?", "Where does the motion lead?"),
            "It is heading {direction} at a {speed} pace, with most of the activity {region} and a {rate} event rate.",
            "It is heading nowhere: there is only sensor noise, with activity {region} and a {rate} event rate.",
        ),
        (
            ("What is the direction of motion?", "Describe the direction of the movement."),
            "The direction of motion is {direction}: {what} {moves} that way, and the event rate is {rate}.",
            "The direction of motion is undefined: only sensor noise is present, and the event rate is {rate}.",
        ),
        (
            ("Does it move left or right, up or down?", "Does it go up, down, left or right?"),
            "It moves {direction}. I see {what} going that way at a {speed} pace, and {balance}.",
            "It does not move. I see only sensor noise, spread {region}, and {balance}.",
        ),
    ),
    "speed": (
        (
            ("How fast is the motion?", "How fast does it move?"),
            "The motion is {speed}. It goes {direction}, what moves is {what}, and the event rate is {rate}.",
            "There is no motion. The events are only sensor noise at a {rate} rate, spread {region}, and {balance}.",
        ),
        (
            ("What is the speed of the object?", "Estimate the speed."),
            "At a {speed} pace, {what} {moves} {direction}. Most of the activity is {region}, and {balance}.",
            "Nothing has a speed here: the view holds only sensor noise, at a {rate} event rate, and {balance}.",
        ),
        (
            ("Is it moving slowly or quickly?", "Is the movement slow or fast?"),
            "It is a {speed} movement that leads {direction}, mainly {region}, and the event rate is {rate}.",
            "It is not a movement at all but only sensor noise, spread {region}, and the event rate is {rate}.",
        ),
    ),
    "region": (
        (
            ("Where is the activity?", "Where in the view is the activity?"),
            "Most of the activity is {region}. It comes from {what} moving {direction}, and the event rate is {rate}.",
            "The little activity there is lies {region}. It comes only from sensor noise, and the event rate is "
            "{rate}.",
        ),
        (
            ("Which part of the image is the busiest?", "Which region has the most events?"),
            "The busiest place is {region}, where {balance}. The event rate is {rate}, and what moves is {what}.",
            "The noise is even, {region}, and {balance}. The event rate is {rate}.",
        ),
        (
            ("Where is the object located?", "Locate the object."),
            "It is located {region}: {what}, going {direction} at a {speed} pace, and the event rate is {rate}.",
            "No object can be located: there is only sensor noise, {region}, and the event rate is {rate}.",
        ),
    ),
    "rate": (
        (
            ("How high is the event rate?", "What is the event rate?"),
            "The event rate is {rate}. The events come from {what} at a {speed} pace, mainly {region}.",
            "The event rate is {rate}. The events come only from sensor noise, which is spread {region}, and "
            "{balance}.",
        ),
        (
            ("How many events does the sensor produce?", "How much activity is there?"),
            "The sensor produces events at a {rate} rate, and {balance}. The motion goes {direction} at a "
            "{speed} pace.",
            "The sensor produces events at a {rate} rate, and {balance}. They are only sensor noise.",
        ),
        (
            ("Is the sensor busy or quiet?", "Is there a lot of data?"),
            "The activity is {rate} per pixel, concentrated {region}, because {what} {moves} {direction} at a "
            "{speed} pace.",
            "The activity is {rate} per pixel, spread {region}, because there is only sensor noise, and {balance}.",
        ),
    ),
    "balance": (
        (
            ("Are there more ON or OFF events?", "Which polarity is more frequent?"),
            "In this recording {balance}. They are caused by {what} moving {direction}, and the event rate is {rate}.",
            "In this recording {balance}. They are caused only by sensor noise, and the event rate is {rate}.",
        ),
        (
            ("What is the balance of ON and OFF events?", "How are the polarities distributed?"),
            "Counting polarities, {balance}. The event rate is {rate}, and most activity is {region}.",
            "Counting polarities, {balance}. The event rate is {rate}, and the noise is {region}.",
        ),
        (
            ("Do brightness increases or decreases prevail?", "Does it get brighter or darker?"),
            "Here {balance}, while {what} {moves} {direction} at a {speed} pace. The activity is mainly {region}.",
            "Here {balance}, while nothing moves and only sensor noise is seen. The activity is spread {region}.",
        ),
    ),
    "describe": (
        (
            ("What are the key elements in this scene?", "What are the key elements of the scene?"),
            "The key element is {what} moving {direction} at a {speed} pace. Most of the activity is {region}, "
            "the event rate is {rate}, and {balance}.",
            "There is no key element: only sensor noise {region}. The event rate is {rate}, and {balance}.",
        ),
        (
            ("Describe the scene.", "Describe what you see in the scene.", "Can you describe the scene?"),
            "In this scene {what} {moves} {direction}. The pace is {speed}, the activity is mainly {region}, "
            "{balance}, and the event rate is {rate}.",
            "In this scene nothing moves. There is only sensor noise {region}, {balance}, and the event rate is "
            "{rate}.",
        ),
        (
            (
                "What is happening in this recording?",
                "What is happening in the scene?",
                "What can be observed in the scene?",
            ),
            "The event camera sees {what} at a {speed} pace, heading {direction}. At a {rate} event rate, "
            "most events lie {region}, and {balance}.",
            "The event camera sees only sensor noise. At a {rate} event rate, the events lie {region}, and {balance}.",
        ),
        (
            ("Give a short summary of the recording.", "Summarize this recording."),
            "Summary: {speed} motion {direction} by {what}, mainly {region}. The event rate is {rate} and {balance}.",
            "Summary: only sensor noise and no motion, {region}. The event rate is {rate} and {balance}.",
        ),
        (
            ("What is the main activity in this scene?", "What is the primary feature of the scene?"),
            "The main activity comes from {what}, which {moves} {direction} at a {speed} pace. It is found {region} "
            "with a {rate} event rate, and {balance}.",
            "There is no main activity, only sensor noise. It is found {region} with a {rate} event rate, and "
            "{balance}.",
        ),
    ),
}


@dataclass(frozen=True)
class Wording:
    """One way of asking and the way it is answered."""

    kind: str
    questions: tuple[str, ...]
    moving: str
    still: str

    def answer(self, facts: Facts) -> str:
        """The answer, for facts of which every one that it mentions is decided."""
        texts = (("rate", CLASSES["rate"]), ("region", _REGION_TEXT), ("balance", _BALANCE_TEXT))
        words = {name: text[getattr(facts, name)] for name, text in texts if getattr(facts, name) != AMBIGUOUS}
        if facts.name("subject") == "nothing":
            return self.still.format(**words)
        what, plural = _subject_text(facts)
        words |= {"what": what, "What": what[0].upper() + what[1:], "count": _COUNT_TEXT[facts.count]}
        words |= {"is_": "are" if plural else "is", "moves": "move" if plural else "moves"}
        words |= {"direction": _DIRECTION_TEXT[facts.direction], "speed": _SPEED_TEXT[facts.speed]}
        words["objects"] = "object" if facts.count == 1 else "objects"
        if facts.name("subject") == "camera":
            words |= {"count": "no single", "objects": "object", "is_": "is"}
        return self.moving.format(**words)


WORDINGS = tuple(Wording(kind, *wording) for kind, several in _WORDINGS.items() for wording in several)


def ask(facts: Facts) -> Iterator[tuple[Wording, str]]:
    """All (wording, answer) pairs that the facts decide: none about or mentioning an ambiguous fact."""
    for wording in WORDINGS:
        text = wording.still if facts.name("subject") == "nothing" else wording.moving
        if all(getattr(facts, name) != AMBIGUOUS for name in _mentioned(text)):
            yield wording, wording.answer(facts)


def corpus() -> Iterator[str]:
    """Every question, and every answer template with every class of each fact in it: what the tokenizer learns from."""
    plain = Facts(subject=2, count=1, direction=0, speed=0, rate=0, balance=0, region=0)
    for wording in WORDINGS:
        yield from wording.questions
        for name, classes in CLASSES.items():
            for value in range(len(classes)):
                fields = dict(zip(Facts.names(), plain.row(), strict=True)) | {name: value}
                fields["count"] = 0 if fields["subject"] < 2 else max(fields["count"], 1)
                yield wording.answer(Facts(**fields))


_PATTERNS: dict[str, tuple[str, ...]] = {
    "subject": (r"\bnoise\b", r"\bwhole scene\b", r"\bdisks?\b", r"\bsquares?\b", r"\btriangles?\b", r"\bbars?\b"),
    "count": (r"\bno (single )?(moving )?objects?\b", r"\bone\b", r"\btwo\b", r"\bthree\b"),
    "direction": tuple(rf"\b{text}\b" for text in _DIRECTION_TEXT),
    "speed": tuple(rf"\b{text}\b" for text in _SPEED_TEXT),
    "rate": (r"\blow\b", r"\bmoderate\b", r"(?<!very )\bhigh\b", r"\bvery high\b"),
    "balance": (r"\bOFF events dominate", r"\bON and OFF events are balanced", r"\bON events dominate"),
    "region": tuple(rf"\b{text}\b" for text in _REGION_TEXT),
}


def read_facts(text: str) -> dict[str, int]:
    """The facts that a text states: the class of each fact it names exactly one class of."""
    stated: dict[str, int] = {}
    for name, patterns in _PATTERNS.items():
        found = [value for value, pattern in enumerate(patterns) if re.search(pattern, text)]
        if len(found) == 1:
            stated[name] = found[0]
    return stated


def grade(kind: str, text: str, facts: Facts) -> float:
    """The share of the facts asked for that an answer states rightly: 0 or 1 but for descriptions, which are asked
    for six.

    Where nothing moves, questions about motion are answered by saying so.
    """
    stated = read_facts(text)
    asked = [name for name in ASKED[kind] if getattr(facts, name) >= 0]
    if facts.name("subject") == "nothing" and kind in ("count", "direction", "speed"):
        asked = ["subject"]
    return sum(stated.get(name) == getattr(facts, name) for name in asked) / len(asked)


def _subject_text(facts: Facts) -> tuple[str, bool]:
    """(noun phrase, plural)."""
    name = facts.name("subject")
    if name == "camera":
        return "the whole scene", False
    return f"{_COUNT_TEXT[facts.count]} {name}{'s' if facts.count > 1 else ''}", facts.count > 1


def _mentioned(template: str) -> set[str]:
    fields = set(re.findall(r"{(\w+)}", template))
    words = {"what": ("subject", "count"), "What": ("subject", "count"), "objects": ("count",)}
    return {fact for field in fields for fact in words.get(field, (field,)) if fact in CLASSES}
