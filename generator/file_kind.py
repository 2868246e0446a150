"""What a file is that was given in place of another: told by its first bytes, for error messages."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CHECKPOINTS", "name_kind"]

# What is said of the files that each ending stands for.
CHECKPOINTS = {".pt": "a zip archive, as torch.save writes", ".safetensors": "a safetensors file"}

_CHECKPOINT = "a checkpoint needs its architecture: --architecture NAME --weights FILE, or export it to ONNX"
_CONVERT = "convert it to ONNX with the tools of its framework"
_IMAGE = "give the model's file; images go to the client"
# offset, bytes there, what that is, what to do
_KINDS = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for", "git lfs pull fetches it"),
    (0, b"\xff\xd8\xff", "a JPEG image", _IMAGE),
    (0, b"\x89PNG", "a PNG image", _IMAGE),
    (0, b"PK\x03\x04", CHECKPOINTS[".pt"], _CHECKPOINT),
    (0, b"\x80\x02", "a pickle, as torch.save once wrote", _CHECKPOINT),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes", _CONVERT),
    (4, b"TFL3", "a TensorFlow Lite model", _CONVERT),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it: gunzip, or tar xzf"),
    (0, b"<!doctype html", "a web page", "download the file again: the address answered with a page"),
    (0, b"<html", "a web page", "download the file again: the address answered with a page"),
    (0, b"<?xml", "an XML file, as OpenVINO writes", _CONVERT),
)
_LONGEST_HEADER = 100 << 20  # of safetensors, its own limit


def name_kind(path: Path) -> tuple[str, str]:
    """Return what the file is and what to do instead; both are empty for kinds that are not known here."""
    with path.open("rb") as stream:
        start = stream.read(64)
    for offset, magic, kind, hint in _KINDS:
        if start[offset : offset + len(magic)].lower() == magic.lower():
            return kind, hint
    if len(start) > 9 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < _LONGEST_HEADER:
        return CHECKPOINTS[".safetensors"], _CHECKPOINT
    return "", ""
