"""What a file is, told by its first bytes, and its hash; where home folders and the cache are."""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import zipfile
from pathlib import Path

from generator.errors import SpecError

PLAN_MAGIC, RTX_MAGIC = b"ftrt", b"vtrt"
ONNX = "an ONNX file"

_TORCH, _OLD_TORCH = "a zip archive, as torch.save writes", "a pickle, as torch.save once wrote"
_SAFETENSORS = "a safetensors file"
# What files with these endings are.
CHECKPOINTS = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), (_TORCH, _OLD_TORCH)),
    ".safetensors": (_SAFETENSORS,),
}
_CHECKPOINT = "a checkpoint needs its architecture: give both, architecture and weights, or export it to ONNX"
_CONVERT = "convert it to ONNX with the tools of its framework"
_IMAGE = "give the model's file; images go to the client"
_PLAN = "give the graph that it was built from; plans are for inspect, classify-plan and detect-plan"
# offset, bytes there, what that is, what to do
_KINDS = (
    (0, PLAN_MAGIC, "a TensorRT plan", _PLAN),
    (0, RTX_MAGIC, "a plan of TensorRT-RTX", _PLAN),
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
_LONGEST_METADATA = 1 << 20  # of Ultralytics


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
    if find_wrapped_plan(path, start) is not None:
        return "an .engine file of Ultralytics, which holds a plan", _PLAN
    return (ONNX, "") if _looks_like_onnx(start) else ("", "")


def find_wrapped_plan(path: Path, start: bytes) -> int | None:
    """Return where a plan begins behind Ultralytics' metadata: a length in four bytes, then that much JSON."""
    if len(start) < 5 or start[4:5] != b"{":
        return None
    length: int = struct.unpack_from("<I", start)[0]
    if not 2 <= length <= _LONGEST_METADATA:
        return None
    with path.open("rb") as stream:
        stream.seek(4 + length)
        return 4 + length if stream.read(4) == PLAN_MAGIC else None


def _looks_like_onnx(start: bytes) -> bool:
    """Say whether this is a ModelProto: ir_version first, then the producer's name, the opsets or the graph."""
    return len(start) > 2 and start[0] == 0x08 and 3 <= start[1] <= 30 and start[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42)


def _is_torch(path: Path, start: bytes) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError):
        names = []  # cut off or damaged: the list of names stands at the end
    return b"/data.pkl" in start or any(name.endswith("/data.pkl") for name in names)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def hash_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def expand_home(path: Path) -> Path:
    """Return the path with the home folder that `~` or `~user` in front of it means.

    Raises:
        SpecError: There is no such user, or this user's home is not known.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        user = path.parts[0].removeprefix("~")
        what = f"there is no user {user!r}" if user else "the home folder of this user is not known"
        hint = f"give the path from / on; a folder of that name here is ./~{user}" if user else "set HOME"
        raise SpecError(f"{path} cannot be found: {what}", hint=hint) from error


def find_cache() -> Path:
    """Return where what can be made again is kept: `trtgen` in $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # a relative one is to be ignored, says the XDG specification
    root = Path(base) if base and Path(base).is_absolute() else expand_home(Path("~/.cache"))
    return root / "trtgen"


def write_temporary(path: Path, data: bytes) -> Path:
    """Write `data` to a new file in the folder of `path`, synced to the disk, for the caller to rename; OSError."""
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(number, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)  # mkstemp's 600 would keep the container's user out
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
