"""Find objects in images with a detector served by Triton.

    python clients/detect.py img.jpg
    python clients/detect.py img.jpg --draw out.jpg --score 0.5
    python clients/detect.py --protocol http --json holiday/ --draw drawn/
    python clients/detect.py val2017/ --coco results.json --annotations instances_val2017.json

Exit code: 0 = every image was searched, 1 = not every one (standard error says why), 2 = wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from coco import Results, read_annotations
from command_line import (
    SUFFIXES,
    ask_in_batches,
    complain,
    connect,
    find_images,
    make_parser,
    read_text,
    run_command,
    text,
    write_file,
)
from triton_images import ClientError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from triton_images import Detection, Model, RefusedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: parse(arguments), run)


def run(options: argparse.Namespace) -> int:
    """Search every image that was asked for, in order, and print and draw each result as soon as it is there."""
    names, without = find_images(options.images)
    if not names:
        return 1
    labels = read_labels(options.labels) if options.labels else None
    places = {name: place_in_folder(name, options.images) for name in names}
    results = Results(places, read_annotations(options.annotations)) if options.coco else None
    drawings = plan_drawings(Path(options.draw), places) if options.draw else {}
    done = 0
    with connect(options) as server:
        model = server.find_model(options.model, "detection")
        warn_of_threshold(options.score, model)

        def ask(images: Sequence[bytes]) -> list[list[Detection] | RefusedError]:
            return server.detect_each(model, images, labels)

        for name, data, found in ask_in_batches(ask, names, model, options.batch_size, done="searched"):
            detections = [one for one in found if one.score >= options.score]
            print_result(name, detections, as_json=options.json)
            if results:
                results.add(name, detections)
            if not drawings or save_drawing(name, data, detections, drawings[name], model):
                done += 1
    if results:
        for note in results.list_omissions():
            print(f"note: {note}", file=sys.stderr)
        write_file(Path(options.coco), json.dumps(results.rows, allow_nan=False).encode())
    return 1 if without or done < len(names) else 0


def warn_of_threshold(score: float, model: Model) -> None:
    """Say that the server drops what `--score` asks for."""
    if model.threshold is not None and 0 < score < model.threshold:
        print(
            f"note: {model.name} answers no box with a score below {model.threshold:g}, so --score {score:g} changes "
            "nothing\nhint: lower `score` in the spec's section `detection`, or in the config.pbtxt of the "
            "post-processing",
            file=sys.stderr,
        )


def print_result(name: str, detections: Sequence[Detection], *, as_json: bool) -> None:
    """Print one image's objects, best first, with left, top, right and bottom in pixels."""
    if as_json:
        rows = [
            {**asdict(one), "score": round(one.score, 6), "box": [round(edge, 2) for edge in one.box]}
            for one in detections
        ]
        print(json.dumps({"file": name, "detections": rows}, allow_nan=False), flush=True)
        return
    print(name)
    for one in detections:
        edges = " ".join(f"{edge:.0f}" for edge in one.box)
        print(f"  {one.score:.4f}  {one.label or f'class {one.index}'}  {edges}")
    if not detections:
        print("  no object")
    sys.stdout.flush()


def read_labels(path: str) -> list[str]:
    """Return the names in a file that has one a line."""
    labels = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    while labels and not labels[-1]:
        labels.pop()
    if not labels:
        raise ClientError(
            f"{path}: no label in this file", "give one label a line, in the order of the model's classes"
        )
    return labels


def place_in_folder(name: str, arguments: Sequence[str]) -> Path:
    """Return an image's path in the folder that was given, or the name of a file that was given itself."""
    if name == "-":
        return Path("standard-input.png")
    for argument in arguments:
        if argument != name and Path(name).is_relative_to(argument):
            return Path(name).relative_to(argument)
    return Path(Path(name).name)


def plan_drawings(target: Path, places: Mapping[str, Path]) -> dict[str, Path]:
    """Return where each image is drawn, or raise where that cannot be or would cost an image."""
    try:
        import drawing  # noqa: F401
    except ImportError as error:
        raise ClientError(f"--draw needs Pillow: {error}", "pip install pillow") from None
    if target.is_dir() or not target.suffix:
        named = {
            name: place if place.suffix.lower() in SUFFIXES else Path(f"{place}.png") for name, place in places.items()
        }
        drawings = {name: target / place for name, place in named.items()}
    elif target.suffix.lower() not in SUFFIXES:
        known = ", ".join(sorted(SUFFIXES))
        raise ClientError(f"--draw {target} is neither a folder nor a picture", f"make the folder, or use {known}")
    elif len(places) > 1:
        raise ClientError(f"--draw {target} is one file, and there are {len(places)} images", "give a folder")
    else:
        drawings = dict.fromkeys(places, target)
    if len(set(drawings.values())) < len(drawings):
        raise ClientError("two images have the same name and would be drawn into one file", "draw them one by one")
    for path in drawings.values():
        if path.exists() and any(name != "-" and Path(name).exists() and path.samefile(name) for name in places):
            raise ClientError(f"{path} is one of the images, and would be overwritten", "draw into another folder")
    return drawings


def save_drawing(name: str, data: bytes, detections: Sequence[Detection], path: Path, model: Model) -> bool:
    """Draw the boxes on the image and write it; say so and return False if it cannot be drawn."""
    from drawing import draw_boxes, encode_picture, open_picture

    try:
        picture = draw_boxes(open_picture(data, apply_exif=model.applies_exif), detections)
        drawn = encode_picture(picture, path.suffix.lower())
    except ValueError as error:
        complain(f"{name}: it was searched, but cannot be drawn: {error}", "leave --draw out, or convert it to PNG")
        return False
    write_file(path, drawn)
    return True


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser("Find objects in images with a detector served by Triton.")
    parser.add_argument(
        "--score", type=share, default=0.0, metavar="S", help="least score of a box; default: all that are answered"
    )
    parser.add_argument(
        "--draw", type=text, metavar="PATH", help="draw the boxes: a picture for one image, or a folder"
    )
    parser.add_argument("--labels", type=text, metavar="FILE", help="one class name a line; default: the server's")
    parser.add_argument("--coco", type=text, metavar="FILE", help="also write all boxes as COCO results (JSON)")
    parser.add_argument(
        "--annotations", type=text, metavar="FILE", help="COCO annotations whose image and category ids --coco uses"
    )
    options = parser.parse_args(arguments)
    if options.annotations and not options.coco:
        parser.error("--annotations needs --coco")
    return options


def share(argument: str) -> float:
    """Refuse what is no score."""
    value = float(argument)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{argument} is not between 0 and 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
