"""MVBench (OpenGVLab): one JSON file per task, whose name says in which folder the videos lie.

    action_sequence.json: [{"video": "ZS9XR.mp4", "question": "What happened after ...?",
                            "candidates": ["Ate ...", ...], "answer": "Ate ...", "start": 0.0, "end": 15.4}, ...]

`start` and `end` (seconds) are there for tasks about a part of the video. Root: the folder that the archives were
unpacked into. Tasks whose videos are folders of frames are read as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cascade_runtime.batch.question import Record
from cascade_runtime.batch.records import read_records
from cascade_runtime.errors import InputError

FOLDERS = {
    "action_antonym": "ssv2_video",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video",
    "action_prediction": "star/Charades_v1_480",
    "action_sequence": "star/Charades_v1_480",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}


def mvbench_record(record: Record, task: str) -> Record:
    """One record of a task's file."""
    video = record.get("video")
    return {
        "recording": f"{FOLDERS[task]}/{video}" if isinstance(video, str) else video,
        "question": record.get("question"),
        "options": record.get("candidates"),
        "answer": record.get("answer"),
        "start_s": record.get("start"),
        "end_s": record.get("end"),
    }


def read_mvbench(path: Path) -> Iterator[Record | InputError]:
    """The records of one task's file. Raises `InputError` where its name is no task's."""
    if path.stem not in FOLDERS:
        raise InputError("input", path.name, f"a task's file, {', '.join(f'{task}.json' for task in FOLDERS)}")
    for number, record in enumerate(read_records(path)):
        if isinstance(record, InputError):
            yield record
        else:
            yield {"id": f"{path.stem}-{number}", **mvbench_record(record, path.stem)}
