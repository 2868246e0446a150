"""The header of a JPEG file, read as strictly as a decoder needs that shall never know better than Pillow.

`read_jpeg` takes only what Pillow and the GPU's decoder read alike: baseline, 8 bit, grey or YCbCr in one scan, whole.
All else, whatever is odd or broken, is None, and somebody's who knows it better.
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

_APP0, _APP1, _APP2, _APP13, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xEF, 0xFE
_X_RESOLUTION, _RATIONAL = 0x011A, 5
_DHT, _DQT, _DRI, _SOF0, _SOS = 0xC4, 0xDB, 0xDD, 0xC0, 0xDA
_SPECTRUM = b"\x00\x3f\x00"  # all coefficients at once, as a baseline scan says
_MOST_CODES, _MOST_DC_BITS = 256, 11
# The first byte of each component's sampling, the brightness's first: 4:4:4, 4:2:2, 4:2:0, 4:4:0
_SAMPLINGS = ((0x11, 0x11, 0x11), (0x21, 0x11, 0x11), (0x22, 0x11, 0x11), (0x12, 0x11, 0x11), (0x11,))
# In the coded pixels 0xFF is followed by 0, or by the number of a restart.
_MARKER_BUT_RESTART = re.compile(rb"\xff[^\x00\xd0-\xd7]")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")


class Jpeg(NamedTuple):
    """A file for the GPU: its size in pixels, and where it ends, in bytes; more may follow, and means nothing."""

    width: int
    height: int
    end: int


class _Frame(NamedTuple):
    width: int
    height: int
    numbers: bytes
    samplings: tuple[int, ...]
    tables: frozenset[int]

    def count_units(self) -> int:
        """Return how many blocks of pixels are coded together each, which restarts are counted in."""
        across, down = self.samplings[0] >> 4, self.samplings[0] & 15
        return -(-self.width // (8 * across)) * -(-self.height // (8 * down))


def read_jpeg(data: bytes) -> Jpeg | None:
    """Return what the GPU needs to know of a file that Pillow certainly takes, and takes alike; else None."""
    try:
        return _read(data)
    except (IndexError, struct.error):  # it ends within its header
        return None


def _read(data: bytes) -> Jpeg | None:
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    header, place = _Header(), 2
    while True:
        mark, kind, length = struct.unpack_from(">BBH", data, place)
        segment = data[place + 4 : place + 2 + length]
        place += 2 + length
        if mark != 0xFF or length < 2 or place > len(data):
            return None
        if kind == _SOS:
            break
        if not header.take(kind, segment):
            return None
    frame = header.frame
    if frame is None or not header.fits(frame, segment):
        return None
    end = _find_end(data, place, frame.count_units(), header.interval)
    return Jpeg(frame.width, frame.height, end) if end else None


@dataclass(slots=True)
class _Header:
    """What the segments before the pixels say."""

    frame: _Frame | None = None
    interval: int = 0
    has_adobe: bool = False
    quantization: set[int] = field(default_factory=set)
    huffman: set[int] = field(default_factory=set)

    def take(self, kind: int, segment: bytes) -> bool:
        """Take in a segment, and say whether every decoder reads it alike."""
        if _APP0 <= kind <= _APP15 or kind == _COMMENT:
            self.has_adobe = self.has_adobe or kind == _APP14
            return _is_harmless(kind, segment)
        if kind in (_DQT, _DHT):
            found = _find_quantization(segment) if kind == _DQT else _find_huffman(segment)
            (self.quantization if kind == _DQT else self.huffman).update(found)
            return bool(found)
        if kind == _DRI:
            self.interval = int.from_bytes(segment, "big")
            return len(segment) == 2
        if kind != _SOF0 or self.frame is not None:
            return False
        self.frame = _read_frame(segment)
        return self.frame is not None

    def fits(self, frame: _Frame, scan: bytes) -> bool:
        """Say whether the scan is of all components of the frame, in its order, with tables that there are."""
        count = len(frame.numbers)
        if len(scan) != 4 + 2 * count or scan[0] != count or scan[1:-3:2] != frame.numbers or scan[-3:] != _SPECTRUM:
            return False
        if (count == 1 and self.has_adobe) or not frame.tables <= self.quantization:
            return False
        return all(table >> 4 in self.huffman and table & 15 | 16 in self.huffman for table in scan[2:-3:2])


def _is_harmless(kind: int, segment: bytes) -> bool:
    """Say whether what somebody's program wrote there neither changes the colours nor makes Pillow stumble."""
    if kind == _APP0 and segment.startswith(b"JFIF"):
        return len(segment) >= 7
    if kind == _APP1 and segment.startswith(b"Exif\0\0"):
        return _has_plain_resolution(segment[6:])
    if kind == _APP2 and segment.startswith((b"ICC_PROFILE\0", b"MPF\0")):  # with MPF more pictures follow
        return segment.startswith(b"ICC") and len(segment) >= 14
    if kind == _APP13 and segment.startswith(b"Photoshop 3.0\0"):
        return segment[-6:-2] != b"8BIM"
    if kind == _APP14:
        return segment.startswith(b"Adobe") and len(segment) >= 12 and segment[11] == 1  # YCbCr
    return True


