"""What the command lines share: their options, reading files in batches, errors in plain words."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from triton_images import ClientError, Connection, RefusedError, Tls, is_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from triton_images import Model

_T = TypeVar("_T")

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
DEFAULT_URLS = {"grpc": "localhost:8001", "http": "localhost:8000"}
UNWRITABLE = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
REQUEST_BYTES = 64 * 2**20  # a request is sent when its images exceed this; gRPC cannot carry 2 GiB
LARGEST_NUMBER = 2**31 - 1  # Triton counts classes in 32 bits, and gRPC knows no later deadline than some 200 years


def run_command(parse: Callable[[], argparse.Namespace], run: Callable[[argparse.Namespace], int]) -> int:
    """Run a command line and return its exit code; an error is one sentence, a reader that has left is none."""
    code = 1
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # after `>&-`
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    try:
        try:
            options = parse()
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a file's name can be any bytes
            code = run(options)
        except ClientError as error:
            complain(str(error), error.hint)
        finally:  # Python itself does it too late for an error
            sys.stdout.flush()
            sys.stderr.flush()
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        with contextlib.suppress(OSError):
            if not isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
                complain(f"the output cannot be written: {error.strerror}", "free disk space where it goes")
        for stream in (sys.stdout, sys.stderr):  # or Python tries again as it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 1
    return code


def make_parser(
    description: str, add_server: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.ArgumentParser:
    """Return a parser with the options of every command that is given images; `add_server` adds those of the server."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "images", nargs="+", type=text, metavar="IMAGE", help="a file, a folder, or - for standard input"
    )
    (add_server or add_server_options)(parser)
    parser.add_argument("--model", type=text, metavar="NAME", help="default: the one ensemble that is served")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image and line")
    parser.add_argument("--batch-size", type=positive(int), metavar="N", help="default, and limit: the model's")
    return parser


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the server is; `connect` reads them."""
    parser.add_argument("--protocol", choices=sorted(DEFAULT_URLS), default="grpc", help="default: grpc")
    parser.add_argument("--url", type=address, metavar="HOST:PORT", help="default: localhost:8001, with http :8000")
    add_request_options(parser)


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every request, whichever server it goes to; `read_security` reads those of them."""
    parser.add_argument(
        "--timeout", type=positive(float), default=60.0, metavar="S", help="seconds per request; default: 60"
    )
    parser.add_argument("--tls", action="store_true", help="an encrypted connection; Triton's own HTTP has none")
    parser.add_argument(
        "--ca", type=text, metavar="FILE", help="who signed the server's certificate; default: whom the system trusts"
    )
    parser.add_argument("--certificate", type=text, metavar="FILE", help="the client's own certificate, with --key")
    parser.add_argument("--key", type=text, metavar="FILE", help="the key of --certificate")
    parser.add_argument(
        "--header",
        type=header,
        action="append",
        metavar="'NAME: VALUE'",
        help="sent with every request, such as the key of restricted APIs; @FILE as VALUE reads it from a file",
    )


def connect(options: argparse.Namespace) -> Connection:
    """Return the connection that the options ask for.

    Raises:
        ClientError: They contradict each other, or a file cannot be read.
    """
    tls, headers = read_security(options)
    url = options.url or DEFAULT_URLS[options.protocol]
    return Connection(options.protocol, url, options.timeout, tls=tls, headers=headers)


def read_security(options: argparse.Namespace) -> tuple[Tls | None, dict[str, str]]:
    """Return what encryption needs, None without, and the headers.

    Raises:
        ClientError: The options contradict each other, or a file cannot be read.
    """
    files = (options.ca, options.certificate, options.key)
    if any(files) and not options.tls:
        raise ClientError("--ca, --certificate and --key go with --tls", "add --tls")
    if (options.certificate is None) != (options.key is None):
        raise ClientError("--certificate and --key go together", "give both")
    headers = {
        name: read_text(value[1:]).strip() if value.startswith("@") else value for name, value in options.header or ()
    }
    return Tls(*files) if options.tls else None, headers


