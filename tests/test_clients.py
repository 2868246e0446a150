"""The clients, run as a user runs them: a process of their own against a real tritonserver, over both protocols."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.server_parts import read_settled
from tests.tiny_repository import STARTED, build_tiny_repository, make_image, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = Path(__file__).parents[1] / "clients"
sys.path.insert(0, str(CLIENTS))  # its modules import one another by their bare names

from triton_images import ClientError, Connection  # noqa: E402

COLOURS = ["red", "green", "blue", "red", "blue", "green", "red", "blue"]
# max_batch_size of the served models. Halving eight images that were sent at once would take four requests, not three.
LIMIT = 3
ENSEMBLES = ("binary", "flawed", "sigmoid", "softmax", "sure")

both = pytest.mark.parametrize("protocol", ["grpc", "http"])
server = pytest.mark.server


def make_command(*arguments: str | Path, script: Path = CLIENTS / "classify.py") -> list[str]:
    return [sys.executable, "-W", "error", str(script), *map(str, arguments)]


def classify(*arguments: str | Path, stdin: bytes = b"", code: int = 0) -> tuple[str, str]:
    """Run classify.py, check its exit code and that nothing escaped, and return standard output and error."""
    run = subprocess.run(make_command(*arguments), input=stdin, capture_output=True, timeout=120, check=False)
    output, error = run.stdout.decode(), run.stderr.decode()
    assert run.returncode == code, error
    assert "Traceback" not in error
    assert "Warning" not in error
    return output, error


def read_labels(output: str) -> dict[str, str]:
    """Return file name -> best class from the output of `--json`."""
    answers = [json.loads(line) for line in output.splitlines()]
    return {Path(answer["file"]).name: answer["classes"][0]["label"] for answer in answers}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server of one ensemble, `tiny`."""
    with serve(build_tiny_repository(tmp_path_factory.mktemp("repository"), max_batch_size=LIMIT)) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server of one ensemble for each head, and of `single`, which takes one image and has no batch axis."""
    root = tmp_path_factory.mktemp("repository")
    for head in ENSEMBLES:
        build_tiny_repository(root, name=head, head=head)
    build_tiny_repository(root, name="single", max_batch_size=0)
    with serve(root) as addresses:
        yield addresses


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of eight images, each named after its number and colour."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, colour in enumerate(COLOURS):
        size = (40 + 50 * number, 30 + 90 * number)
        (folder / f"{number}-{colour}.jpg").write_bytes(make_image(colour, size=size, seed=number))
    return folder


def find_unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@server
@both
def test_prints_the_classes_of_an_image_best_first(urls: dict[str, str], images: Path, protocol: str) -> None:
    output, error = classify(images / "1-green.jpg", "--protocol", protocol, "--url", urls[protocol])
    name, *lines = output.splitlines()
    assert name == str(images / "1-green.jpg")
    assert lines[0].endswith("  green")
    assert {line.split()[1] for line in lines} == {"red", "green", "blue"}
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-3)
    assert all(line.startswith("  ") for line in lines)
    assert error == ""


@server
def test_protocols_answer_alike(urls: dict[str, str], images: Path) -> None:
    answers = [classify(images, "--json", "--protocol", it, "--url", urls[it])[0] for it in ("grpc", "http")]
    assert answers[0] == answers[1]
    first = json.loads(answers[0].splitlines()[0])
    assert list(first) == ["file", "classes"]
    assert [list(entry) for entry in first["classes"]] == [["label", "index", "score"]] * 3
    assert first["classes"][0]["index"] == 0


@server
@both
def test_folder_is_read_recursively_in_order(urls: dict[str, str], images: Path, protocol: str) -> None:
    (images / "deeper").mkdir()
    (images / "deeper" / "x.PNG").write_bytes(make_image("blue", encoding="PNG"))
    (images / "notes.txt").write_text("not an image")
    output, _ = classify(images, "--json", "--top", "1", "--protocol", protocol, "--url", urls[protocol])
    files = [json.loads(line)["file"] for line in output.splitlines()]
    assert files == sorted(files)
    assert read_labels(output) == {f"{n}-{colour}.jpg": colour for n, colour in enumerate(COLOURS)} | {"x.PNG": "blue"}
    assert all(len(json.loads(line)["classes"]) == 1 for line in output.splitlines())


@server
@both
def test_standard_input(urls: dict[str, str], images: Path, protocol: str) -> None:
    data = (images / "2-blue.jpg").read_bytes()
    options = ("--json", "--protocol", protocol, "--url", urls[protocol])
    assert read_labels(classify("-", images / "0-red.jpg", *options, stdin=data)[0]) == {
        "-": "blue",
        "0-red.jpg": "red",
    }
    output, error = classify("-", *options, code=1)
    assert output == ""
    assert "error: -: empty" in error


def count_work(url: str) -> tuple[int, int]:
    """Return how many requests the ensemble has answered, and how many images were in them."""
    from tritonclient.http import InferenceServerClient

    with InferenceServerClient(url) as client:
        statistics: dict[str, Any] = client.get_inference_statistics("tiny")["model_stats"][0]
    return statistics["inference_stats"]["success"]["count"], statistics["inference_count"]


@server
@both
@pytest.mark.parametrize(("options", "requests"), [((), 3), (("--batch-size", "100"), 3), (("--batch-size", "2"), 4)])
def test_batches_up_to_the_limit_of_the_model(
    urls: dict[str, str], images: Path, protocol: str, options: tuple[str, ...], requests: int
) -> None:
    before = count_work(urls["http"])
    output, _ = classify(images, "--json", *options, "--protocol", protocol, "--url", urls[protocol])
    after = read_settled(lambda: count_work(urls["http"]), before)
    assert list(read_labels(output).values()) == COLOURS
    assert (after[0] - before[0], after[1] - before[1]) == (requests, len(COLOURS))


@server
@both
def test_bad_image_costs_only_its_own_answer(urls: dict[str, str], images: Path, protocol: str) -> None:
    (images / "2-blue.jpg").write_bytes((images / "2-blue.jpg").read_bytes()[:40])
    output, error = classify(images, "--json", "--protocol", protocol, "--url", urls[protocol], code=1)
    assert list(read_labels(output).values()) == [colour for n, colour in enumerate(COLOURS) if n != 2]
    assert error.count("error:") == 1
    assert f"error: {images / '2-blue.jpg'}: in ensemble 'tiny', image 0 of 1 cannot be decoded" in error


@server
@both
def test_unreadable_files_cost_only_their_own_answers(
    urls: dict[str, str], images: Path, tmp_path: Path, protocol: str
) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "empty.jpg").touch()
    bad = (tmp_path / "missing.jpg", tmp_path / "none", tmp_path / "empty.jpg", "x" * 300)
    where = ("--protocol", protocol, "--url", urls[protocol])
    output, error = classify(*bad, images / "0-red.jpg", "--json", *where, code=1)
    assert read_labels(output) == {"0-red.jpg": "red"}
    assert f"{tmp_path / 'missing.jpg'}: No such file or directory" in error
    assert f"{tmp_path / 'none'}: no image in this folder" in error
    assert f"{tmp_path / 'empty.jpg'}: empty" in error
    assert "xxx: File name too long" in error
    assert error.count("hint:") == error.count("error:") == 4


@server
@both
def test_file_name_that_is_not_text(urls: dict[str, str], images: Path, tmp_path: Path, protocol: str) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.jpg"
    shutil.copyfile(images / "0-red.jpg", name)
    output, _ = classify(os.fsdecode(name), "--protocol", protocol, "--url", urls[protocol])
    assert r"\udcff.jpg" in output
    assert "red" in output


@server
@both
def test_several_ensembles_ask_for_a_choice(several: dict[str, str], images: Path, protocol: str) -> None:
    where = ("--protocol", protocol, "--url", several[protocol])
    _, error = classify(images, *where, code=1)
    assert "6 ensembles that classify images: binary, flawed, sigmoid, single, softmax, sure" in error
    assert "hint: choose one: --model binary" in error
    for model in ("softmax", "single"):
        assert list(read_labels(classify(images, "--json", "--model", model, *where)[0]).values()) == COLOURS


@server
@both
def test_classes_are_printed_until_they_make_up_99_percent(
    several: dict[str, str], images: Path, protocol: str
) -> None:
    where = ("--protocol", protocol, "--url", several[protocol])

    def show(model: str, *options: str) -> list[str]:
        return classify(images / "1-green.jpg", "--model", model, *options, *where)[0].splitlines()[1:]

    assert [line.split()[1] for line in show("sure")] == ["green"]
    assert len(show("softmax")) == len(show("sigmoid")) == 3
    assert len(show("softmax", "--top", "2")) == 2
    (answer,) = map(json.loads, classify(images / "1-green.jpg", "--model", "sure", "--json", *where)[0].splitlines())
    assert len(answer["classes"]) == 3


@server
@both
def test_one_output_names_the_class_that_holds(several: dict[str, str], images: Path, protocol: str) -> None:
    where = ("--model", "binary", "--protocol", protocol, "--url", several[protocol])
    red, green = (classify(images / name, *where)[0].splitlines() for name in ("0-red.jpg", "1-green.jpg"))
    assert [line.split(maxsplit=1)[1] for line in (*red[1:], *green[1:])] == ["red", "not red"]
    assert all(0.9 < float(lines[1].split()[0]) < 1 for lines in (red, green))
    answers = [json.loads(line)["classes"] for line in classify(images, "--json", *where)[0].splitlines()]
    assert [len(classes) for classes in answers] == [1] * len(COLOURS)
    for colour, (found,) in zip(COLOURS, answers, strict=True):
        if colour != "blue":  # as red as green
            assert (found["label"], found["index"]) == {"red": ("red", 0), "green": ("not red", None)}[colour]
        assert 0.5 <= found["score"] < 1


@server
@both
def test_score_that_is_not_a_number(several: dict[str, str], images: Path, protocol: str) -> None:
    where = ("--model", "flawed", "--protocol", protocol, "--url", several[protocol])
    output, error = classify(images, "--json", *where, code=1)
    answers = [json.loads(line, parse_constant=pytest.fail) for line in output.splitlines()]
    assert [Path(answer["file"]).name for answer in answers] == ["0-red.jpg", "3-red.jpg", "6-red.jpg"]
    assert f"error: {images / '2-blue.jpg'}: the model's score of " in error
    assert error.count(" is nan, a number was expected\nhint: trtgen verify compares the model") == 3
    assert error.count(" is -inf, a number was expected") == 2


@server
@both
def test_model_that_cannot_be_used(urls: dict[str, str], images: Path, protocol: str) -> None:
    where = ("--protocol", protocol, "--url", urls[protocol])
    _, error = classify(images, "--model", "absent", *where, code=1)
    assert "the model 'absent' is not ready" in error
    assert "hint: ready models: tiny, tiny_classifier, tiny_preprocess" in error
    _, error = classify(images, "--model", "tiny_classifier", *where, code=1)
    assert "UINT8 PIXELS" in error
    assert "hint: ensembles that do: tiny" in error


@server
def test_no_ensemble(images: Path, tmp_path: Path) -> None:
    root = build_tiny_repository(tmp_path / "repository")
    shutil.rmtree(root / "tiny")
    with serve(root) as addresses:
        for protocol in ("grpc", "http"):
            _, error = classify(images, "--protocol", protocol, "--url", addresses[protocol], code=1)
            assert "serves no ensemble that classifies images; ready models: tiny_classifier, tiny_preprocess" in error


@both
def test_no_server(images: Path, tmp_path: Path, protocol: str) -> None:
    (tmp_path / "one.jpg").write_bytes(make_image("red"))
    url = f"localhost:{find_unused_port()}"
    _, error = classify(tmp_path / "one.jpg", "--protocol", protocol, "--url", url, code=1)
    assert error.startswith(f"error: no server can be reached at {url}: Connection refused\nhint: start one")


@server
def test_ports_mixed_up(urls: dict[str, str], images: Path) -> None:
    _, error = classify(images, "--url", urls["http"], code=1)
    assert f"error: {urls['http']} speaks http, not grpc\nhint: add --protocol http" in error
    _, error = classify(images, "--url", urls["grpc"], "--protocol", "http", code=1)
    assert f"error: {urls['grpc']} speaks grpc, not http\nhint: add --protocol grpc" in error
    _, error = classify(images, "--url", urls["metrics"], "--protocol", "http", code=1)
    assert f"error: {urls['metrics']} does not answer as Triton's inference API" in error


@server
@both
def test_slow_server_and_server_that_dies(images: Path, tmp_path: Path, protocol: str) -> None:
    root = build_tiny_repository(tmp_path / "repository", delay_s=2)
    started = root / "tiny_preprocess" / STARTED
    with serve(root) as addresses:
        where = ("--protocol", protocol, "--url", addresses[protocol], "--batch-size", "1")
        _, error = classify(images, *where, "--timeout", "0.7", code=1)
        assert f"error: no answer from {addresses[protocol]} within 0.7 s (0 of 8 images classified before)" in error
        assert "hint: raise --timeout" in error

        started.unlink()
        with start(images, *where) as interrupted:
            wait_for(started)
            interrupted.send_signal(signal.SIGINT)
            assert b"Traceback" not in interrupted.communicate(timeout=30)[1]
        assert interrupted.returncode == 130

        with start(images, *where) as left:
            assert left.stdout
            assert b"0-red.jpg" in left.stdout.readline()
            kill_listener(int(addresses["grpc"].rpartition(":")[2]))
            error = left.communicate(timeout=30)[1].decode()
        assert left.returncode == 1
        assert f"error: the server at {addresses[protocol]} went away" in error
        assert "(1 of 8 images classified before)\nhint: look at its log" in error
        assert "Traceback" not in error


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(make_command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(path: Path) -> None:
    """Wait until `path` exists, a minute at most."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_listener(port: int) -> None:
    """Kill the server process that listens on `port`, as a crash would."""
    listening = [it for it in psutil.net_connections("tcp") if it.status == psutil.CONN_LISTEN]
    (pid,) = {it.pid for it in listening if tuple(it.laddr)[1:] == (port,)}
    psutil.Process(pid).kill()