def _has_plain_resolution(tiff: bytes) -> bool:
    """Say whether EXIF's resolution is one fraction, or none: Pillow reads it, and refuses a file with another."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return False
    (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, offset)
    entries = [struct.unpack_from(f"{order}HHI", tiff, offset + 2 + 12 * number) for number in range(count)]
    return all(entry[1:] == (_RATIONAL, 1) for entry in entries if entry[0] == _X_RESOLUTION)


def _read_frame(segment: bytes) -> _Frame | None:
    bits, height, width, count = struct.unpack_from(">BHHB", segment)
    if bits != 8 or not width or not height or len(segment) != 6 + 3 * count:
        return None
    samplings, numbers = tuple(segment[7::3]), segment[6::3]
    if samplings not in _SAMPLINGS or (count == 3 and numbers != b"\x01\x02\x03"):
        return None
    return _Frame(width, height, numbers, samplings, frozenset(segment[8::3]))


@functools.lru_cache(maxsize=256)
def _find_quantization(segment: bytes) -> frozenset[int]:
    """Return the numbers of its tables; none where one is of 16 bits or divides by 0."""
    tables = [segment[start : start + 65] for start in range(0, len(segment), 65)]
    if any(len(table) < 65 or table[0] > 3 or 0 in table[1:] for table in tables):
        return frozenset()
    return frozenset(table[0] for table in tables)


@functools.lru_cache(maxsize=256)
def _find_huffman(segment: bytes) -> frozenset[int]:
    """Return the numbers of its tables, 16 more for those of coefficients that change; none where one is wrong."""
    found, place = set(), 0
    while place < len(segment):
        number, counts = segment[place], segment[place + 1 : place + 17]
        symbols = segment[place + 17 : place + 17 + sum(counts)]
        place += 17 + sum(counts)
        if number not in (0x00, 0x01, 0x10, 0x11) or place > len(segment) or not 0 < sum(counts) <= _MOST_CODES:
            return frozenset()
        if not _are_codes(counts) or (number < 16 and max(symbols) > _MOST_DC_BITS):
            return frozenset()
        found.add(number)
    return frozenset(found)


def _are_codes(counts: bytes) -> bool:
    """Say whether there are that many codes of each length; the one of all ones is not used."""
    code = 0
    for length, count in enumerate(counts, start=1):
        code += count
        if code >= 1 << length and count:
            return False
        code <<= 1
    return True


def _find_end(data: bytes, start: int, units: int, interval: int) -> int:
    """Return where the file ends, 0 where the first marker behind its pixels is not its end, or restarts are amiss.

    Pillow refuses a file that stops without that marker, and reads on, and may refuse, behind any other.
    """
    if interval:
        found = _MARKER_BUT_RESTART.search(data, start)
        place = found.start() if found else -1
        restarts = b"".join(_RESTART.findall(data, start, max(place, start)))
        if restarts != bytes(0xD0 + number % 8 for number in range(-(-units // interval) - 1)):
            return 0
    else:
        place = _find_marker(data, start)
    return place + 2 if place >= 0 and data[place : place + 2] == b"\xff\xd9" else 0


def _find_marker(data: bytes, start: int) -> int:
    """Return where the first 0xFF is that no 0 follows, -1 where there is none; in half the time of a pattern's."""
    if len(data) - start < 2:
        return -1
    codes = np.frombuffer(data, np.uint8, offset=start)
    marks = codes[:-1] == 0xFF
    marks &= codes[1:] != 0
    place = int(marks.argmax())
    return start + place if marks[place] else -1
