"""The validator: what a valid body means, and that nothing else gets past it but a typed error."""

from __future__ import annotations

import base64
import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_bodies import chat_body, data_url
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_family import toy_events

from cascade_runtime.config import SamplingParams
from cascade_runtime.errors import EventFormatError, InputError
from cascade_runtime.events import Events, write_events
from cascade_runtime.events.video_bytes import VideoLimits, jpeg_frames_to_events, video_bytes_to_events
from cluster.serving.chat_request import ChatLimits, parse_chat
from cluster.serving.media import MediaLimits

LIMITS = ChatLimits(models=("cascade", "toy"), max_tokens=200, deadline_s=60.0)


def parse(body: object, **media: Any) -> Any:
    limits = ChatLimits(models=("cascade",), media=MediaLimits(**media)) if media else LIMITS
    return parse_chat(body, limits, seed=11)


def test_every_field_that_is_used_arrives() -> None:
    body = chat_body(
        model="toy",
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        seed=3,
        max_completion_tokens=12,
        stop="e",
        stream=True,
        stream_options={"include_usage": True},
        cascade={"deadline_ms": 1500, "speculate": False},
        user="somebody",
        n=1,
        logprobs=False,
        tools=None,
    )
    chat = parse(body)
    assert chat.request.events == toy_events() and chat.request.question == "What moves?"
    assert chat.request.sampling == SamplingParams(
        temperature=0.5, top_p=0.9, top_k=7, seed=3, max_tokens=12, stop=("e",)
    )
    assert (chat.model, chat.stream, chat.include_usage, chat.deadline_s) == ("toy", True, True, 1.5)
    assert not chat.request.speculate and not chat.simulated
    assert parse(body | {"cascade": {"deadline_ms": 86_400_000}}).deadline_s == LIMITS.deadline_s  # the server's own


def test_a_bare_body_is_greedy_and_a_sampled_one_gets_the_servers_seed() -> None:
    assert parse(chat_body()).request.sampling == SamplingParams()
    assert parse(chat_body(temperature=1)).request.sampling.seed == 11
    assert parse(chat_body(temperature=1, seed=0)).request.sampling.seed == 0


def test_several_texts_are_one_question_and_a_clip_is_a_window() -> None:
    body = chat_body(cascade={"clip": {"t_start_us": 10_000, "t_end_us": 20_000}})
    body["messages"][0]["content"].append({"type": "text", "text": "How fast?"})
    chat = parse(body)
    first = int(toy_events().t[0])
    assert chat.request.question == "What moves?\nHow fast?"
    assert chat.request.events == toy_events().window(first + 10_000, first + 20_000)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model": "gpt-4"}, "model"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"max_tokens": 201}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"stop": ["a"] * 9}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["\ud800"]}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"foo": 1}, "foo"),
        ({"cascade": {"deadline_ms": 86_400_001}}, "cascade.deadline_ms"),
        ({"cascade": {"speculate": "no"}}, "cascade.speculate"),
        ({"cascade": {"bar": 1}}, "cascade.bar"),
        ({"cascade": {"clip": {"t_start_us": 5, "t_end_us": 5}}}, "cascade.clip.t_end_us"),
        ({"cascade": {"clip": {"t_end_us": 2, "t_start_us": 1}}}, "cascade.clip"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "no recording"}]}, "messages[0].content"),
        ({"text": " "}, "messages[0].content"),
        ({"text": "\udfff"}, "messages[0].content[1].text"),
        ({"text": "x" * 9000}, "messages[0].content"),
        ({"source": {"fps": 0}}, "messages[0].content[0].events_url.fps"),
        ({"source": {"width": 10}}, "messages[0].content[0].events_url.height"),
        ({"source": {"format": "hdf5"}}, "messages[0].content[0].events_url.format"),
        ({"source": {"path": "x"}}, "messages[0].content[0].events_url.path"),
        ({"kind": "image_url"}, "messages[0].content[0].type"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(chat_body(**fields))
    assert caught.value.field == field


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/clip.npz",
        "https://example.com/clip.mp4",
        "ftp://example.com/clip.mp4",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:video/mp4,plain",
        "data:text/csv;base64,%%%",
        "data:image/png;base64,AAAA",
    ],
)
def test_nothing_is_fetched_and_no_path_is_opened_unasked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.open", lambda *_: pytest.fail("a file was opened"))
    monkeypatch.setattr("socket.socket", lambda *_: pytest.fail("a socket was opened"))
    with pytest.raises(InputError) as caught:
        parse(chat_body(url))
    assert caught.value.field == "messages[0].content[0].events_url.url"


