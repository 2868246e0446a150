"""JPEGs decoded, resized and cropped on the GPU: are they Pillow's pixels, and how fast is the bare chain?

    python -m benchmarks.gpu_images --out gpu-images.json

    levels   every kind of file with every recipe of the GPU's: levels from Pillow, and what went to the GPU
    cuts     a photograph that ends at each of many places: refused where Pillow refuses it, in its words
    fuzz     20,000 mutated files among good ones: no crash, no neighbour changed, no picture where Pillow refuses
    steps    where the time of a batch goes: routing, decode, as_images, resize, crop, waiting, copy to the host
    speed    images per second and CPU time per image, by batch, processes and size: the bare chain of decode,
             resize and crop that a server is compared with

Each runs in a process of its own. It ends with 1 where a file's pixels are not Pillow's (`are_alike`), a picture is
there that Pillow refuses, or a neighbour changed. Needs a GPU with a JPEG engine and the extra gpu-decode.
"""

# ruff: noqa: S311, SLF001 - chance is meant to come again, and steps are looked into

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import multiprocessing
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.machine import describe_machine
from generator.gpu import hold_context, load_driver
from generator.images.served_pixels import are_alike, load_step
from generator.runtime.cpu_images import CpuImages
from generator.runtime.device import Device
from generator.runtime.gpu_array import to_host
from generator.runtime.gpu_images import GpuImages
from generator.spec.recipe import IMAGENET, RECIPES, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

ASSETS = Path(__file__).resolve().parent.parent / "generator" / "assets"
LETTERBOX = {**IMAGENET.model_dump(), "fit": "letterbox", "fill": (114, 114, 114)}
CHECKS = {
    "imagenet": IMAGENET,
    "inception": RECIPES["inception"],
    "clip": RECIPES["clip"],
    "stretch": Recipe.model_validate({**IMAGENET.model_dump(), "resize": (240, 300), "fit": "stretch"}),
    # demo-detector's, without torch
    "letterbox": Recipe.model_validate({**LETTERBOX, "resize": 192, "crop": 192}),
    "letterbox, bicubic, in the corner": Recipe.model_validate(
        {**LETTERBOX, "resize": (256, 224), "crop": (256, 224), "interpolation": "bicubic", "fit": "letterbox-corner"}
    ),
}
SIZES = {
    "500x375": [(500, 375)],
    "1920x1080": [(1920, 1080)],
    "mixed": [(500, 375), (640, 427), (1024, 768), (333, 500)],
}


def photograph(name: str, size: tuple[int, int]) -> Image.Image:
    """Return an asset at another size."""
    return Image.open(ASSETS / f"{name}.jpg").convert("RGB").resize(size, Image.Resampling.LANCZOS)


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """Return the image as a file."""
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return out.getvalue()


