"""Published question sets, each as a tiny file of its layout: rows with the right recording, options and answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scripted_batch import write_recording

from cascade_runtime.batch.layouts import companions, read_rows
from cascade_runtime.batch.question import BadRow, Question
from cascade_runtime.batch.recordings import Recordings
from cascade_runtime.errors import InputError


def rows(path: Path, layout: str) -> list[tuple[Any, ...]]:
    """(id, recording, question, options, answer, cut) of each row; a bad row's is what is wrong with it."""
    told: list[tuple[Any, ...]] = []
    for row in read_rows(path, layout):
        if isinstance(row, BadRow):
            told.append((row.id, row.error.field))
        else:
            told.append((row.id, row.recording, row.question, row.options, row.answer, row.cut))
    return told


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_conversations_about_dsec_windows(tmp_path: Path) -> None:
    talk = [
        {"from": "human", "value": "<event>\nWhat is on the road?"},
        {"from": "gpt", "value": "Two cars."},
        {"from": "human", "value": "How fast are they?"},
        {"from": "gpt", "value": "Slow."},
    ]
    records = [
        {"id": "a", "event": "interlaken/000069.npy", "conversations": talk},
        {"id": "b", "event": "zurich/000001.npy", "conversations": talk[:2]},
        {"id": "c", "event": "x.npy", "conversations": talk[1:2]},
        {"id": "d", "event": "x.npy", "conversations": "?"},
    ]
    assert rows(write(tmp_path / "q.json", records), "dsec") == [
        ("a#0", "interlaken/000069.npy", "What is on the road?", (), "Two cars.", None),
        ("a#1", "interlaken/000069.npy", "How fast are they?", (), "Slow.", None),
        ("b", "zurich/000001.npy", "What is on the road?", (), "Two cars.", None),
        ("3", "conversations"),  # the row's number: nobody asks anything there
        ("4", "conversations"),
    ]


def test_eventbench_with_options(tmp_path: Path) -> None:
    record = {"question_id": 7, "event_data": "a.npz", "query": "<ev_start><event><ev_end> Which?"}
    path = write(tmp_path / "q.json", [{**record, "candidates": ["left", "right"], "answer": "right"}])
    assert rows(path, "eventbench") == [("7", "a.npz", "Which?", ("left", "right"), "B", None)]


def test_mvbench_knows_the_folder_and_the_part_of_the_video(tmp_path: Path) -> None:
    record = {"video": "ZS9XR.mp4", "question": "What happened?", "candidates": ["Ate.", "Sat."], "answer": "Sat."}
    path = write(tmp_path / "action_sequence.json", [{**record, "start": 1.5, "end": 15.4}, record])
    assert rows(path, "mvbench") == [
        ("action_sequence-0", "star/Charades_v1_480/ZS9XR.mp4", "What happened?", ("Ate.", "Sat."), "B", (1.5, 15.4)),
        ("action_sequence-1", "star/Charades_v1_480/ZS9XR.mp4", "What happened?", ("Ate.", "Sat."), "B", None),
    ]
    with pytest.raises(InputError, match="moving_count"):
        rows(write(tmp_path / "other.json", []), "mvbench")


def test_videomme_takes_the_letters_off_its_options(tmp_path: Path) -> None:
    record = {
        "video_id": "001",
        "videoID": "fFjv93ACGo8",
        "question_id": "001-1",
        "duration": "short",
        "question": "Which fruit?",
        "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. Three kinds."],
        "answer": "C",
    }
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "test.parquet")
    options = ("Apples.", "Candles.", "Berries.", "Three kinds.")
    assert rows(tmp_path / "test.parquet", "videomme") == [("001-1", "fFjv93ACGo8", "Which fruit?", options, "C", None)]


def test_msvd_qa_maps_its_numbers_to_names(tmp_path: Path) -> None:
    record = {"answer": "someone", "id": 37234, "question": "who is running?", "video_id": 1301}
    path = write(tmp_path / "test_qa.json", [record, {**record, "video_id": 1302}])
    assert rows(path, "msvd_qa")[0] == ("37234", "vid1301", "who is running?", (), "someone", None)
    (tmp_path / "youtube_mapping.txt").write_text("-4wsuPCjDBc_5_15 vid1301\n")
    assert companions(path, "msvd_qa") == [tmp_path / "youtube_mapping.txt"]
    assert rows(path, "msvd_qa") == [
        ("37234", "-4wsuPCjDBc_5_15", "who is running?", (), "someone", None),
        ("37234", "recording"),  # it is not in the mapping
    ]


def test_activitynet_qa_joins_questions_and_answers(tmp_path: Path) -> None:
    record = {"video_name": "1QIUV7WYKXg", "question": "is he tall", "question_id": "v_1QIUV7WYKXg_3"}
    others = [{**record, "video_name": "v_abcdefghi"}, {**record, "video_name": "v_1QIUV7WYKXg", "question_id": "z"}]
    path = write(tmp_path / "test_q.json", [record, *others])
    write(tmp_path / "test_a.json", [{"answer": "yes", "type": 3, "question_id": "v_1QIUV7WYKXg_3"}])
    assert companions(path, "activitynet_qa") == [tmp_path / "test_a.json"]
    assert rows(path, "activitynet_qa") == [
        ("v_1QIUV7WYKXg_3", "v_1QIUV7WYKXg", "is he tall", (), "yes", None),
        ("v_1QIUV7WYKXg_3", "v_v_abcdefghi", "is he tall", (), "yes", None),  # a name of eleven letters begins so
        ("z", "v_1QIUV7WYKXg", "is he tall", (), None, None),
    ]


def test_csv_has_the_same_rows(tmp_path: Path) -> None:
    text = 'id,events,question,answer\n1,a.npz,"What, where?",yes\n2,b.npz,Which?,\n3,c.npz\n4,d.npz,x,y,too much\n'
    (tmp_path / "q.csv").write_text(text)
    assert rows(tmp_path / "q.csv", "rows") == [
        ("1", "a.npz", "What, where?", (), "yes", None),
        ("2", "b.npz", "Which?", (), None, None),
        ("2", "row"),
        ("3", "row"),
    ]


def test_a_name_without_suffix_is_looked_for_with_those_of_videos(tmp_path: Path) -> None:
    write_recording(tmp_path / "plain.npz")
    (tmp_path / "v_abc.mkv").touch()
    recordings = Recordings(tmp_path)
    assert recordings.find("v_abc") == (tmp_path / "v_abc.mkv").resolve()
    with pytest.raises(InputError, match="existing file"):
        recordings.find("plain")
    question = Question(index=0, id="0", recording="plain.npz", question="q", cut=(0.01, 0.02))
    events = recordings.read(question)
    assert events.t.min() >= 10_000 and events.t.max() < 20_000
