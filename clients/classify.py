"""Classify images with a model served by Triton.

    python clients/classify.py img.jpg
    python clients/classify.py --protocol http --json --top 3 holiday/ other.png
    curl -s https://example.org/cat.jpg | python clients/classify.py -

Exit code: 0 = every image was classified, 1 = not every one (standard error says why), 2 = wrong usage.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from command_line import ask_in_batches, connect, find_images, make_parser, positive, run_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from triton_images import RefusedError, Score

ENOUGH = 0.99  # classes are printed until their probabilities make up this much


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: parse(arguments), run)


def run(options: argparse.Namespace) -> int:
    """Classify everything that was asked for, in order, and print each result as soon as it is there."""
    names, without = find_images(options.images)
    if not names:
        return 1
    done = 0
    with connect(options) as server:
        model = server.find_model(options.model)

        def ask(images: Sequence[bytes]) -> list[list[Score] | RefusedError]:
            return server.classify_each(model, images, options.top)

        for name, _, scores in ask_in_batches(ask, names, model, options.batch_size, done="classified"):
            print_result(name, scores, as_json=options.json)
            done += 1
    return 1 if without or done < len(names) else 0


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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser("Classify images with a model served by Triton.")
    parser.add_argument("--top", type=positive(int), default=5, metavar="K", help="most classes per image; default: 5")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
