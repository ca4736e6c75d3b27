"""ActivityNet-QA (Yu et al., AAAI 2019): questions in one file, answers in another beside it.

    test_q.json: [{"video_name": "1QIUV7WYKXg", "question": "is the athlete ...", "question_id": "v_1QIUV7WYKXg_3"}]
    test_a.json: [{"answer": "yes", "type": 3, "question_id": "v_1QIUV7WYKXg_3"}]

Without the second file nothing is scored; records that bring their own `answer` (other editions) keep it. Videos are
named v_NAME, as ActivityNet hands them out. Root: their folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cascade_runtime.batch.question import Record
from cascade_runtime.batch.records import read_records
from cascade_runtime.errors import InputError

_YOUTUBE_NAME = 11  # letters of a name of YouTube's, which may itself begin with "v_"


def activitynet_record(record: Record, answers: Mapping[str, Any]) -> Record:
    """One record; `answers`: question id -> answer."""
    video, name = record.get("video_name"), record.get("question_id")
    if isinstance(video, str) and not (video.startswith("v_") and len(video) > _YOUTUBE_NAME):
        video = f"v_{video}"
    return {
        "id": name,
        "recording": video,
        "question": record.get("question"),
        "answer": record.get("answer", answers.get(str(name))),
    }


def answers_beside(path: Path) -> list[Path]:
    """NAME_a.json of NAME_q.json, if it is there."""
    beside = path.with_name(f"{path.stem.removesuffix('_q')}_a{path.suffix}")
    return [beside] if path.stem.endswith("_q") and beside.is_file() else []


def read_activitynet_qa(path: Path) -> Iterator[Record | InputError]:
    """The records of NAME_q.json with the answers of NAME_a.json, if that is there."""
    answers: dict[str, Any] = {}
    for beside in answers_beside(path):
        for record in read_records(beside):
            if not isinstance(record, InputError):
                answers[str(record.get("question_id"))] = record.get("answer")
    for record in read_records(path):
        yield record if isinstance(record, InputError) else activitynet_record(record, answers)
