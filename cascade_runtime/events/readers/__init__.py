"""Reading and writing recordings: `read_events(path)`, `read_event_bytes(data)`, `write_events(path, events)`.

    read.py         finds the format by content and suffix, turns every failure into an EventFormatError
    source.py       ReadLimits, and the open file with its bounds
    columns.py      columns as files hold them -> Events: sensor size, units, polarity, order, limits
    numpy_files.py  .npy and .npz (EventGPT, EventBench, plain), with object_pickle.py for their pickles
    arrow_files.py  Arrow IPC and Parquet, with parquet_pages.py for its sizes
    text.py    RPG text, CSV        forty_bit.py  N-Caltech101 / N-MNIST .bin
    raw_header.py   Prophesee headers, then    evt2.py    and evt3.py
    aedat4.py       iniVation AEDAT4           rosbag.py  ROS 1 bags (EventPacket evt3, dvs_msgs/EventArray)
    eventcv_files.py  AEDAT2 and DAT through eventcv ([events])      dsec_hdf5.py  DSEC / MVSEC HDF5 ([dsec])
    write.py        .npz, .arrow, .parquet, .csv

Whatever the format, `t` begins at 0 and `t_offset_us` is the file's own time of the first event; only files that
`write_events` made carry both and get them back unchanged.
"""

from __future__ import annotations

from cascade_runtime.events.readers.read import FORMATS, SENT_FORMATS, format_of, read_event_bytes, read_events
from cascade_runtime.events.readers.source import ReadLimits
from cascade_runtime.events.readers.write import write_events

__all__ = ["FORMATS", "SENT_FORMATS", "ReadLimits", "format_of", "read_event_bytes", "read_events", "write_events"]