def make_kinds() -> dict[str, bytes]:
    """Return files by what they are."""
    orientation = Image.Exif()
    orientation[0x0112] = 6
    found = {}
    sizes = (
        (500, 375),
        (2048, 1536),
        (375, 500),
        (333, 257),
        (257, 301),
        (1024, 768),
        (4000, 3000),
        (800, 300),
        (300, 1100),
    )
    for name in ("flower", "china"):
        for size in sizes:
            image = photograph(name, size)
            for subsampling, label in enumerate(("4:4:4", "4:2:2", "4:2:0")):
                found[f"{name} {size[0]}x{size[1]} {label}"] = encode(image, subsampling=subsampling)
            found[f"{name} {size[0]}x{size[1]} grey"] = encode(image.convert("L"))
        image = photograph(name, (500, 375))
        plain = encode(image)
        adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"
        found |= {
            f"{name} restarts": encode(image, restart_marker_blocks=4),
            f"{name} EXIF": encode(image, exif=orientation.tobytes()),
            f"{name} optimised": encode(image, optimize=True),
            f"{name} quality 100": encode(image, quality=100, subsampling=0),
            f"{name} quality 5": encode(image, quality=5),
            f"{name} junk behind": plain + bytes(1000),
            f"{name} progressive": encode(image, progressive=True),
            f"{name} RGB": encode(image, keep_rgb=True),
            f"{name} Adobe RGB": plain[:2] + adobe + plain[2:],
            f"{name} CMYK": encode(image.convert("CMYK")),
            f"{name} PNG": encode(image, "PNG"),
            f"{name} no end": plain[:-2],
            f"{name} cut": plain[: len(plain) * 2 // 3],
            f"{name} cut, with an end": plain[: len(plain) * 2 // 3] + b"\xff\xd9",
            f"{name} 3x700": encode(image.resize((3, 700))),
            f"{name} 100x80": encode(image.resize((100, 80))),
            f"{name} 1x1": encode(image.resize((1, 1))),
        }
    return {**found, "no image": b"no image at all" * 20, "empty": b""}


class Both:
    """The decoder on the GPU and the CPU's, for one recipe."""

    def __init__(self, recipe: Recipe, *, on_host: bool = True, threads: int = 8, **chain: Any) -> None:
        hold_context(0)
        self.step = load_step("preprocess")
        parameters = {name: {"string_value": value} for name, value in recipe.parameters().items()}
        self.recipe = self.step.Recipe(parameters)
        self.device = Device(load_driver(), 0)  # of who takes the pixels
        self.on_cpu = CpuImages(self.step, self.recipe, threads=threads)
        self.warnings: list[str] = []
        self.images = GpuImages(
            self.recipe, self.on_cpu, self.device.driver, 0, warn=self.warnings.append, to_host=on_host, **chain
        )

    def run(self, files: Sequence[bytes]) -> None:
        """Decode, and wait for it."""
        pixels = self.images.decode(files).pixels
        if not isinstance(pixels, np.ndarray):
            self.device.follow(pixels.stream)
        self.device.wait()

    def decode(self, files: Sequence[bytes]) -> tuple[NDArray[np.uint8], Sequence[str | None], int]:
        """Return pixels in host memory, errors, and how many images the GPU decoded."""
        found = self.images.decode(files)
        pixels = found.pixels if isinstance(found.pixels, np.ndarray) else to_host(self.device, found.pixels)
        return pixels.copy(), found.errors, self.images.on_gpu


def measure_levels(one: Any, other: Any) -> int:
    """Return the largest difference of two images."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def check_levels(_arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compare every kind with every recipe, one by one and all in one batch, in host memory and on the GPU."""
    kinds = make_kinds()
    for name, recipe in CHECKS.items():
        for on_host in (True, False):
            both = Both(recipe, on_host=on_host)
            wanted = both.on_cpu.decode(list(kinds.values()))
            batch, errors, _ = both.decode(list(kinds.values()))
            off = {}
            for index, (kind, data) in enumerate(kinds.items()):
                alone, alone_errors, on_gpu = both.decode([data])
                both_ways, expected = np.stack([batch[index], alone[0]]), wanted.pixels[[index, index]]
                levels = np.abs(both_ways.astype(int) - expected)
                off[kind] = {
                    "levels": int(levels.max()),
                    "over_1": float((levels > 1).mean()),
                    "mean": float(levels.mean()),
                    "gpu": bool(on_gpu),
                    "alike": bool(are_alike(both_ways, expected, on_gpu=True).all()),
                    "same_errors": errors[index] == alone_errors[0] == wanted.errors[index],
                }
            all_levels = [one["levels"] for one in off.values()]
            damaged = {kind for kind in kinds if kind.endswith("with an end")}  # what decoders make of it is their own
            bad = {k: v for k, v in off.items() if k not in damaged and not (v["alike"] and v["same_errors"])}
            yield {
                "recipe": name,
                "in": "host" if on_host else "GPU",
                "exact": all_levels.count(0),
                "one": all_levels.count(1),
                "two": all_levels.count(2),
                "most_over_1": max(one["over_1"] for one in off.values() if one["alike"]),
                "mean": float(np.mean([one["mean"] for one in off.values() if one["alike"]])),
                "of": len(all_levels),
                "on_gpu": sum(one["gpu"] for one in off.values()),
                "damaged": {kind: off[kind] for kind in damaged},
                "bad": bad,
                "warnings": both.warnings,
            }


def check_cuts(_arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Cut a photograph at every 97th byte, and at each of the first 700 and the last 40."""
    both, bad = Both(IMAGENET), []
    for options in ({}, {"restart_marker_blocks": 4}, {"optimize": True}):
        data = encode(photograph("china", (500, 375)), **options)
        places = sorted({*range(700), *range(0, len(data), 97), *range(len(data) - 40, len(data))})
        for start in range(0, len(places), 32):
            files = [data[:place] for place in places[start : start + 32]]
            _, errors, _ = both.decode(files)
            bad += [len(f) for f, e, w in zip(files, errors, both.on_cpu.decode(files).errors, strict=True) if e != w]
    yield {"cut at": bad, "bad": bad}


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Return the file cut, with bytes changed, taken out or put in."""
    changed, way = bytearray(data), chance.random()
    if way < 0.15:
        del changed[chance.randrange(2, len(data)) :]
    elif way < 0.25:
        changed[chance.randrange(len(data)) :] = b"\xff\xd9"
    elif way < 0.35:
        start = chance.randrange(len(data))
        del changed[start : start + chance.randrange(1, 2000)]
    elif way < 0.4:
        start = chance.randrange(len(data))
        changed[start:start] = chance.randbytes(chance.randrange(1, 30))
    else:
        reach = min(700, len(data)) if way < 0.7 else len(data)
        for _ in range(chance.randrange(1, 6)):
            changed[chance.randrange(reach)] = chance.choice((chance.randrange(256), 0, 1, 255))
    return bytes(changed)


def check_fuzz(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Decode mutated files in batches of 8, the first and the last of which are good."""
    chance, both = random.Random(arguments.seed), Both(IMAGENET)
    image = photograph("china", (500, 375))
    sources = [encode(image, subsampling=kind) for kind in range(3)]
    sources += [encode(image.convert("L")), encode(image, restart_marker_blocks=4), encode(image, progressive=True)]
    sources += [encode(image.convert("CMYK")), encode(image, keep_rgb=True), encode(image, optimize=True)]
    good = [sources[2], encode(photograph("flower", (640, 427)))]
    alone = [both.decode([data])[0][0] for data in good]
    counts: collections.Counter[str] = collections.Counter()
    histogram: collections.Counter[str] = collections.Counter()
    bad = []
    for number in range(0, arguments.mutations, 6):
        mutated = [mutate(chance.choice(sources), chance) for _ in range(6)]
        pixels, errors, on_gpu = both.decode([good[0], *mutated, good[1]])
        wanted = both.on_cpu.decode(mutated)
        counts["files"] += 6
        counts["on the GPU"] += on_gpu - 2
        if not (np.array_equal(pixels[0], alone[0]) and np.array_equal(pixels[7], alone[1])):
            bad.append({"number": number, "what": "a neighbour changed"})
        for index in range(6):
            if errors[1 + index] != wanted.errors[index]:
                bad.append({"number": number + index, "what": f"{errors[1 + index]} for {wanted.errors[index]}"})
            counts["refused"] += wanted.errors[index] is not None
            if wanted.errors[index] is None:
                levels = measure_levels(pixels[1 + index], wanted.pixels[index])
                histogram["0" if levels == 0 else "1" if levels == 1 else "2 to 8" if levels <= 8 else "more"] += 1
    yield {**counts, "levels": dict(histogram), "bad": bad, "warnings": both.warnings}


class Clock:
    """Wall and CPU time of each step."""

    def __init__(self) -> None:
        self.wait: Callable[[], object] | None = None
        self.wall: collections.defaultdict[str, float] = collections.defaultdict(float)
        self.cpu: collections.defaultdict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Measure what is done within; with something to wait for, its work, too."""
        wall, cpu = time.perf_counter(), time.thread_time()
        yield
        if self.wait is not None:
            self.wait()
        self.wall[step] += time.perf_counter() - wall
        self.cpu[step] += time.thread_time() - cpu

    def wrap(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is measured as this step."""

        def run(*arguments: Any) -> Any:
            with self(step):
                return function(*arguments)

        return run


def make_files(size: str, count: int) -> list[bytes]:
    """Return so many files of different content."""
    edges = SIZES[size]
    kinds = [
        encode(photograph(name, edge), quality=q) for name in ("flower", "china") for edge in edges for q in (85, 90)
    ]
    return [kinds[index % len(kinds)] for index in range(count)]


def check_steps(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Say where the time goes: of the Python thread, and with each step waited for."""
    for size in SIZES:
        for count in (1, 8, 32, 128):
            for is_waited_for in (False, True):
                clock = Clock()
                both = Both(IMAGENET, on_step=clock)
                files = make_files(size, count)
                for _ in range(5):
                    both.images.decode(files)
                images: Any = both.images
                images._route = clock.wrap("route", images._route)
                images._join = clock.wrap("copy to host", images._join)
                if is_waited_for:
                    clock.wait = images._wait
                else:
                    both.device.wait = clock.wrap("wait", both.device.wait)  # type: ignore[method-assign]
                clock.wall.clear()
                clock.cpu.clear()
                calls, started = 0, time.perf_counter()
                while (spent := time.perf_counter() - started) < arguments.seconds:
                    both.run(files)
                    calls += 1
                total = calls * count
                yield {
                    "size": size,
                    "batch": count,
                    "waited": is_waited_for,
                    "us_per_image": round(spent / total * 1e6, 1),
                    "wall_us": {step: round(value / total * 1e6, 1) for step, value in clock.wall.items()},
                    "cpu_us": {step: round(value / total * 1e6, 1) for step, value in clock.cpu.items()},
                    "warnings": both.warnings,
                }


def work(options: dict[str, Any], seconds: float, ready: Any, results: Any) -> None:
    """Decode in a loop; put images per second, CPU microseconds and the slowest batch into `results`."""
    both = Both(IMAGENET, on_host=options["on_host"], threads=2)
    if not options["reuse"]:
        images: Any = both.images
        for chain in images._chains:
            chain._reusable = lambda _: None
    files = make_files(options["size"], options["batch"])
    for _ in range(10):
        both.images.decode(files)
    ready.wait(timeout=120)
    calls, slowest, started, cpu = 0, 0.0, time.perf_counter(), time.process_time()
    while (spent := time.perf_counter() - started) < seconds:
        before = time.perf_counter()
        both.run(files)
        slowest = max(slowest, time.perf_counter() - before)
        calls += 1
    total = calls * len(files)
    results.put(
        (total / spent, (time.process_time() - cpu) / total * 1e6, slowest * 1e3, both.images.on_gpu == len(files))
    )


_USUAL = {"size": "500x375", "on_host": False, "reuse": True}


def check_speed(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure the bare chain by batch and processes."""
    cases = [(processes, {**_USUAL, "batch": batch}) for processes in (1, 2, 4) for batch in (1, 8, 32, 128)]
    cases += [(8, {**_USUAL, "batch": 8})]
    cases += [(processes, {**_USUAL, "batch": batch, "on_host": True}) for processes in (1, 4) for batch in (8, 32)]
    cases += [(1, {**_USUAL, "batch": 32, "reuse": False}), (4, {**_USUAL, "batch": 32, "reuse": False})]
    cases += [
        (processes, {**_USUAL, "batch": 32, "size": size}) for size in ("1920x1080", "mixed") for processes in (1, 4)
    ]
    yield from measure_chain([case for case in cases if case[1]["size"] in arguments.sizes], arguments.seconds)


def measure_fastest(size: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Measure the bare chain in large batches by several processes."""
    cases = [(processes, {**_USUAL, "batch": batch, "size": size}) for processes in (2, 4, 6) for batch in (32, 128)]
    yield from measure_chain(cases, seconds)


def measure_chain(cases: Sequence[tuple[int, dict[str, Any]]], seconds: float) -> Iterator[dict[str, Any]]:
    """Yield what so many processes reach with these options of `work`."""
    context = multiprocessing.get_context("spawn")
    for processes, options in cases:
        ready, results = context.Barrier(processes), context.Queue()
        args = (options, seconds, ready, results)
        children = [context.Process(target=work, args=args) for _ in range(processes)]
        for child in children:
            child.start()
        found = [results.get(timeout=180) for _ in children]
        for child in children:
            child.join()
        yield {
            "processes": processes,
            **options,
            "images_per_second": round(sum(one[0] for one in found)),
            "cpu_us_per_image": round(sum(one[1] for one in found) / processes, 1),
            "slowest_ms": round(max(one[2] for one in found), 1),
            "all_on_gpu": all(one[3] for one in found),
        }


SECTIONS = {"levels": check_levels, "cuts": check_cuts, "fuzz": check_fuzz, "steps": check_steps, "speed": check_speed}


def main() -> int:
    """Run the sections, each in a process of its own; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="a JSON file with everything")
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES), help="of the section speed")
    arguments = parser.parse_args()
    if arguments.section:
        for line in SECTIONS[arguments.section](arguments):
            print(json.dumps(line), flush=True)
        return 0
    print(describe_machine(), flush=True)
    everything: dict[str, Any] = {"machine": describe_machine()}
    failed = False
    for name in arguments.only.split(","):
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", "benchmarks.gpu_images", "--section", name, "--seed", str(arguments.seed)]
        command += ["--mutations", str(arguments.mutations), "--seconds", str(arguments.seconds)]
        command += ["--sizes", *arguments.sizes]
        lines = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for text in child.stdout:
                if text.startswith("{"):  # the libraries write there, too
                    lines.append(json.loads(text))
                    print(text, end="", flush=True)
        failed = failed or child.returncode != 0 or any(line.get("bad") for line in lines)
        everything[name] = {"exit code": child.returncode, "lines": lines}
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(everything, indent=1))
    print("FAILED" if failed else "passed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
