"""Classify images with a model served by Triton.

    python clients/classify.py img.jpg
    python clients/classify.py --protocol http --json --top 3 holiday/ other.png
    curl -s https://example.org/cat.jpg | python clients/classify.py -

Exit code: 0 = every image was classified, 1 = not every one (standard error says why), 2 = wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import json
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from triton_images import ClientError, Connection, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from triton_images import Score

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
DEFAULT_URLS = {"grpc": "localhost:8001", "http": "localhost:8000"}
UNWRITABLE = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
REQUEST_BYTES = 64 * 2**20  # a request is sent when its images exceed this; gRPC cannot carry 2 GiB
LARGEST_NUMBER = 2**31 - 1  # Triton counts classes in 32 bits, and gRPC knows no later deadline than some 200 years
ENOUGH = 0.99  # classes are printed until their probabilities make up this much


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    code = 1
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # after `>&-`
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    try:
        try:
            options = parse(arguments)
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


def run(options: argparse.Namespace) -> int:
    """Classify everything that was asked for, in order, and print each result as soon as it is there."""
    names, without = find_images(options.images)
    if not names:
        return 1
    done = 0
    with Connection(options.protocol, options.url or DEFAULT_URLS[options.protocol], options.timeout) as server:
        model = server.find_model(options.model)
        size = min(options.batch_size or sys.maxsize, max(model.max_batch_size, 1))
        for batch in make_batches(names, size):
            try:
                answers = server.classify_each(model, [data for _, data in batch], options.top)
            except ClientError as error:
                raise ClientError(f"{error} ({done} of {len(names)} images classified before)", error.hint) from None
            for (name, _), answer in zip(batch, answers, strict=True):
                if isinstance(answer, RefusedError):
                    complain(f"{name}: {answer}", answer.hint)
                else:
                    print_result(name, answer, as_json=options.json)
                    done += 1
    return 1 if without or done < len(names) else 0


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


def print_result(name: str, scores: Sequence[Score], *, as_json: bool) -> None:
    """Print one image's classes, best first: for programs all of them, for people those that matter."""
    if as_json:
        print(json.dumps({"file": name, "classes": [asdict(score) for score in scores]}, allow_nan=False), flush=True)
        return
    print(name)
    for score in drop_unlikely(scores):
        print(f"  {score.score:.4f}  {score.label or f'class {score.index}'}", flush=True)


def drop_unlikely(scores: Sequence[Score]) -> Sequence[Score]:
    """Drop the classes behind those that make up 0.99 of the probability.

    Scores that cannot belong to one distribution stay as they are: logits, and the independent probabilities of a
    sigmoid where they exceed 1 together. Where they do not, what is dropped is below 0.01 each.
    """
    values = [score.score for score in scores]
    if min(values, default=0) < 0 or sum(values) > 1.001:  # probabilities computed in FP16 do not sum to 1 exactly
        return scores
    sums = itertools.accumulate(values)
    return scores[: next((count for count, total in enumerate(sums, 1) if total >= ENOUGH), len(scores))]


def complain(message: str, hint: str) -> None:
    """Say what is wrong and what to do next."""
    print(f"error: {message}\nhint: {hint}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Classify images with a model served by Triton.")
    parser.add_argument(
        "images", nargs="+", type=text, metavar="IMAGE", help="a file, a folder, or - for standard input"
    )
    parser.add_argument("--protocol", choices=sorted(DEFAULT_URLS), default="grpc", help="default: grpc")
    parser.add_argument("--url", type=address, metavar="HOST:PORT", help="default: localhost:8001, with http :8000")
    parser.add_argument("--model", type=text, metavar="NAME", help="default: the one ensemble that is served")
    parser.add_argument("--top", type=positive(int), default=5, metavar="K", help="most classes per image; default: 5")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image and line")
    parser.add_argument("--batch-size", type=positive(int), metavar="N", help="default, and limit: the model's")
    parser.add_argument(
        "--timeout", type=positive(float), default=60.0, metavar="S", help="seconds per request; default: 60"
    )
    return parser.parse_args(arguments)


def text(argument: str) -> str:
    """Refuse an empty argument, which as a path would be the current folder."""
    if not argument:
        raise argparse.ArgumentTypeError("the argument is empty")
    return argument


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
    match = re.fullmatch(r"[^/]+:(\d+)(/.*)?", text)
    if not match or not 0 < int(match[1]) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return text


if __name__ == "__main__":
    sys.exit(main())
