"""A backend that does nothing: a shared library with the one function that tritonserver asks of a backend.

It stands in for every backend, so that core judges configurations without a GPU, without Python processes, and without
a model's own code or weights. It is written here byte by byte (ELF for x86-64, which is where the pip server runs),
since a host that serves has no compiler. The same in C: `void *TRITONBACKEND_ModelInstanceExecute() { return 0; }`
"""

from __future__ import annotations

import struct

_FUNCTION = b"TRITONBACKEND_ModelInstanceExecute"
_CODE = b"\x31\xc0\xc3"  # xor eax, eax; ret: a null pointer is success
_PAGE = 0x1000
_HEADER_BYTES, _SEGMENT_BYTES, _SYMBOL_BYTES = 64, 56, 24
_LOAD, _DYNAMIC, _STACK = 1, 2, 0x6474E551
_EXECUTE, _WRITE, _READ = 1, 2, 4
_HASH, _STRINGS, _SYMBOLS, _STRINGS_BYTES, _SYMBOL_SIZE = 4, 5, 6, 10, 11


def make_stand_in() -> bytes:
    """Return the library: code and symbols in the first page, what the loader writes to in the second."""
    names = b"\0" + _FUNCTION + b"\0"
    names_at = _HEADER_BYTES + 4 * _SEGMENT_BYTES
    symbols_at = -(-(names_at + len(names)) // 8) * 8
    hash_at = symbols_at + 2 * _SYMBOL_BYTES
    code_at = hash_at + 5 * 4
    symbols = bytes(_SYMBOL_BYTES) + struct.pack("<IBBHQQ", 1, 0x12, 0, 1, code_at, len(_CODE))  # global, a function
    table = struct.pack("<5I", 1, 2, 1, 0, 0)  # one bucket, two symbols; the bucket begins with the second
    dynamic = b"".join(
        struct.pack("<QQ", tag, value)
        for tag, value in (
            (_HASH, hash_at), (_STRINGS, names_at), (_SYMBOLS, symbols_at),
            (_STRINGS_BYTES, len(names)), (_SYMBOL_SIZE, _SYMBOL_BYTES), (0, 0),
        )
    )  # fmt: skip
    end = code_at + len(_CODE)
    segments = b"".join(
        struct.pack("<IIQQQQQQ", kind, rights, at, at, at, size, size, align)
        for kind, rights, at, size, align in (
            (_LOAD, _READ | _EXECUTE, 0, end, _PAGE),
            (_LOAD, _READ | _WRITE, _PAGE, len(dynamic), _PAGE),
            (_DYNAMIC, _READ | _WRITE, _PAGE, len(dynamic), 8),
            (_STACK, _READ | _WRITE, 0, 0, 16),  # without it the loader asks for a stack that can be executed
        )
    )
    # 64 bits, little-endian; a shared library for x86-64; segments behind the header, no sections
    kind = struct.pack("<HHIQQQI", 3, 62, 1, 0, _HEADER_BYTES, 0, 0)
    sizes = struct.pack("<6H", _HEADER_BYTES, _SEGMENT_BYTES, 4, 0, 0, 0)
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + kind + sizes
    first = (header + segments + names).ljust(symbols_at, b"\0") + symbols + table + _CODE
    return first.ljust(_PAGE, b"\0") + dynamic
