"""Is an answer right? Multiple choice by the option it names, open answers by their words.

Which option a text names (`chosen`), the first rule that says something:

    1. it begins with a letter, alone or followed by . : ) or a comma: "B", "(B) a car", "Answer: B."; but "A car
       passes" begins with a word
    2. its words are those of one option
    3. exactly one option's words occur in it, one after the other; of several that lie in one another ("car", "red
       car") the longest counts

Otherwise it names none, and is wrong. Nothing here asks a model to judge, so that the same texts always score alike.

Open answers are compared by `normalised`: lower case, without punctuation and the articles a, an, the, numbers up to
ten as digits. `same` wants all the words and no others, as the published scripts of MSVD-QA and ActivityNet-QA do;
`contained` wants the right answer's words one after the other anywhere, which suits models that answer in sentences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)}
_NAMED = re.compile(
    r"[\s\"'*]*(?:(?:the\s+)?(?:best|correct|right)?\s*(?:answer|option|choice)\s*(?:is|:)?\s*)?"
    r"(?:\((?P<bracketed>[a-z])\)|(?P<letter>[a-z])(?=[.:),]|[\s\"'*]*\Z))",
    re.IGNORECASE,
)


def normalised(text: str) -> tuple[str, ...]:
    """The words that count. Apostrophes join, every other sign parts; a decimal point stays."""
    return tuple(_DIGITS.get(word, word) for word in words(text) if word not in ("a", "an", "the"))


def words(text: str) -> tuple[str, ...]:
    """All of them, in lower case and without signs."""
    plain = re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w.]", " ", re.sub(r"['’]", "", text.lower())).replace("_", " ")
    return tuple(plain.split())


def same(text: str, right: str) -> bool:
    """Whether an open answer is the right one, to the word."""
    return normalised(text) == normalised(right)


def contained(text: str, right: str) -> bool:
    """Whether the right answer's words occur in an open answer, in one piece."""
    return _find(normalised(text), normalised(right)) >= 0


def chosen(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a text names, by the rules above; None where it names none."""
    letters = LETTERS[: len(options)]
    if found := _NAMED.match(text):
        letter = (found["bracketed"] or found["letter"]).upper()
        if letter in letters:
            return letter
    said, named = normalised(text), [normalised(option) for option in options]
    equal = [letter for letter, option in zip(letters, named, strict=True) if option == said]
    if len(equal) == 1:
        return equal[0]
    inside = [number for number, option in enumerate(named) if option and _find(said, option) >= 0]
    widest = [number for number in inside if not any(_wider(named[other], named[number]) for other in inside)]
    return letters[widest[0]] if len(widest) == 1 else None


def _wider(piece: Sequence[str], others: Sequence[str]) -> bool:
    return len(piece) > len(others) and _find(piece, others) >= 0


def _find(whole: Sequence[str], piece: Sequence[str]) -> int:
    """Where `piece` begins in `whole`, -1 where it does not occur or is empty."""
    places = range(len(whole) - len(piece) + 1) if piece else range(0)
    return next((at for at in places if whole[at : at + len(piece)] == piece), -1)
