"""Recordings and their addresses as weapons: a typed error that names the field, in bounded memory, no hang.

They come through the validator of all doors (`parse_chat`) with the limits of a small server, so that a bomb need not
be large.

    RECORDINGS    what a file may hide (hostile_recordings.py makes them)
    code, links   what would run, or open another file
    addresses     what would be fetched, and paths that lead out of the directory that may be read
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks.hostile_recordings import (
    archive,
    arrow,
    deep_parquet,
    huge_jpeg,
    many_samples,
    nested,
    npy,
    url,
    vectors,
    video,
    wide_parquet,
    zeros,
)
from attacks.memory import MB, at_most

from cascade_runtime.errors import EventFormatError, InputError
from cascade_runtime.events import ReadLimits, read_events
from cascade_runtime.events.video_bytes import VideoLimits
from cluster.serving.chat_request import ChatLimits, parse_chat
from cluster.serving.media import MediaLimits

MEDIA = MediaLimits(
    max_bytes=4 * MB,
    max_expanded_bytes=16 * MB,
    max_events=200_000,
    video=VideoLimits(max_frame_pixels=640 * 480, max_pixels=10_000_000),
)
WHERE = "messages[0].content[0].events_url"


def ask(where: str, media: MediaLimits = MEDIA, **source: Any) -> Any:
    content = [{"type": "events_url", "events_url": {"url": where, **source}}, {"type": "text", "text": "What?"}]
    body = {"messages": [{"role": "user", "content": content}]}
    return parse_chat(body, ChatLimits(models=("cascade",), media=media))


class _Touches:
    """What unpickles to a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


RECORDINGS: dict[str, tuple[Callable[[], str], str]] = {
    "npy of a terabyte by its header": (lambda: url(npy((10**11,)), "application/x-npy"), "does not match"),
    "npy of objects": (lambda: url(npy((), "|O"), "application/x-npy"), "is a pickle"),
    "npy whose header is a program": (
        lambda: url(b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000, "application/x-npy"),
        WHERE,
    ),
    "npz bomb": (lambda: url(archive({"t.npy": bytes(64 * MB)}), "application/x-npz"), "max_expanded_bytes"),
    "npz of a hundred entries": (lambda: url(archive({f"{k}": b"" for k in range(100)})), "100 entries"),
    "npz of paths": (lambda: url(archive({"../../../etc/passwd": b"x"})), "etc/passwd"),
    "arrow zstd bomb": (
        lambda: url(arrow({"t": zeros(8 * MB)}, "zstd"), "application/vnd.apache.arrow.stream"),
        "once",
    ),
    "arrow lz4 bomb": (lambda: url(arrow({"t": zeros(4 * MB)}, "lz4"), "application/vnd.apache.arrow.stream"), "once"),
    "arrow schema 200 deep": (lambda: url(nested(200), "application/vnd.apache.arrow.stream"), "flatbuffers"),
    "arrow of 20,000 columns": (lambda: url(arrow({f"{k}": zeros(1) for k in range(20_000)})[8:]), WHERE),
    "arrow with a dictionary": (
        lambda: url(arrow({"t": zeros(2).dictionary_encode()}), "application/vnd.apache.arrow.stream"),
        "is a dictionary",
    ),
    "parquet of 6,000 columns": (lambda: url(wide_parquet(6_000), "application/vnd.apache.parquet"), "footer"),
    "parquet schema 100,000 deep": (lambda: url(deep_parquet(100_000), "application/vnd.apache.parquet"), "nested"),
    "evt3 of two million events": (lambda: url(vectors(350_000)), "max_events"),
    "text of one line": (lambda: url(b"1" * 3 * MB, "text/csv"), "line longer"),
    "video of 5,000 x 5,000": (lambda: url(video(5000, 5000), "video/mp4"), WHERE),
    "video of more pixels than all may have": (lambda: url(video(640, 480, 40), "video/mp4"), "pixels"),
    "video of 2^28 samples": (lambda: url(many_samples(), "video/mp4"), WHERE),
    "jpeg of 65,500 x 65,500": (lambda: url(huge_jpeg(), "video/jpeg"), WHERE),
    "ten thousand jpegs": (lambda: "data:video/jpeg;base64," + "," * 10_000, "more than 300 frames"),
    "playlist as a video": (lambda: url(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "video/mp4"), WHERE),
    "base64 of more than may come": (lambda: "data:text/csv;base64," + "A" * (6 * MB), "at most 4194304 bytes"),
    "base64 that is none": (lambda: "data:text/csv;base64,%00%00", "base64"),
}


