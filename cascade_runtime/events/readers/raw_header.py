"""The header of Prophesee `.raw` files: lines beginning with "% ", then binary words.

% evt 3.0 | % format EVT3;height=720;width=1280     which encoding
% geometry 1280x720                                 sensor; old recorders leave it out
% plugin_name hal_plugin_gen41_evk3                 then the camera's generation suggests it
% end                                               optional
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cascade_runtime.events.readers.columns import COMMON_SENSORS
from cascade_runtime.events.readers.source import Source

_MAX_HEADER_BYTES = 65_536


@dataclass(frozen=True, kw_only=True)
class RawHeader:
    """encoding: "2.0", "3.0", ... or "" where unstated; sensor: (width, height) if stated; body: offset of the
    words.
    """

    encoding: str
    sensor: tuple[int, int] | None
    guess: int
    """Index into COMMON_SENSORS of the smallest sensor the camera's generation suggests."""
    body: int


def read_raw_header(source: Source) -> RawHeader:
    """Raises EventFormatError where the header never ends or states an impossible sensor."""
    data, at, lines = source.data, 0, []
    while data[at : at + 1] == b"%" and data[at + 1 : at + 2] in (b" ", b"\n", b"\r", b""):
        end = data.find(b"\n", at, _MAX_HEADER_BYTES)
        if end < 0:
            raise source.error(f"offset {at}", f"a header line that does not end within {_MAX_HEADER_BYTES} bytes")
        lines.append(data[at + 1 : end].decode("latin-1").strip())
        at = end + 1
        if lines[-1] == "end":
            break
    text = "\n".join(lines)
    encoding = re.search(r"^evt (\d\.\d)", text, re.M) or re.search(r"^format EVT(\d(?:\.?\d)?)", text, re.M)
    version = encoding.group(1) if encoding else ""
    if len(version) < 3 and version:
        version = f"{version[0]}.{version[1:] or 0}"
    size = re.search(r"^geometry (\d{1,6})x(\d{1,6})", text, re.M)
    sensor = (int(size.group(1)), int(size.group(2))) if size else None
    if not sensor:
        sides = [re.search(rf"^format .*\b{side}=(\d{{1,6}})", text, re.M) for side in ("width", "height")]
        sensor = (int(sides[0].group(1)), int(sides[1].group(1))) if sides[0] and sides[1] else None
    guess = COMMON_SENSORS.index((1280, 720) if re.search(r"gen4|imx636|evk[34]", text, re.I) else (640, 480))
    if sensor and not (0 < sensor[0] <= 4096 and 0 < sensor[1] <= 4096):
        raise source.error("header geometry", f"{sensor[0]}x{sensor[1]}; at most 4096x4096")
    return RawHeader(encoding=version, sensor=sensor, guess=guess, body=at)