def test_file_urls_reach_below_the_allowed_directory_and_no_further(tmp_path: Path) -> None:
    inside, outside = tmp_path / "media", tmp_path / "secret.npz"
    inside.mkdir()
    write_events(inside / "clip.npz", toy_events(1))
    write_events(outside, toy_events(2))
    (inside / "link.npz").symlink_to(outside)
    assert parse(chat_body(f"file://{inside}/clip.npz"), directory=inside).request.events == toy_events(1)
    for url in (f"file://{inside}/../secret.npz", f"file://{inside}/link.npz", f"file://{outside}", f"file://{inside}"):
        with pytest.raises(InputError, match="below the allowed directory"):
            parse(chat_body(url), directory=inside)


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_numpy_parquet_and_text_are_read_from_bytes_and_pickles_are_not(tmp_path: Path) -> None:
    events = toy_events(count=300)
    columns = {name: getattr(events, name) for name in "txyp"}
    sensor = {"width": 128, "height": 96}
    for url in (
        data_url(npz(**columns), "application/octet-stream"),
        data_url(npz(**columns), "application/x-npz"),
    ):
        found = parse(chat_body(url, source=sensor)).request.events
        assert (found.width, found.height, len(found)) == (128, 96, 300) and np.array_equal(found.x, events.x)
    for suffix, media_type in ((".parquet", "application/vnd.apache.parquet"), (".csv", "text/csv")):
        write_events(tmp_path / f"clip{suffix}", events)
        sent = data_url((tmp_path / f"clip{suffix}").read_bytes(), media_type)
        assert parse(chat_body(sent)).request.events == events
    with pytest.raises(EventFormatError, match="hdf5: not read from bytes"):  # its reader opens what the file names
        parse(chat_body(data_url(b"\x89HDF\r\n\x1a\n" + bytes(100), "application/octet-stream")))
    with pytest.raises(EventFormatError, match="pickle"):
        parse(chat_body(data_url(npz(events=np.array({"t": [1]}, dtype=object)), "application/x-npz")))


def test_a_recording_may_be_so_large_and_no_larger() -> None:
    with pytest.raises(InputError, match="at most 1000 bytes"):
        parse(chat_body(), max_bytes=1000)
    with pytest.raises(EventFormatError, match="max_events=2999"):
        parse(chat_body(), max_events=2999)
    bomb = data_url(
        Events([0] * 100_000, [0] * 100_000, [0] * 100_000, [0] * 100_000, width=1, height=1).to_ipc_bytes("zstd")
    )
    assert len(bomb) < 20_000
    with pytest.raises(EventFormatError, match="once decompressed"):
        parse(chat_body(bomb), max_expanded_bytes=100_000)


# -- video -----------------------------------------------------------------------------------------------------------


def moving_square(count: int) -> list[np.ndarray]:
    frames = []
    for step in range(count):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[10:30, 4 + 4 * step : 14 + 4 * step] = 255
        frames.append(frame)
    return frames


