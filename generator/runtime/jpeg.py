"""The header of a JPEG file, read as strictly as a decoder needs that shall never know better than Pillow.

`read_jpeg` takes only what Pillow and the GPU's decoder read alike: baseline, 8 bit, grey or YCbCr in one scan, whole.
All else, whatever is odd or broken, is None, and somebody's who knows it better.
"""

from __future__ import annotations

import functools
import re
import struct
from typing import NamedTuple

_APP0, _APP2, _APP13, _APP14, _APP15, _COMMENT = 0xE0, 0xE2, 0xED, 0xEE, 0xEF, 0xFE
_DHT, _DQT, _DRI, _SOF0, _SOS = 0xC4, 0xDB, 0xDD, 0xC0, 0xDA
_SPECTRUM = b"\x00\x3f\x00"  # all coefficients at once, as a baseline scan says
_MOST_CODES, _MOST_DC_BITS = 256, 11
# The first byte of each component's sampling, the brightness's first: 4:4:4, 4:2:2, 4:2:0, 4:4:0
_SAMPLINGS = ((0x11, 0x11, 0x11), (0x21, 0x11, 0x11), (0x22, 0x11, 0x11), (0x12, 0x11, 0x11), (0x11,))
# In the coded pixels 0xFF is followed by 0, or by the number of a restart.
_MARKER = re.compile(rb"\xff[^\x00]")
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
    place, interval, adobe = 2, 0, False
    frame: _Frame | None = None
    quantization: set[int] = set()
    huffman: set[int] = set()
    while True:
        mark, kind, length = struct.unpack_from(">BBH", data, place)
        segment = data[place + 4 : place + 2 + length]
        place += 2 + length
        if mark != 0xFF or length < 2 or place > len(data):
            return None
        if _APP0 <= kind <= _APP15 or kind == _COMMENT:
            if not _is_harmless(kind, segment):
                return None
            adobe = adobe or kind == _APP14
        elif kind in (_DQT, _DHT):
            found = (_find_quantization if kind == _DQT else _find_huffman)(segment)
            if not found:
                return None
            (quantization if kind == _DQT else huffman).update(found)
        elif kind == _DRI and length == 4:
            (interval,) = struct.unpack(">H", segment)
        elif kind == _SOF0 and frame is None:
            frame = _read_frame(segment)
            if frame is None:
                return None
        elif kind == _SOS and frame is not None:
            break
        else:
            return None
    grey = len(frame.samplings) == 1
    if (grey and adobe) or not frame.tables <= quantization or not _is_scan_of_all(segment, frame, huffman):
        return None
    end = _find_end(data, place, frame.count_units(), interval)
    return Jpeg(frame.width, frame.height, end) if end else None


def _is_harmless(kind: int, segment: bytes) -> bool:
    """Say whether what somebody's program wrote there neither changes the colours nor makes Pillow stumble."""
    if kind == _APP0 and segment.startswith(b"JFIF"):
        return len(segment) >= 7
    if kind == _APP2 and segment.startswith(b"ICC_PROFILE\0"):
        return len(segment) >= 14
    if kind == _APP2 and segment.startswith(b"MPF\0"):  # more pictures follow, as Pillow reads it
        return False
    if kind == _APP13 and segment.startswith(b"Photoshop 3.0\0"):
        return segment[-6:-2] != b"8BIM"
    if kind == _APP14:
        return segment.startswith(b"Adobe") and len(segment) >= 12 and segment[11] == 1  # YCbCr
    return True


def _read_frame(segment: bytes) -> _Frame | None:
    bits, height, width, count = struct.unpack_from(">BHHB", segment)
    if bits != 8 or not width or not height or len(segment) != 6 + 3 * count:
        return None
    samplings, numbers = tuple(segment[7::3]), segment[6::3]
    if samplings not in _SAMPLINGS or (count == 3 and numbers != b"\x01\x02\x03"):
        return None
    return _Frame(width, height, numbers, samplings, frozenset(segment[8::3]))


def _is_scan_of_all(segment: bytes, frame: _Frame, huffman: set[int]) -> bool:
    count = len(frame.samplings)
    if len(segment) != 4 + 2 * count or segment[0] != count or segment[-3:] != _SPECTRUM:
        return False
    return segment[1:-3:2] == frame.numbers and all(
        table >> 4 in huffman and table & 15 | 16 in huffman for table in segment[2:-3:2]
    )


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
    found = (_MARKER_BUT_RESTART if interval else _MARKER).search(data, start)
    if found is None or found[0] != b"\xff\xd9":
        return 0
    if interval:
        restarts = b"".join(_RESTART.findall(data, start, found.start()))
        if restarts != bytes(0xD0 + number % 8 for number in range(-(-units // interval) - 1)):
            return 0
    return found.end()
