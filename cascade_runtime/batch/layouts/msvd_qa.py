"""MSVD-QA (Xu et al., ACM MM 2017): test_qa.json, open questions with answers of one word.

    [{"answer": "someone", "id": 37234, "question": "who is running up a hill?", "video_id": 1301}, ...]

Its videos are numbered; youtube_mapping.txt of MSVD ("name vid1301" a line) beside the file says which is which, and
without it the names are vid1301. Root: the folder of the videos (YouTubeClips).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from cascade_runtime.batch.question import Record
from cascade_runtime.batch.records import read_records
from cascade_runtime.errors import InputError

_MAX_MAPPING_BYTES = 4 << 20


def msvd_record(record: Record, names: Mapping[str, str]) -> Record:
    """One record; `names`: "vid1301" -> the video's name, empty where there is no mapping."""
    number = record.get("video_id")
    video = f"vid{number}"
    if number is None or (names and video not in names):
        return {"id": record.get("id"), "question": record.get("question")}  # without a recording: a bad row
    return {
        "id": record.get("id"),
        "recording": names.get(video, video),
        "question": record.get("question"),
        "answer": record.get("answer"),
    }


def names_beside(path: Path) -> list[Path]:
    """The mapping of names beside a file of questions, if it is there."""
    mapping = path.with_name("youtube_mapping.txt")
    return [mapping] if mapping.is_file() else []


def read_msvd_qa(path: Path) -> Iterator[Record | InputError]:
    """The records of the published file, or of a CSV or Parquet with the same columns."""
    names = {name: video for mapping in names_beside(path) for name, video in _names(mapping).items()}
    for record in read_records(path):
        yield record if isinstance(record, InputError) else msvd_record(record, names)


def _names(mapping: Path) -> dict[str, str]:
    with mapping.open(encoding="utf-8", errors="replace") as file:
        lines = [line.split() for line in file.read(_MAX_MAPPING_BYTES).splitlines()]
    return {line[1]: line[0] for line in lines if len(line) == 2}
