"""The header of a JPEG file, read as strictly as a decoder needs that shall never know better than Pillow.

`read_jpeg` takes only what Pillow and the GPU's decoder read alike: baseline, 8 bit, grey or YCbCr in one scan, whole.
All else, whatever is odd or broken, is None, and somebody's who knows it better.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

_APP0, _APP1, _APP2, _APP13, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xEF, 0xFE
_NOTES = frozenset((*range(_APP0, _APP15 + 1), _COMMENT))
_X_RESOLUTION, _RATIONAL = 0x011A, 5
_DHT, _DQT, _DRI, _SOF0, _SOS = 0xC4, 0xDB, 0xDD, 0xC0, 0xDA
_SPECTRUM = b"\x00\x3f\x00"  # all coefficients at once, as a baseline scan says
_MOST_CODES, _MOST_DC_BITS = 256, 11
# The first byte of each component's sampling, the brightness's first: 4:4:4, 4:2:2, 4:2:0, 4:4:0
_SAMPLINGS = ((0x11, 0x11, 0x11), (0x21, 0x11, 0x11), (0x22, 0x11, 0x11), (0x12, 0x11, 0x11), (0x11,))
_SEGMENT, _SIZE = struct.Struct(">BBH"), struct.Struct(">HH")
_FRAME_MARK, _SCAN_MARK, _END_MARK = b"\xff\xc0\x00", b"\xff\xda\x00", b"\xff\xd9"  # the first two are short
_USUAL_START = b"\xff\xd8\xff\xe0\x00\x10JFIF"  # a harmless segment of 18 bytes
_USUAL_HEADER = 1024  # bytes from the first table to the pixels; with four tables of codes it is some 620
# In the coded pixels 0xFF is followed by 0, or by the number of a restart.
_RESTARTS = bytes(range(0xD0, 0xD8))
_BYTE = np.dtype(np.uint8)
_MARK = np.array(0xFF, _BYTE)  # an int would be converted with each file, for a microsecond


class Jpeg(NamedTuple):
    """A file for the GPU: its size in pixels, and where it ends, in bytes; more may follow, and means nothing."""

    width: int
    height: int
    end: int


class _Frame(NamedTuple):
    numbers: bytes
    samplings: tuple[int, ...]
    tables: frozenset[int]


class _Scan(NamedTuple):
    """What is to be known of the pixels; the places are bytes behind the first table."""

    size_at: int
    start: int
    sampling: int
    interval: int

    def count_restarts(self, width: int, height: int) -> int:
        """Return how many there are among the blocks of pixels, some of which are coded together each."""
        units = -(-width // (8 * (self.sampling >> 4))) * -(-height // (8 * (self.sampling & 15)))
        return -(-units // self.interval) - 1


def read_jpeg(data: bytes) -> Jpeg | None:
    """Return what the GPU needs to know of a file that Pillow certainly takes, and takes alike; else None."""
    try:
        return _read(data)
    except (IndexError, struct.error):  # it ends within its header
        return None


def _read(data: bytes) -> Jpeg | None:
    if data.startswith(_USUAL_START):
        place = 20
    elif data.startswith(b"\xff\xd8\xff"):
        place = 2
    else:
        return None
    has_adobe = False
    while (kind := data[place + 1]) in _NOTES:
        mark, _, length = _SEGMENT.unpack_from(data, place)
        start, place = place + 4, place + 2 + length
        if mark != 0xFF or length < 2 or place > len(data) or not _is_harmless(kind, data[start:place]):
            return None
        has_adobe = has_adobe or kind == _APP14
    scan = _recall_scan(data, place, has_adobe) or _read_scan(data, place, has_adobe)
    if scan is None:
        return None
    height, width = _SIZE.unpack_from(data, place + scan.size_at)
    if not width or not height:
        return None
    end = _find_end(data, place + scan.start, scan.count_restarts(width, height) if scan.interval else 0)
    return Jpeg(width, height, end) if end else None


def _recall_scan(data: bytes, first: int, has_adobe: bool) -> _Scan | None:
    """Return what `_read_scan` does where a file with this header, but for its size, was read before: that is fast.

    None says nothing of the file: what looks like a marker may be part of a table.
    """
    frame = data.find(_FRAME_MARK, first, first + _USUAL_HEADER)
    scan = data.find(_SCAN_MARK, frame, first + _USUAL_HEADER)
    if frame < 0 or scan < 0:
        return None
    return _read_known(data[first : frame + 5], data[frame + 9 : scan + 2 + data[scan + 3]], has_adobe)


@functools.lru_cache(maxsize=256)
def _read_known(before: bytes, behind: bytes, has_adobe: bool) -> _Scan | None:
    """Read the header of which these are the parts before and behind the size; None also where it is not the size."""
    try:
        scan = _read_scan(before + bytes(4) + behind, 0, has_adobe)
    except (IndexError, struct.error):
        return None
    return scan if scan and scan.size_at == len(before) else None


def _read_scan(data: bytes, first: int, has_adobe: bool) -> _Scan | None:
    """Return what the segments from the first table on say; None where not every decoder reads them alike."""
    header, place, size_at = _Header(has_adobe=has_adobe), first, 0
    while True:
        mark, kind, length = _SEGMENT.unpack_from(data, place)
        start, place = place + 4, place + 2 + length
        segment = data[start:place]
        if mark != 0xFF or length < 2 or place > len(data):
            return None
        if kind == _SOS:
            break
        if not header.take(kind, segment):
            return None
        if kind == _SOF0:
            size_at = start + 1 - first
    frame = header.frame
    if frame is None or not header.fits(frame, segment):
        return None
    return _Scan(size_at, place - first, frame.samplings[0], header.interval)


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
        if kind in _NOTES:
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
    bits, _, _, count = struct.unpack_from(">BHHB", segment)
    if bits != 8 or len(segment) != 6 + 3 * count:
        return None
    samplings, numbers = tuple(segment[7::3]), segment[6::3]
    if samplings not in _SAMPLINGS or (count == 3 and numbers != b"\x01\x02\x03"):
        return None
    return _Frame(numbers, samplings, frozenset(segment[8::3]))


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


def _find_end(data: bytes, start: int, restarts: int) -> int:
    """Return where the file ends, 0 where the first marker behind its pixels is not its end, or restarts are amiss.

    Pillow refuses a file that stops without that marker, and reads on, and may refuse, behind any other.
    """
    if len(data) - start < 2:
        return 0
    codes = np.frombuffer(data, _BYTE, -1, start)
    marks = (codes[:-1] == _MARK).view(_BYTE)
    np.minimum(marks, codes[1:], marks)  # 1 where 0xFF is followed by anything but 0
    if restarts:
        places = np.flatnonzero(marks.view(np.bool_))[: restarts + 1]  # in a tenth of the time of bytes
        if len(places) <= restarts:  # of a wrong size there may be millions
            return 0
        if codes[places[:-1] + 1].tobytes() != (_RESTARTS * (restarts // 8 + 1))[:restarts]:
            return 0
        place = start + int(places[-1])
    else:
        place = start + int(marks.argmax())
    return place + 2 if data.startswith(_END_MARK, place) else 0
