"""Published question sets: how their files become records of `cascade_runtime.batch.question`.

    rows            this project's own: {id, events, question, options?, answer?}
    dsec            EventGPT's and LLaVA's conversations about DSEC windows: {id, event, conversations: [...]}
    eventbench      the same about EventBench's recordings, and flat records with options
    mvbench         one JSON file per task: {video, question, candidates, answer}
    videomme        Parquet: {videoID, question_id, question, options, answer}
    msvd_qa         {video_id, question, answer, id}, names from youtube_mapping.txt beside it
    activitynet_qa  NAME_q.json with NAME_a.json beside it

Each file here holds one pure function per layout, from a published record to ours, and what reads its companions.
Recordings are named as the publisher does, below `--root`; a name without suffix is looked for with the usual ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from cascade_runtime.batch.layouts.activitynet_qa import answers_beside, read_activitynet_qa
from cascade_runtime.batch.layouts.conversations import read_conversations
from cascade_runtime.batch.layouts.msvd_qa import names_beside, read_msvd_qa
from cascade_runtime.batch.layouts.mvbench import read_mvbench
from cascade_runtime.batch.layouts.videomme import read_videomme
from cascade_runtime.batch.question import BadRow, Record, Row, question_from
from cascade_runtime.batch.records import read_records
from cascade_runtime.errors import ConfigError, InputError

LAYOUTS: dict[str, Callable[[Path], Iterator[Record | InputError]]] = {
    "rows": read_records,
    "dsec": read_conversations,
    "eventbench": read_conversations,
    "mvbench": read_mvbench,
    "videomme": read_videomme,
    "msvd_qa": read_msvd_qa,
    "activitynet_qa": read_activitynet_qa,
}

_COMPANIONS: dict[str, Callable[[Path], list[Path]]] = {"msvd_qa": names_beside, "activitynet_qa": answers_beside}


def companions(path: Path, layout: str) -> list[Path]:
    """The other files that a layout reads with this one."""
    return _COMPANIONS[layout](path) if layout in _COMPANIONS else []


def read_rows(path: Path, layout: str = "rows") -> Iterator[Row]:
    """Every row of a file, in order, bad ones included. Raises `ConfigError` for a layout that is none, `InputError`
    for a file that cannot be read.
    """
    if layout not in LAYOUTS:
        raise ConfigError("layout", layout, ", ".join(LAYOUTS))
    for index, record in enumerate(LAYOUTS[layout](path)):
        if isinstance(record, InputError):
            yield BadRow(index=index, id=str(index), error=record)
        else:
            yield question_from(record, index)
