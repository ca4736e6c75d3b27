"""Video-MME (lmms-lab/Video-MME), Parquet, three questions a video:

    videoID "fFjv93ACGo8", question_id "001-1", question "When ...?", options ["A. Apples.", ...], answer "C"

with more columns that only describe. Root: the folder that holds videoID.mp4 (`data` of the unpacked archives).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cascade_runtime.batch.question import Record
from cascade_runtime.batch.records import read_records
from cascade_runtime.errors import InputError


def videomme_record(record: Record) -> Record:
    """One record; the letters in front of the options come off, since `Question.prompt` puts them there."""
    options = record.get("options")
    if isinstance(options, list):
        options = [re.sub(r"^\s*[A-Z][.):]\s*", "", each) if isinstance(each, str) else each for each in options]
    return {
        "id": record.get("question_id"),
        "recording": record.get("videoID"),
        "question": record.get("question"),
        "options": options,
        "answer": record.get("answer"),
    }


def read_videomme(path: Path) -> Iterator[Record | InputError]:
    """The records of the published file, or of one with the same columns."""
    for record in read_records(path):
        yield record if isinstance(record, InputError) else videomme_record(record)
