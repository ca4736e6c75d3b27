"""Every format gives the events that were written into it; the shared real recordings read with their known counts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import recording_seeds as seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.errors import EventFormatError, InputError
from cascade_runtime.events import Events, ReadLimits, read_events, write_events
from cascade_runtime.events.readers.evt3 import decode_evt3
from cascade_runtime.events.readers.source import Source

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "events"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real recordings are not here")

PLAIN = {
    "eventgpt.npy": seeds.eventgpt_npy,
    "bench.npz": seeds.eventbench_npz,
    "table.npz": seeds.table_npz,
    "rpg.txt": seeds.rpg_text,
    "named.csv": seeds.csv_text,
    "caltech.bin": seeds.forty_bit,
    "two.raw": seeds.evt2,
    "three.raw": seeds.evt3,
    "lz4.aedat4": seeds.aedat4,
    "zstd.aedat4": lambda events: seeds.aedat4(events, "zstd"),
    "none.aedat4": lambda events: seeds.aedat4(events, "none"),
    "packets.bag": seeds.packet_bag,
    "packed.bag": lambda events: seeds.packet_bag(events, "bz2"),
    "array.bag": seeds.array_bag,
    "stream.arrows": lambda events: events.to_ipc_bytes(),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_reader_gives_the_events_written(name: str, tmp_path: Path) -> None:
    events = seeds.simulated()
    (tmp_path / name).write_bytes(PLAIN[name](events))
    found = read_events(tmp_path / name)
    assert seeds.same_events(found, events)
    assert (found.width, found.height) == (240, 180)
    assert found.t[0] == 0


@pytest.mark.parametrize(("name", "seed"), [("cd.dat", seeds.dat), ("davis.aedat", seeds.aedat2)])
def test_eventcv_reads_what_we_leave_to_it(name: str, seed: object, tmp_path: Path) -> None:
    pytest.importorskip("eventcv")
    events = seeds.simulated()
    (tmp_path / name).write_bytes(seed(events))  # type: ignore[operator]
    found = read_events(tmp_path / name)
    assert seeds.same_events(found, events)
    assert (found.width, found.height) == (240, 180)


def test_dsec_times_are_absolute(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("hdf5plugin")
    events = seeds.simulated()
    (tmp_path / "events.h5").write_bytes(seeds.hdf5(events, tmp_path, t_offset=51_000_000_000))
    found = read_events(tmp_path / "events.h5")
    assert found.t_offset_us == 51_000_000_000
    assert np.array_equal(found.t, events.t)
    assert np.array_equal(found.x, events.x)


@pytest.mark.parametrize("suffix", [".npz", ".arrow", ".parquet", ".csv"])
@pytest.mark.parametrize("count", [0, 1, 500])
def test_what_we_write_reads_back_exactly(suffix: str, count: int, tmp_path: Path) -> None:
    events = seeds.simulated(count) if count else Events([], [], [], [], width=7, height=5)
    whole = Events(
        events.t + 12, events.x, events.y, events.p, width=4000, height=300, t_offset_us=1_600_000_000_000_000
    )
    write_events(tmp_path / f"own{suffix}", whole)
    assert read_events(tmp_path / f"own{suffix}") == whole
    assert [entry.name for entry in tmp_path.iterdir()] == [f"own{suffix}"]


def test_writing_another_suffix_says_which_are_possible(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.parquet"):
        write_events(tmp_path / "events.xyz", seeds.simulated())


def test_overflow_rows_of_the_forty_bit_format_move_time_on(tmp_path: Path) -> None:
    rows = [(3, 4, 0x80, 0, 9), (0, 240, 0, 0, 0), (5, 6, 0, 0, 10)]
    (tmp_path / "a.bin").write_bytes(bytes(byte for row in rows for byte in row))
    found = read_events(tmp_path / "a.bin")
    assert (found.t + found.t_offset_us).tolist() == [9, 2**13 + 10]
    assert found.p.tolist() == [1, 0]


def test_uint16_times_are_widened_before_arithmetic(tmp_path: Path) -> None:
    columns = {"x": [0, 1], "y": [0, 1], "p": [0, 1]}
    value = {name: np.array(v, np.uint16) for name, v in columns.items()} | {"t": np.array([40_000, 65_535], np.uint16)}
    np.save(tmp_path / "short.npy", np.array(value, dtype=object), allow_pickle=True)
    found = read_events(tmp_path / "short.npy")
    assert found.duration_us == 25_535
    assert found.t.dtype == np.int64


def test_pickles_of_numpy_1_and_protocol_2_are_read(tmp_path: Path) -> None:
    """As Python 2-compatible writers make them: module numpy.core, bytes as latin-1 text."""
    import pickle

    events = seeds.simulated()
    value = np.array({name: getattr(events, name) for name in "txyp"}, dtype=object)
    body = pickle.dumps(value, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    header = seeds.eventgpt_npy(events)[:128]
    (tmp_path / "old.npy").write_bytes(header + body)
    assert seeds.same_events(read_events(tmp_path / "old.npy"), events)


def test_evt2_wrapped_counter_runs_on(tmp_path: Path) -> None:
    high = [(8 << 28) | 0x0FFFFFFF, (1 << 28) | 5, (8 << 28) | 0, (1 << 28) | 6]
    (tmp_path / "wrap.raw").write_bytes(b"% evt 2.0\n" + np.array(high, "<u4").tobytes())
    found = read_events(tmp_path / "wrap.raw")
    assert found.duration_us == 64
    assert found.y.tolist() == [5, 6]


def openeb_evt3(words: np.ndarray) -> list[tuple[int, int, int, int]]:
    """The vendor's decoder, a word at a time (openeb evt3_decoder.h)."""
    out, started, high, low, loops, y, base, on = [], False, 0, 0, 0, 0, 0, 0
    for word in words.tolist():
        kind, value = word >> 12, word & 0xFFF
        if kind == 8:
            if not started:
                started, high = True, value
            elif value != high:
                loops += high >= 2048 + value
                high, low = value, 0
            continue
        if not started:
            continue
        t = (loops << 24) + (high << 12) + low
        if kind == 0:
            y = value & 0x7FF
        elif kind == 2:
            out.append((t, value & 0x7FF, y, value >> 11))
        elif kind == 3:
            base, on = value & 0x7FF, value >> 11
        elif kind in (4, 5):
            width = 12 if kind == 4 else 8
            out += [(t, base + bit, y, on) for bit in range(width) if value >> bit & 1]
            base += width
        elif kind == 6:
            low = value
    return out