def jpeg(frame: np.ndarray) -> bytes:
    import av

    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 64, 48, "yuvj420p", Fraction(1, 30)
    packets = [*codec.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")), *codec.encode(None)]
    return bytes(packets[0])


def mp4(frames: list[np.ndarray]) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def test_frames_and_videos_become_events_that_are_called_simulated() -> None:
    frames = moving_square(6)
    listed = ",".join(base64.b64encode(jpeg(frame)).decode() for frame in frames)
    as_list = parse(chat_body(f"data:video/jpeg;base64,{listed}", kind="video_url", source={"fps": 10}))
    as_file = parse(chat_body(data_url(mp4(frames), "video/mp4"), kind="video_url"))
    for chat in (as_list, as_file):
        events = chat.request.events
        assert chat.simulated and (events.width, events.height) == (64, 48)
        assert 400_000 < events.duration_us <= 500_000  # six frames, a tenth of a second apart
        rising = events.x[(events.p == 1) & (events.t > 0.9 * events.duration_us)]
        assert 26 <= np.median(rising) <= 36  # the square's right edge in the last frames
    assert len(as_list.request.events) == pytest.approx(len(as_file.request.events), rel=0.2)


@pytest.mark.parametrize(
    "limits",
    [{"max_frames": 3}, {"max_pixels": 3 * 64 * 48}, {"max_frame_pixels": 64 * 47}, {"max_events": 100}],
)
def test_a_video_takes_no_more_than_it_may(limits: dict[str, int]) -> None:
    bounds = VideoLimits(**limits)
    frames = moving_square(6)
    with pytest.raises(EventFormatError, match="clip"):
        jpeg_frames_to_events([jpeg(frame) for frame in frames], 10.0, name="clip", limits=bounds)
    with pytest.raises(EventFormatError, match="clip"):
        video_bytes_to_events(mp4(frames), "mov", name="clip", limits=bounds)


def test_a_playlist_is_no_video_whatever_it_is_called() -> None:
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n"
    for media_type in ("video/mp4", "video/webm", "video/x-msvideo", "application/octet-stream"):
        with pytest.raises(EventFormatError):
            parse(chat_body(data_url(playlist, media_type)))


# -- anything at all -------------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_VALID = json.loads(
    json.dumps(
        chat_body(
            toy_events(count=20),
            model="toy",
            temperature=0.5,
            top_p=0.5,
            top_k=3,
            seed=1,
            max_tokens=3,
            stop=["x"],
            stream=True,
            stream_options={"include_usage": True},
            n=1,
            response_format={"type": "text"},
            source={"format": "arrow", "width": 128, "height": 96, "fps": 3},
            cascade={"deadline_ms": 100, "speculate": True, "clip": {"t_start_us": 0, "t_end_us": 100_000}},
        )
    )
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in _places(each, (*path, key)))]


@settings(max_examples=200, deadline=None)
@given(place=st.sampled_from(_places(_VALID)), value=_JSON, extra=st.none() | st.text(max_size=6))
def test_whatever_stands_in_a_body_the_answer_is_a_request_or_a_typed_error(
    place: tuple[Any, ...], value: Any, extra: str | None
) -> None:
    body = json.loads(json.dumps(_VALID))
    if not place:
        body = value
    else:
        holder = body
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = value
        if extra is not None and isinstance(holder, dict):
            holder[extra] = value
    try:
        assert parse(body).request.sampling.max_tokens <= 200
    except InputError as error:
        assert error.allowed and len(str(error)) < 1500


@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=60), media_type=st.sampled_from([
    *("application/octet-stream", "application/x-npz", "application/x-npy", "text/csv", "video/mp4", "video/webm"),
    *("application/vnd.apache.arrow.stream", "application/vnd.apache.parquet", "video/jpeg", "video/x-msvideo"),
]))  # fmt: skip
def test_whatever_a_data_url_holds_the_answer_is_a_request_or_a_typed_error(data: bytes, media_type: str) -> None:
    try:
        parse(chat_body(data_url(data, media_type)))
    except InputError as error:
        assert len(str(error)) < 1500
