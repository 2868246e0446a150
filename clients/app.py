"""A page to try served models in a browser: drop a picture, see its classes, or its boxes drawn on it.

    python3.11 -m venv app-env && app-env/bin/pip install -r clients/requirements-app.txt
    app-env/bin/python clients/app.py --url localhost:8001

It listens on this machine only, asks nobody but the server, and fetches nothing from elsewhere.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line import DEFAULT_URLS, add_server_options, connect, positive, run_command
from triton_images import TASKS, ClientError, HiddenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image
    from triton_images import Connection, Detection, Model, Score, Work

TOP = 5
COUNTED_S = 0.5  # tritonserver answers first and counts then
POLL_S = 0.01


@dataclass(frozen=True)
class Answer:
    """What the page shows: bars or a picture, the same as rows of text, and where the time went.

    `bars` are probabilities by name, `rows` label, score and box; `stages` name, queue and computing in milliseconds.
    """

    model: Model
    bars: dict[str, float] | None
    picture: Image.Image | None
    rows: list[list[str]]
    stages: list[list[str]]


def list_choices(server: Connection) -> list[tuple[str, str]]:
    """Return what the list of models shows, and the name behind each."""
    return [(f"{model.name} ({TASKS[model.task].does})", model.name) for model in server.list_models()]


def ask(server: Connection, name: str, data: bytes) -> Answer:
    """Send one image to the model `name` and return what came of it.

    Raises:
        ClientError: There is no answer.
    """
    model = next((one for one in server.list_models() if one.name == name), None)
    if model is None:
        raise ClientError(f"the model {name!r} is not served any more", "load the page again")
    before = read_work(server, model)
    start = time.perf_counter()
    scores = server.classify(model, [data], TOP)[0] if model.task == "classification" else []
    detections = server.detect(model, [data])[0] if model.task == "detection" else []
    round_trip_s = time.perf_counter() - start
    stages = [["round trip of the client", "", f"{round_trip_s * 1e3:.1f}"]]
    stages += list_stages(before, wait_for_work(server, model, before))
    if model.task == "classification":
        return Answer(model, make_bars(scores), None, list_scores(scores), stages)
    return Answer(model, None, draw(model, data, detections), list_boxes(detections), stages)


def read_work(server: Connection, model: Model) -> dict[str, Work]:
    """Return what each member, or a fused model, has done so far; nothing where the server does not say it."""
    try:
        return {name: server.read_work(name) for name in model.members or (model.name,)}
    except HiddenError:
        return {}


def wait_for_work(server: Connection, model: Model, before: dict[str, Work]) -> dict[str, Work]:
    """Return the same as soon as every member has counted another request, or after a while."""
    deadline = time.monotonic() + COUNTED_S
    while True:
        after = read_work(server, model)
        if time.monotonic() > deadline or all(after[name].requests > work.requests for name, work in before.items()):
            return after
        time.sleep(POLL_S)


def list_stages(before: dict[str, Work], after: dict[str, Work]) -> list[list[str]]:
    """Return name, queue and computing of each member: the mean of the requests that were answered in between."""
    rows = []
    for name, work in after.items():
        requests = work.requests - before[name].requests
        if requests > 0:
            queue_s, compute_s = work.queue_s - before[name].queue_s, work.compute_s - before[name].compute_s
            rows.append([name, f"{queue_s / requests * 1e3:.1f}", f"{compute_s / requests * 1e3:.1f}"])
    return rows


def make_bars(scores: Sequence[Score]) -> dict[str, float] | None:
    """Return probabilities by the classes' names; None for scores that are none, such as logits."""
    if not all(0 <= one.score <= 1 for one in scores):
        return None
    names = Counter(one.label for one in scores)
    return {(f"{one.label} ({one.index})" if names[one.label] > 1 else name_class(one)): one.score for one in scores}


def list_scores(scores: Sequence[Score]) -> list[list[str]]:
    """Return label, score and an empty box of each class."""
    return [[name_class(one), f"{one.score:.4f}", ""] for one in scores]