@pytest.mark.parametrize("attack", RECORDINGS)
def test_a_recording_made_to_hurt_is_refused_by_the_name_of_its_field(attack: str) -> None:
    make, reason = RECORDINGS[attack]
    made = make()
    with at_most(48), pytest.raises(InputError) as caught:
        ask(made)
    assert WHERE in str(caught.value) and reason in str(caught.value) and len(str(caught.value)) < 1000


def test_a_recording_that_would_run_code_does_not(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array(_Touches(tmp_path / "ran"), dtype=object), allow_pickle=True)
    with pytest.raises(EventFormatError, match="pickle"):
        ask(url(file.getvalue(), "application/x-npy"))
    (tmp_path / "evil.npy").write_bytes(file.getvalue())
    with pytest.raises(EventFormatError, match="refused"):
        read_events(tmp_path / "evil.npy")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("way", ["link", "storage"])
def test_an_hdf5_file_opens_no_other(way: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["t"] = np.arange(10)
    with h5py.File(tmp_path / "clip.h5", "w") as file:
        group = file.create_group("events")
        for name in "xyp":
            group[name] = np.zeros(10, np.uint8)
        if way == "link":
            group["t"] = h5py.ExternalLink(str(secret), "/t")
        else:
            group.create_dataset("t", (10,), np.int64, external=[("/etc/passwd", 0, 80)])
    with pytest.raises(EventFormatError, match=r"clip\.h5: (link t|field /events/t)"):
        read_events(tmp_path / "clip.h5", limits=ReadLimits(max_expanded_bytes=MB))
    for where in (url((tmp_path / "clip.h5").read_bytes()), f"file://{tmp_path}/clip.h5"):
        with pytest.raises(EventFormatError, match="not read from bytes"):
            ask(where, replace(MEDIA, directory=tmp_path))


@pytest.mark.parametrize(
    "where",
    [
        *("http://169.254.169.254/latest/meta-data", "https://127.0.0.1:8265/api/jobs/", "http://[::1]/x", "//h/x"),
        *(
            "ftp://example.com/x",
            "gopher://127.0.0.1:6379/_FLUSHALL",
            "s3://bucket/key",
            "blob:null/1",
            "jar:file:/x!/",
        ),
        *("file:///etc/passwd", "FILE:///etc/passwd", "file://localhost/etc/passwd", "/etc/passwd", "../secret", ""),
        *("data:text/csv,http://127.0.0.1/", "data:message/external-body;base64,AAAA", "\0file:///etc/passwd"),
    ],
)
def test_no_address_is_fetched_and_no_path_opened(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("os.open", "builtins.open", "socket.socket", "socket.getaddrinfo"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("something was opened"))
    with pytest.raises(InputError) as caught:
        ask(where)
    assert caught.value.field == f"{WHERE}.url"


def test_no_path_leads_out_of_the_directory_that_may_be_read(tmp_path: Path) -> None:
    inside = tmp_path / "media"
    inside.mkdir()
    (tmp_path / "secret.csv").write_text("t,x,y,p\n0,1,1,1\n")
    (inside / "link.csv").symlink_to(tmp_path / "secret.csv")
    (inside / "loop.csv").symlink_to(inside / "loop.csv")
    os.mkfifo(inside / "pipe.csv")
    paths = ("../secret.csv", "%2e%2e/secret.csv", "link.csv", "loop.csv", "pipe.csv", ".", "a%00.csv", "x" * 5000)
    for path in (*(f"file://{inside}/{path}" for path in paths), f"file://evil{inside}/link.csv", "file:secret.csv"):
        with pytest.raises(InputError) as caught:
            ask(path, replace(MEDIA, directory=inside))
        assert caught.value.field == f"{WHERE}.url"