@given(
    st.lists(
        st.one_of(
            st.integers(0, 0xFFFF),
            st.sampled_from([0x8000, 0x8001, 0x8FFF, 0x87FF, 0x6000, 0x6FFF, 0x3005, 0x4FFF, 0x50FF, 0x2801]),
        ),
        max_size=120,
    ),
    st.sampled_from([3, 7, 1 << 16]),
)
@settings(max_examples=200, deadline=None)
def test_evt3_decoder_follows_the_vendors_rules_for_any_words(words: list[int], block: int) -> None:
    import cascade_runtime.events.readers.evt3 as reader

    array = np.array(words, "<u2")
    expected = openeb_evt3(array)
    kept, reader._BLOCK_WORDS = reader._BLOCK_WORDS, block
    try:
        found = decode_evt3(Source(Path("words.raw")), array)
    finally:
        reader._BLOCK_WORDS = kept
    assert [tuple(int(v) for v in row) for row in zip(*found, strict=True)] == expected


@pytest.mark.parametrize("block", [5, 64])
def test_evt2_blocks_do_not_show(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import cascade_runtime.events.readers.evt2 as reader

    words = seeds.evt2_words(seeds.simulated())
    whole = reader.decode_evt2(words)
    monkeypatch.setattr(reader, "_BLOCK_WORDS", block)
    assert all(np.array_equal(a, b) for a, b in zip(reader.decode_evt2(words), whole, strict=True))


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.dat").write_bytes(seeds.dat(seeds.simulated()))
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    for module in ("eventcv", "h5py"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"cascade-runtime\[events\]"):
        read_events(tmp_path / "a.dat")
    with pytest.raises(InputError, match=r"cascade-runtime\[dsec\]"):
        read_events(tmp_path / "a.h5")


def test_content_decides_before_the_suffix_and_the_caller_before_both(tmp_path: Path) -> None:
    events = seeds.simulated()
    (tmp_path / "misnamed.txt").write_bytes(seeds.eventgpt_npy(events))
    assert seeds.same_events(read_events(tmp_path / "misnamed.txt"), events)
    (tmp_path / "no_suffix").write_bytes(seeds.forty_bit(events))
    assert seeds.same_events(read_events(tmp_path / "no_suffix", format="bin"), events)
    with pytest.raises(InputError, match="evt2, evt3"):
        read_events(tmp_path / "no_suffix", format="video")
    with pytest.raises(EventFormatError, match="no_suffix"):
        read_events(tmp_path / "no_suffix")


def test_the_callers_sensor_is_taken_and_checked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(seeds.rpg_text(seeds.simulated()))
    assert read_events(tmp_path / "a.txt", sensor=(640, 480)).width == 640
    with pytest.raises(EventFormatError, match="field x"):
        read_events(tmp_path / "a.txt", sensor=(100, 180))


def test_unsorted_files_are_sorted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,x,y,p\n30,1,1,1\n10,2,2,0\n20,3,3,1\n")
    found = read_events(tmp_path / "a.csv")
    assert found.x.tolist() == [2, 3, 1]
    assert found.t.tolist() == [0, 10, 20]


def test_limits_hold_for_events_and_bytes(tmp_path: Path) -> None:
    for name, seed in PLAIN.items():
        (tmp_path / name).write_bytes(seed(seeds.simulated()))
        with pytest.raises(EventFormatError, match="max_events"):
            read_events(tmp_path / name, limits=ReadLimits(max_events=100))
    with pytest.raises(EventFormatError, match="max_file_bytes"):
        read_events(tmp_path / "two.raw", limits=ReadLimits(max_file_bytes=100))


REAL = {
    "davis346_two_objects.aedat4": (6_676, 169_941, 346, 260),
    "dsec_interlaken_00_d_000069.npy": (293_355, 49_999, 640, 480),
    "dsec_interlaken_00_d_000079.npy": (209_542, 49_999, 640, 480),
    "dsec_interlaken_00_d_000109.npy": (219_339, 49_999, 640, 480),
    "eventgpt_sample1.npy": (132_268, 49_595, 640, 480),
    "ncaltech101_faces_easy_0001.bin": (67_445, 299_358, 240, 180),
    "prophesee_evt2_spinner.raw": (539_481, 50_000, 640, 480),
    "prophesee_evt3_driving.raw": (219_596, 8_801, 1280, 720),
    "ros1_event_packets_evt3.bag": (343_474, 2_078_178, 640, 480),
    "rpg_slider_depth_chunk.txt": (50_000, 170_345, 240, 180),
}


@needs_shared
def test_every_shared_recording_is_expected() -> None:
    assert sorted(path.name for path in SHARED.iterdir()) == sorted(REAL)


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_shared_recordings_read_with_their_known_counts(name: str) -> None:
    found = read_events(SHARED / name)
    assert (len(found), found.duration_us, found.width, found.height) == REAL[name]


@needs_shared
@pytest.mark.parametrize(
    "name", ["prophesee_evt2_spinner.raw", "prophesee_evt3_driving.raw", "rpg_slider_depth_chunk.txt"]
)
def test_shared_recordings_agree_with_eventcv(name: str) -> None:
    eventcv = pytest.importorskip("eventcv")
    theirs = eventcv.load(str(SHARED / name)).numpy().astype(np.int64)
    theirs = theirs[np.argsort(theirs[:, 2], kind="stable")]
    found = read_events(SHARED / name)
    for column, ours in zip((2, 0, 1, 3), seeds.columns_of(found), strict=True):
        assert np.array_equal(theirs[:, column], ours)
