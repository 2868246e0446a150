"""What a file is that was given in place of another: told by its first bytes, for error messages."""

from __future__ import annotations

import struct
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CHECKPOINTS", "name_kind"]

_TORCH, _OLD_TORCH = "a zip archive, as torch.save writes", "a pickle, as torch.save once wrote"
_SAFETENSORS = "a safetensors file"
# What files with these endings are.
CHECKPOINTS = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), (_TORCH, _OLD_TORCH)),
    ".safetensors": (_SAFETENSORS,),
}
_CHECKPOINT = "a checkpoint needs its architecture: --architecture NAME --weights FILE, or export it to ONNX"
_CONVERT = "convert it to ONNX with the tools of its framework"
_IMAGE = "give the model's file; images go to the client"
# offset, bytes there, what that is, what to do
_KINDS = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for", "git lfs pull fetches it"),
    (0, b"\xff\xd8\xff", "a JPEG image", _IMAGE),
    (0, b"\x89PNG", "a PNG image", _IMAGE),
    (0, b"PK\x03\x04", "a zip archive", "unpack it"),
    (0, b"\x80\x02", _OLD_TORCH, _CHECKPOINT),
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
        start = stream.read(512)
    if start.startswith(b"PK") and _is_torch(path, start):
        return _TORCH, _CHECKPOINT
    for offset, magic, kind, hint in _KINDS:
        if start[offset : offset + len(magic)].lower() == magic.lower():
            return kind, hint
    if len(start) > 9 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < _LONGEST_HEADER:
        return _SAFETENSORS, _CHECKPOINT
    return "", ""


def _is_torch(path: Path, start: bytes) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError):
        names = []  # cut off or damaged: the list of names stands at the end
    return b"/data.pkl" in start or any(name.endswith("/data.pkl") for name in names)
