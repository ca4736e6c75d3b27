"""Files made to hurt: code in pickles, sizes that lie, links out of the file.

All refused, by name, without taking memory.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import recording_seeds as seeds

from cascade_runtime.errors import EventFormatError, InputError
from cascade_runtime.events import ReadLimits, read_events
from cascade_runtime.events.readers.object_pickle import load_arrays
from cascade_runtime.events.readers.parquet_pages import check_pages
from cascade_runtime.events.readers.source import Source

OBJECT_HEADER = seeds.eventgpt_npy(seeds.simulated(1))[:128]
SMALL = ReadLimits(max_file_bytes=8 * 2**20, max_expanded_bytes=8 * 2**20, max_events=500_000)


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_something_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    (tmp_path / "evil.npy").write_bytes(OBJECT_HEADER + pickle.dumps(_Touch(target), protocol=protocol))
    with pytest.raises(EventFormatError, match=r"evil\.npy.*refused"):
        read_events(tmp_path / "evil.npy")
    assert not target.exists()


def _short(text: bytes) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".",  # bytes of an exabyte
        b"\x80\x04" + _short(b"builtins") + _short(b"eval") + b"\x93.",
        b"\x80\x04" + _short(b"numpy") + _short(b"load") + b"\x93.",
        b"\x80\x04cos\nsystem\n.",
        b"\x80\x04Q.",  # persistent id
        b"\x80\x04" + b"]" + b"h\x00" * 3 + b".",
        b"\x80\x04(" * 1000 + b".",
        b"",
    ],
)
def test_malformed_pickles_are_value_errors(body: bytes) -> None:
    with pytest.raises(ValueError):
        load_arrays(body)


def test_a_memo_slot_of_four_billion_takes_no_memory() -> None:
    """The C unpickler allocates every slot up to the one named."""
    assert load_arrays(b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b".") is None


def test_a_pickled_array_larger_than_its_bytes_is_refused() -> None:
    honest = pickle.dumps(np.zeros(1000, np.int64), protocol=4)
    assert np.array_equal(load_arrays(honest), np.zeros(1000, np.int64))  # type: ignore[arg-type]
    lie = honest.replace(b"M\xe8\x03\x85", b"J\x00\x00\x00\x7f\x85")
    assert lie != honest
    with pytest.raises(ValueError, match="wrong number of bytes"):
        load_arrays(lie)


def test_nested_pickles_do_not_multiply(tmp_path: Path) -> None:
    """A list of 64 references to a list of 64 references to ...: a kilobyte that unfolds to 64**9 values."""
    value: list = []
    for _ in range(9):
        value = [value] * 64
    (tmp_path / "laugh.npy").write_bytes(OBJECT_HEADER + pickle.dumps(value, protocol=4))
    with pytest.raises(EventFormatError, match="nested"):
        read_events(tmp_path / "laugh.npy")


def _npz(**entries: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


def test_a_zip_bomb_is_refused_by_its_directory(tmp_path: Path) -> None:
    (tmp_path / "bomb.npz").write_bytes(_npz(t=bytes(64 * 2**20)))
    assert (tmp_path / "bomb.npz").stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(EventFormatError, match="max_expanded_bytes"):
        read_events(tmp_path / "bomb.npz", limits=SMALL)
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


def test_a_zip_bomb_whose_directory_lies_is_stopped_at_its_word(tmp_path: Path) -> None:
    data = bytearray(_npz(t=bytes(64 * 2**20)))
    size = struct.pack("<I", 64 * 2**20)
    for _ in range(2):
        at = data.find(size)
        if at >= 0:
            struct.pack_into("<I", data, at, 1000)
    (tmp_path / "lie.npz").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(EventFormatError):
        read_events(tmp_path / "lie.npz", limits=SMALL)
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


def test_an_npy_header_is_not_believed(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 4)})
    (tmp_path / "huge.npy").write_bytes(stream.getvalue() + bytes(64))
    with pytest.raises(EventFormatError, match="does not match 64 bytes"):
        read_events(tmp_path / "huge.npy")


def test_an_object_column_inside_an_npz_is_refused(tmp_path: Path) -> None:
    good = {name: np.zeros(3, np.int64) for name in "txy"}
    stream = io.BytesIO()
    np.savez(stream, p=np.array([{}, {}, {}], dtype=object), **good)
    (tmp_path / "o.npz").write_bytes(stream.getvalue())
    with pytest.raises(EventFormatError, match="field p"):
        read_events(tmp_path / "o.npz")


def test_arrow_offsets_out_of_the_body_are_refused(tmp_path: Path) -> None:
    data = bytearray(seeds.simulated(64).to_ipc_bytes())
    lengths = [i for i in range(0, len(data) - 8, 4) if struct.unpack_from("<q", data, i)[0] == 512]
    assert lengths
    for at in lengths:
        bad = bytearray(data)
        struct.pack_into("<q", bad, at, 2**40)
        (tmp_path / "bad.arrow").write_bytes(bad)
        with pytest.raises(EventFormatError):
            read_events(tmp_path / "bad.arrow", limits=SMALL)


def test_string_columns_with_bad_offsets_do_not_reach_past_the_buffer(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_pydict({"t": ["a", "bb"], "x": [1, 2], "y": [1, 2], "p": [1, 0]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data = bytearray(sink.getvalue().to_pybytes())
    at = data.find(struct.pack("<iii", 0, 1, 3))
    struct.pack_into("<i", data, at + 8, 2**30)
    (tmp_path / "s.arrow").write_bytes(data)
    with pytest.raises(EventFormatError):
        read_events(tmp_path / "s.arrow")


def test_parquet_rows_are_counted_before_they_are_read(tmp_path: Path) -> None:
    zeros = pa.table({name: pa.array(np.zeros(2_000_000, np.int64)) for name in "txyp"})
    pq.write_table(zeros, tmp_path / "z.parquet", compression="zstd")
    with pytest.raises(EventFormatError, match="max_events"):
        read_events(tmp_path / "z.parquet", limits=SMALL)


def test_parquet_pages_are_summed_whatever_the_footer_says(tmp_path: Path) -> None:
    zeros = pa.table({name: pa.array(np.zeros(200_000, np.int64)) for name in "txyp"})
    path = tmp_path / "z.parquet"
    pq.write_table(zeros, path, compression="zstd", use_dictionary=False)
    metadata = pq.ParquetFile(path).metadata
    check_pages(Source(path), metadata, [0, 1, 2, 3])
    enough = ReadLimits(max_expanded_bytes=4 * 200_000 * 8 + 4096)
    check_pages(Source(path, enough), metadata, [0, 1, 2, 3])
    with pytest.raises(EventFormatError, match="page before offset"):
        check_pages(Source(path, ReadLimits(max_expanded_bytes=4 * 200_000 * 8 - 1)), metadata, [0, 1, 2, 3])


@pytest.mark.parametrize(
    "text",
    [
        b"0.1 1 1 1\n" + b"9" * 3_000_000 + b" 1 1 1\n",
        b"1" * 100_000,
        b"0.1 1 1\n",
        b"t,x,y\n1,2,3\n",
        b"0.1 a 1 1\n",
        b"nan 1 1 1\n0.2 1 1 1\n",
        b"1e300 1 1 1\n0.5 1 1 1\n",
        b"0.1 1.5 1 1\n0.2 1 1 1\n",
        b"0.1 1 1 7\n",
        b"0.1 99999 1 1\n",
        b"# only\n# comments\n",
        b"t,t,x,y,p\n1,1,1,1,1\n",
        b"\x00\x01\x02\n",
    ],
)
def test_text_that_is_not_a_recording_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(text)
    with pytest.raises(EventFormatError, match=r"bad\.txt"):
        read_events(tmp_path / "bad.txt", limits=SMALL)


@pytest.mark.parametrize("make", ["external link", "soft link", "virtual", "external storage", "string", "huge"])
def test_hdf5_reads_nothing_outside_its_own_file(make: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("hdf5plugin")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["t"] = np.arange(10)
    (tmp_path / "raw").write_bytes(bytes(80))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("events")
        for name in "xyp":
            group[name] = np.zeros(10, np.uint8)
        if make == "external link":
            group["t"] = h5py.ExternalLink("other.h5", "/t")
        elif make == "soft link":
            group["t"] = h5py.SoftLink("/events/x")
        elif make == "virtual":
            layout = h5py.VirtualLayout((10,), np.int64)
            layout[:] = h5py.VirtualSource("other.h5", "t", (10,))
            group.create_virtual_dataset("t", layout)
        elif make == "external storage":
            group.create_dataset("t", (10,), np.int64, external=[("raw", 0, 80)])
        elif make == "string":
            group["t"] = "now"
        else:
            group.create_dataset("t", (10**12,), np.int64, chunks=(1000,))
    with pytest.raises(EventFormatError, match=r"a\.h5"):
        read_events(tmp_path / "a.h5", limits=SMALL)


def test_an_lz4_packet_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    honest = seeds.aedat4(seeds.simulated(2), "none")
    header = honest[: honest.index(struct.pack("<ii", 1, 5) + b"frame")]
    header = header.replace(struct.pack("<iiqI", 12, 0, -1, 4), struct.pack("<iiqI", 12, 1, -1, 4))
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(bytes(64 * 2**20))
    packet = sink.getvalue().to_pybytes()
    (tmp_path / "bomb.aedat4").write_bytes(header + struct.pack("<ii", 0, len(packet)) + packet)
    with pytest.raises(EventFormatError, match="once decompressed"):
        read_events(tmp_path / "bomb.aedat4", limits=SMALL)


def test_impossible_geometry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"% evt 2.0\n% geometry 99999x99999\n" + bytes(8))
    with pytest.raises(EventFormatError, match="99999"):
        read_events(tmp_path / "a.raw")
    (tmp_path / "b.raw").write_bytes(b"% evt 2.1\n" + bytes(8))
    with pytest.raises(EventFormatError, match=r"EVT 2\.0, EVT 3\.0"):
        read_events(tmp_path / "b.raw")


def test_what_is_not_a_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "empty.npy").touch()
    with pytest.raises(EventFormatError, match="empty"):
        read_events(tmp_path / "empty.npy")
    os.mkfifo(tmp_path / "pipe.raw")
    for path in (tmp_path / "absent.npy", tmp_path, tmp_path / "pipe.raw", "nul\0byte"):
        with pytest.raises(InputError, match="path"):
            read_events(path)