@server
def test_reader_that_has_seen_enough(urls: dict[str, str], images: Path) -> None:
    with start(images, "--url", urls["grpc"], "--batch-size", "1") as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@server
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_output_is_one_error(urls: dict[str, str], images: Path, unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = make_command(images, "--url", urls["grpc"])
    with Path("/dev/full").open("wb") as full:
        run = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert run.returncode == 1
        assert run.stderr == (
            "error: the output cannot be written: No space left on device\nhint: free disk space where it goes\n"
        )
        command = make_command("absent.jpg", "--url", urls["grpc"])
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
        assert (run.returncode, run.stdout) == (1, "")


def test_a_closed_output_is_like_one_that_nobody_reads(urls: dict[str, str], images: Path) -> None:
    script = 'exec "$@" >&-'
    command = ["/bin/sh", "-c", script, "sh", *make_command(images, "--url", urls["grpc"])]
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_empty_folder_needs_no_server(tmp_path: Path) -> None:
    _, error = classify(tmp_path, code=1)
    assert error.startswith(f"error: {tmp_path}: no image in this folder\nhint: looked for .bmp .gif .jpeg .jpg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: IMAGE"),
        (("x.jpg", "--top", "0"), "--top: 0 is not above 0"),
        (("x.jpg", "--top", "many"), "--top: invalid positive int value: 'many'"),
        (("x.jpg", "--timeout", "nan"), "--timeout: nan is not above 0"),
        (("x.jpg", "--timeout", "inf"), "--timeout: inf is above 2147483647"),
        (("x.jpg", "--top", "99999999999999999999"), "--top: 99999999999999999999 is above 2147483647"),
        (("",), "IMAGE: the argument is empty"),
        (("x.jpg", "--model", ""), "--model: the argument is empty"),
        (("x.jpg", "--protocol", "tcp"), "invalid choice: 'tcp'"),
        (("x.jpg", "--url", "http://localhost:8000"), "--url: 'http://localhost:8000' is not HOST:PORT"),
        (("x.jpg", "--url", "localhost"), "--url: 'localhost' is not HOST:PORT"),
        (("x.jpg", "--url", "localhost:99999"), "--url: 'localhost:99999' is not HOST:PORT"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    output, error = classify(*arguments, code=2)
    assert output == ""
    assert message in error


@pytest.mark.parametrize(
    ("protocol", "url", "headers", "message"),
    [
        ("tcp", "localhost:8001", {}, "'tcp' is not a protocol of Triton's"),
        ("grpc", "http://localhost:8001", {}, "'http://localhost:8001' is not a valid address"),
        ("http", "http://localhost:8000", {}, "'http://localhost:8000' is not a valid address"),
        ("grpc", "localhost", {}, "'localhost' is not a valid address"),
        ("grpc", "localhost:8001", {"x": "\u00fc"}, "the header 'x' is not printable ASCII"),
    ],
)
def test_a_connection_refuses_what_is_none(protocol: str, url: str, headers: dict[str, str], message: str) -> None:
    with pytest.raises(ClientError, match=message):
        Connection(protocol, url, headers=headers)


@server
@both
def test_no_images_have_no_answers(urls: dict[str, str], protocol: str) -> None:
    with Connection(protocol, urls[protocol]) as connection:
        model = connection.find_model()
        assert connection.classify(model, []) == connection.classify_each(model, []) == []
        assert connection.detect(model, []) == connection.detect_each(model, []) == []


@server
def test_clients_can_be_copied_elsewhere(urls: dict[str, str], images: Path, tmp_path: Path) -> None:
    for script in CLIENTS.glob("*.py"):
        shutil.copy(script, tmp_path)
        tree = ast.walk(ast.parse(script.read_text()))
        used = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
        tree = ast.walk(ast.parse(script.read_text()))
        used |= {node.module or "" for node in tree if isinstance(node, ast.ImportFrom)}
        packages = {name.partition(".")[0] for name in used} - sys.stdlib_module_names
        optional = {"drawing.py": {"PIL"}, "app.py": {"PIL", "gradio"}}.get(script.name, set())
        assert packages - {other.stem for other in CLIENTS.glob("*.py")} <= {"numpy", "tritonclient"} | optional
    command = [sys.executable, "classify.py", str(images / "0-red.jpg"), "--url", urls["grpc"]]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert "red" in run.stdout