def find_images(arguments: Iterable[str]) -> tuple[list[str], int]:
    """Put the images of each folder (by suffix, sorted) in its place; also count the arguments that have none."""
    names: list[str] = []
    without = 0
    for argument in arguments:
        try:
            if argument == "-" or not Path(argument).is_dir():
                names.append(argument)
                continue
            files = [file for file in Path(argument).rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
        except OSError as error:
            without += 1
            complain(f"{argument}: {error.strerror or error}", "check the path and its permissions")
            continue
        if not files:
            without += 1
            complain(f"{argument}: no image in this folder", f"looked for {' '.join(sorted(SUFFIXES))} in all of it")
        names += sorted(map(str, files))
    return names, without


def make_batches(names: Iterable[str], size: int) -> Iterator[list[tuple[str, bytes]]]:
    """Read the files into requests of at most `size` images; name the ones that cannot be read."""
    batch: list[tuple[str, bytes]] = []
    for name in names:
        try:
            data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        except OSError as error:
            complain(f"{name}: {error.strerror or error}", "check the path and its permissions")
            continue
        if not data:
            complain(f"{name}: empty", "give an encoded image, such as JPEG or PNG")
            continue
        batch.append((name, data))
        if len(batch) == size or sum(len(data) for _, data in batch) > REQUEST_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def ask_in_batches(
    ask: Callable[[Sequence[bytes]], list[_T | RefusedError]],
    names: Sequence[str],
    model: Model,
    batch_size: int | None,
    done: str,
) -> Iterator[tuple[str, bytes, _T]]:
    """Yield name, file and answer of each image as soon as it is there, in order; name the images that have none.

    An error that ends it all says how many images were `done` before.
    """
    count = 0
    size = min(batch_size or sys.maxsize, max(model.max_batch_size, 1))
    for batch in make_batches(names, size):
        try:
            answers = ask([data for _, data in batch])
        except ClientError as error:
            raise ClientError(f"{error} ({count} of {len(names)} images {done} before)", error.hint) from None
        for (name, data), answer in zip(batch, answers, strict=True):
            if isinstance(answer, RefusedError):
                complain(f"{name}: {answer}", answer.hint)
            else:
                yield name, data, answer
                count += 1


def read_text(path: str) -> str:
    """Return a file's text.

    Raises:
        ClientError: It cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise ClientError(f"{path}: {error.strerror or error}", "check the path and its permissions") from None
    except UnicodeDecodeError as error:
        raise ClientError(f"{path} is not a text file: {error}", "give a file in UTF-8") from None


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        ClientError: It cannot be written.
    """
    path = path.resolve()  # what a link points to is replaced, not the link
    partial = path.with_name(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # such as /dev/stdout
            path.write_bytes(data)
            return
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        why = f"{path.parent} is a file" if isinstance(error, FileExistsError) else error.strerror or error
        hint = "check the path and its permissions, or free disk space"
        raise ClientError(f"{path} cannot be written: {why}", hint) from None


def complain(message: str, hint: str) -> None:
    """Say what is wrong and what to do next."""
    print(f"error: {message}\nhint: {hint}", file=sys.stderr, flush=True)


def text(argument: str) -> str:
    """Refuse an empty argument, which as a path would be the current folder."""
    if not argument:
        raise argparse.ArgumentTypeError("the argument is empty")
    return argument


def header(argument: str) -> tuple[str, str]:
    """Return name and value of a header."""
    name, colon, value = argument.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or not value.strip():
        raise argparse.ArgumentTypeError(f"{argument!r} is not 'NAME: VALUE'")
    return name, value.strip()


def positive(kind: type[float]) -> Callable[[str], float]:
    """Make an argument type that refuses zero, negative values, NaN and what is too large."""

    def convert(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        if value > LARGEST_NUMBER:
            raise argparse.ArgumentTypeError(f"{text} is above {LARGEST_NUMBER}")
        return value

    convert.__name__ = f"positive {kind.__name__}"  # argparse names it in its message
    return convert


def address(text: str) -> str:
    """Refuse what Triton's clients would misread: a scheme, or no port."""
    if not is_address(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return text