def list_boxes(detections: Sequence[Detection]) -> list[list[str]]:
    """Return label, score and box of each object."""
    return [[name_class(one), f"{one.score:.4f}", " ".join(f"{edge:.0f}" for edge in one.box)] for one in detections]


def name_class(one: Score | Detection) -> str:
    """Return the label, or the class's number."""
    return one.label or f"class {one.index}"


def draw(model: Model, data: bytes, detections: Sequence[Detection]) -> Image.Image:
    """Return the picture with its boxes."""
    from drawing import draw_boxes, open_picture

    try:
        return draw_boxes(open_picture(data, apply_exif=model.applies_exif), detections)
    except ValueError as error:
        raise ClientError(f"it was searched, but cannot be drawn: {error}", "convert it to PNG") from None


def make_page(gradio: Any, options: argparse.Namespace) -> Any:
    """Return the page, not yet served."""

    def explained(error: ClientError) -> Exception:
        message: Exception = gradio.Error(f"{error} (hint: {error.hint})", duration=None, print_exception=False)
        return message

    def show_models() -> Any:
        try:
            with connect(options) as server:
                choices = list_choices(server)
        except ClientError as error:
            raise explained(error) from None
        if not choices:
            raise explained(ClientError("this server has no ensemble that takes images", "serve one, then load again"))
        return gradio.Dropdown(choices=choices, value=choices[0][1])

    def show_answer(name: str | None, path: str | None) -> list[Any]:
        if not name or not path:
            return [gradio.Label(visible=False), gradio.Image(visible=False), [], []]
        try:
            with connect(options) as server:
                answer = ask(server, name, Path(path).read_bytes())
        except ClientError as error:
            raise explained(error) from None
        return [
            gradio.Label(answer.bars, visible=answer.bars is not None),
            gradio.Image(answer.picture, visible=answer.picture is not None),
            answer.rows,
            answer.stages,
        ]

    with gradio.Blocks(title="Served models", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(f"## Models served at {options.url or DEFAULT_URLS[options.protocol]}")
        with gradio.Row():
            with gradio.Column():
                model = gradio.Dropdown(label="Model")
                image = gradio.Image(label="Picture", sources=["upload", "clipboard"], height=360)
                # the file as it was uploaded, whatever Pillow thinks of it: the server decides
                image.preprocess = lambda payload: payload.path if payload else None
            with gradio.Column():
                bars = gradio.Label(label="Classes", num_top_classes=TOP, visible=False)
                picture = gradio.Image(
                    label="Objects", format="png", interactive=False, visible=False, buttons=["download", "fullscreen"]
                )
        with gradio.Row():
            rows = gradio.Dataframe(label="Answer", headers=["label", "score", "left top right bottom"])
            stages = gradio.Dataframe(label="Time", headers=["stage", "queue, ms", "computing, ms"])
        page.load(show_models, outputs=model, api_name="models")
        shown = [bars, picture, rows, stages]
        gradio.on([model.change, image.change], show_answer, [model, image], shown, api_name="answer")
    return page


def run(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio
    except ImportError as error:
        hint = "pip install -r clients/requirements-app.txt, in an environment of its own"
        raise ClientError(f"Gradio is not installed: {error}", hint) from None
    page = make_page(gradio, options)
    # fonts of the system: Gradio's own themes load theirs from Google
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, url, _ = page.launch(
            server_name="127.0.0.1",
            server_port=options.port,
            share=False,
            inbrowser=options.open,
            theme=theme,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except (OSError, OverflowError) as error:
        raise ClientError(f"the page cannot be served: {error}", "give another --port") from None
    print(f"{url}  (Ctrl-C ends it)", flush=True)
    page.block_thread()
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Serve a page to try the models of a Triton server.")
    add_server_options(parser)
    parser.add_argument("--port", type=positive(int), metavar="N", help="of the page; default: a free one from 7860 on")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(lambda: parse(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
