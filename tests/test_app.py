"""clients/app.py: what is behind the page, with a real server and without Gradio; and the page, where Gradio is there.

TRTGEN_APP_PYTHON names the Python of an environment that clients/requirements-app.txt was installed in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.server_parts import wait_until
from tests.test_clients import find_unused_port
from tests.tiny_detector import build_tiny_detector, draw_scene
from tests.tiny_repository import build_tiny_repository, make_image, serve

sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))  # it is no package

import app as page
from triton_images import ClientError, Connection, Model, RefusedError, Score, Work

CLIENTS = Path(__file__).parents[1] / "clients"
server = pytest.mark.server
APP_PYTHON = os.environ.get("TRTGEN_APP_PYTHON", "")
SCENE = draw_scene({"red": (40, 60, 120, 100), "blue thing": (200, 10, 300, 200)})
DRIVER = """\
import json, sys
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

url, *images = sys.argv[1:]
client = Client(url, verbose=False)
answers = [client.predict(api_name="/models")]
for name, image in zip(("shapes", "tiny", "shapes"), images):
    try:
        answers.append(client.predict(name, handle_file(image), api_name="/answer"))
    except AppError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server of two classifiers and a detector."""
    root = build_tiny_repository(tmp_path_factory.mktemp("repository"))
    build_tiny_repository(root, name="flawed", head="flawed")
    build_tiny_detector(root)
    with serve(root) as addresses:
        yield addresses


@server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_answers_of_each_kind_of_model(urls: dict[str, str], protocol: str) -> None:
    with Connection(protocol, urls[protocol]) as connection:
        assert page.list_choices(connection) == [
            ("flawed (classifies images)", "flawed"),
            ("shapes (detects objects)", "shapes"),
            ("tiny (classifies images)", "tiny"),
        ]
        classes = page.ask(connection, "tiny", make_image("green"))
        assert classes.bars is not None
        assert next(iter(classes.bars)) == "green"
        assert sum(classes.bars.values()) == pytest.approx(1, abs=1e-3)
        assert classes.picture is None
        assert [row[0] for row in classes.stages] == ["round trip of the client", "tiny_preprocess", "tiny_classifier"]
        boxes = page.ask(connection, "shapes", SCENE)
        assert boxes.bars is None
        assert boxes.rows == [["red", "0.9000", "40 60 120 100"], ["blue thing", "0.7000", "200 10 300 200"]]
        assert boxes.picture is not None
        assert boxes.picture.size == (320, 240)
        assert tuple(np.array(boxes.picture)[80, 41]) != (255, 0, 0)  # the frame
        assert [row[0] for row in boxes.stages[1:]] == ["shapes_preprocess", "shapes_detector", "shapes_postprocess"]
        # in milliseconds and of this request; what a part does behind its answer counts, too
        whole, *parts = (float(row[2]) for row in boxes.stages)
        assert 0 < sum(parts) < 2 * whole
        with pytest.raises(RefusedError, match="not an image in one of the formats"):
            page.ask(connection, "shapes", b"no picture")
        with pytest.raises(RefusedError, match="is nan, a number was expected"):
            page.ask(connection, "flawed", make_image("blue"))
        with pytest.raises(ClientError, match="'tiny_preprocess' is not served any more"):
            page.ask(connection, "tiny_preprocess", SCENE)


def test_stages_are_the_mean_of_what_was_answered_in_between() -> None:
    before = {"one": Work(10, 1.0, 5.0), "idle": Work(3, 1, 1)}
    after = {"one": Work(12, 1.004, 5.01), "idle": Work(3, 1, 1)}
    assert page.list_stages(before, after) == [["one", "2.0", "5.0"]]


def test_a_server_that_counts_late_is_waited_for_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model("shapes", "detection", "IMAGE", (), 1, members=("one", "two"))
    before = dict.fromkeys(model.members, Work(1, 0, 0))

    class Late:
        reads = 0

        def read_work(self, name: str) -> Work:
            assert name in model.members
            self.reads += 1
            return Work(2 if self.reads > 5 else 1, 0, 0)

    assert [work.requests for work in page.wait_for_work(Late(), model, before).values()] == [2, 2]  # type: ignore[arg-type]
    monkeypatch.setattr(page, "COUNTED_S", 0.02)
    never = Late()
    never.reads = -1_000_000
    assert page.wait_for_work(never, model, before) == before  # type: ignore[arg-type]


def test_bars_are_for_probabilities_and_every_class_has_its_own() -> None:
    assert page.make_bars([Score("a", 0, 7.5), Score("b", 1, -2)]) is None
    scores = [Score("N/A", 1, 0.5), Score("cat", 0, 0.3), Score("N/A", 2, 0.1), Score(None, 3, 0.1)]
    assert page.make_bars(scores) == {"N/A (1)": 0.5, "cat": 0.3, "N/A (2)": 0.1, "class 3": 0.1}


def test_a_picture_that_only_the_server_can_read() -> None:
    with pytest.raises(ClientError, match="it was searched, but cannot be drawn"):
        page.draw(Model("shapes", "detection", "IMAGE", (), 1), b"iVBORw0KGgo", [])


def test_without_gradio_the_next_step_is_said(tmp_path: Path) -> None:
    (tmp_path / "gradio.py").write_text("raise ImportError('none here')")
    code = f"import sys; sys.path[:0] = {[str(tmp_path), str(CLIENTS)]}; import app; sys.exit(app.main([]))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "error: Gradio is not installed: none here\n"
        "hint: pip install -r clients/requirements-app.txt, in an environment of its own\n"
    )


@server
@pytest.mark.skipif(not APP_PYTHON, reason="TRTGEN_APP_PYTHON names no environment with Gradio")
def test_the_page(urls: dict[str, str], tmp_path: Path) -> None:
    port = find_unused_port()
    (tmp_path / "scene.png").write_bytes(SCENE)
    (tmp_path / "green.jpg").write_bytes(make_image("green"))
    (tmp_path / "text.jpg").write_text("no picture")
    command = [APP_PYTHON, str(CLIENTS / "app.py"), "--url", urls["grpc"], "--port", str(port)]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
    files = {path.name for path in CLIENTS.iterdir()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as running:
        assert running.stdout
        try:
            line = running.stdout.readline().decode()
            assert line == f"http://127.0.0.1:{port}/  (Ctrl-C ends it)\n"
            assert {it.laddr.ip for it in psutil.Process(running.pid).net_connections() if it.status == "LISTEN"} == {
                "127.0.0.1"
            }
            images = [tmp_path / name for name in ("scene.png", "green.jpg", "text.jpg")]
            drive = [APP_PYTHON, "-c", DRIVER, f"http://127.0.0.1:{port}", *map(str, images)]
            driven = subprocess.run(drive, capture_output=True, text=True, timeout=120, check=True)
            models, boxes, classes, refused = json.loads(driven.stdout)
            assert list((tmp_path / "gradio").rglob("scene.png"))
        finally:
            running.send_signal(2)
            assert wait_until(lambda: running.poll() is not None)
        assert running.stderr
        assert b"Traceback" not in running.stderr.read()
    assert {path.name for path in CLIENTS.iterdir()} - {"__pycache__"} == files - {"__pycache__"}  # Gradio writes stubs
    assert not [path for path in (tmp_path / "gradio").rglob("*") if path.is_file()]  # the pictures are gone
    assert [name for _, name in models["choices"]] == ["flawed", "shapes", "tiny"]
    bars, picture, rows, stages = boxes
    assert (bars["visible"], picture["visible"]) == (False, True)
    assert rows["data"][0] == ["red", "0.9000", "40 60 120 100"]
    assert len(stages["data"]) == 4
    assert classes[0]["value"]["label"] == "green"
    assert "not an image in one of the formats" in refused
    assert "hint: look at the image" in refused
