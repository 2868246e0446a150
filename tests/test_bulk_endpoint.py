"""Bulk work that servers answer: the clients' answers, and every image once whatever happens to the servers."""

from __future__ import annotations

import functools
import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from pyarrow import parquet
from tritonclient.utils import InferenceServerException

from generator.bulk import endpoint
from generator.bulk.channel import describe_channel, is_reachable
from generator.bulk.endpoint import EndpointStep, ServedModel, find_served_model, make_endpoint_steps
from generator.bulk.images import as_column
from generator.bulk.results import open_results
from generator.bulk.run import run_bulk
from generator.bulk.sources import open_source
from generator.bulk.step import LocalStep
from generator.cli import main
from generator.demo.draw import draw_set
from generator.errors import BulkError
from generator.events import Doing, Done
from generator.server.secret_files import make_secrets
from tests.server_parts import read_settled
from tests.test_aio import DEAD, Served, count_work
from tests.tiny_repository import LABELS, build_tiny_repository, make_image

ROOT = Path(__file__).parents[1]
LIMIT = 4
server = pytest.mark.server


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    for head in ("flawed", "binary"):
        build_tiny_repository(root, name=head, head=head)
    build_tiny_repository(root, name="single", max_batch_size=0)
    return build_tiny_repository(root, max_batch_size=LIMIT)


@pytest.fixture(scope="module")
def steady(repository: Path) -> Iterator[Served]:
    served = Served(repository)
    yield served
    served.kill()


@pytest.fixture
def mortal(repository: Path) -> Iterator[Served]:
    served = Served(repository)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 images, one of a hundred broken; requests of four exceed what gRPC repeats by default."""
    folder = tmp_path_factory.mktemp("photos")
    images = [make_image(label, size=(400, 400)) for label in LABELS]
    for number in range(2000):
        data = b"no image" if number % 100 == 50 else images[number % len(LABELS)]
        (folder / f"{number:06d}.jpg").write_bytes(data)
    return folder


def check_rows(results: Path, count: int) -> None:
    rows = parquet.read_table(results).to_pylist()
    assert [row["item"] for row in rows] == list(range(count))
    for number, row in enumerate(rows):
        if number % 100 == 50:
            assert row["classes"] is None
            assert row["error"].endswith("image 0 of 1 cannot be decoded")
        else:
            assert row["classes"][0]["label"] == LABELS[number % len(LABELS)]
            assert row["error"] is None


def answer(photos: Path, results: Path, *endpoints: str, on_event: Any = lambda _: None, timeout_s: float = 60) -> None:
    model = find_served_model(endpoints, "tiny", "classification", None)
    steps = make_endpoint_steps(endpoints, model, top=5, in_flight=4, timeout_s=timeout_s, secrets=None, workers=1)
    with open_results(results, model.identify(5), rows_per_part=300) as opened:
        run_bulk(open_source(str(photos)), opened, steps, batch_size=LIMIT, on_event=on_event)


def test_the_channel_of_the_clients_is_the_same() -> None:
    assert (ROOT / "clients" / "channel.py").read_text() == (ROOT / "generator" / "bulk" / "channel.py").read_text()


def test_hosts_are_looked_up_where_there_are_several() -> None:
    assert describe_channel(["gpu:8001"])[0] == "dns:///gpu:8001"
    assert describe_channel(["127.0.0.1:1", "localhost:2"])[0] == "ipv4:127.0.0.1:1,127.0.0.1:2"
    with pytest.raises(OSError, match=r"a\.\.b:1: no IPv4 address is known of this host"):
        describe_channel(["127.0.0.1:1", "a..b:1"])
    assert not is_reachable("a..b:1")
    with pytest.raises(OSError, match=r"nobody\.invalid:1: no IPv4 address is known of this host"):
        describe_channel(["127.0.0.1:1", "nobody.invalid:1"])


MODEL = ServedModel(
    name="tiny",
    version="7",
    task="classification",
    input="IMAGE",
    outputs={"CLASSES": True},
    max_batch_size=8,
    negative_label=None,
)
BATCH = {"path": as_column(["-"] * 5), "image": as_column([b"0123"] * 5), "error": as_column([None] * 5)}


@pytest.mark.parametrize("status", ["INTERNAL", "NOT_FOUND", "UNAVAILABLE"])
def test_what_is_not_the_fault_of_an_image_ends_it(status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = InferenceServerException("the model is gone", status=f"StatusCode.{status}")
    monkeypatch.setattr(EndpointStep, "_infer", Mock(side_effect=error))
    with pytest.raises(BulkError, match=f"tiny at {DEAD} does not answer: the model is gone"):
        EndpointStep([DEAD], MODEL)(BATCH)


def test_requests_name_the_version_and_are_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_REQUEST_BYTES", 8)
    step = EndpointStep([DEAD], MODEL)
    client = Mock()
    client.infer.return_value.as_numpy.return_value = as_column([[b"0.5:0:red"]] * 2)
    monkeypatch.setattr(step, "_client", client)
    step(BATCH)
    assert [call.args[1][0].shape()[0] for call in client.infer.call_args_list] == [2, 2, 1]
    assert {call.kwargs["model_version"] for call in client.infer.call_args_list} == {"7"}


@pytest.mark.parametrize(
    ("in_flight", "workers", "shares"), [(8, 1, [8]), (8, 3, [3, 3, 2]), (8, 4, [2] * 4), (2, 3, [1, 1])]
)
def test_workers_share_the_requests_in_flight(in_flight: int, workers: int, shares: list[int]) -> None:
    steps = make_endpoint_steps([DEAD], MODEL, top=5, in_flight=in_flight, timeout_s=1, secrets=None, workers=workers)
    assert [make_step().calls_at_once for make_step in steps] == shares


@server
def test_rows_are_those_of_the_local_engine(built_demo: Path) -> None:
    files = [image.jpeg for image in draw_set(20, seed=3)]
    files[3:6] = [b"", b"no image", files[3][: len(files[3]) // 2]]
    batch = {"path": as_column([str(n) for n in range(20)]), "image": as_column(files), "error": as_column([None] * 20)}
    local = LocalStep(built_demo, "demo", top=3)(batch)
    served = Served(built_demo)
    try:
        model = find_served_model([served.url], None, "classification", None)
        answers = EndpointStep([served.url], model, top=3)(batch)
    finally:
        served.kill()
    assert list(answers) == list(local) == ["path", "classes", "error"]
    assert list(answers["error"]) == list(local["error"])
    assert sum(error is not None for error in answers["error"]) == 3
    for here, there in zip(local["classes"], answers["classes"], strict=True):
        if here is not None:
            assert [row["label"] for row in there] == [row["label"] for row in here]
            assert [row["index"] for row in there] == [row["index"] for row in here]
            np.testing.assert_allclose([r["score"] for r in there], [r["score"] for r in here], atol=1e-4)


@server
def test_models_are_asked_as_they_take_it(steady: Served) -> None:
    images = [make_image(label) for label in ("red", "green", "blue", "red", "blue")]
    batch = {"path": as_column(["-"] * 5), "image": as_column(images), "error": as_column([None] * 4 + ["gone"])}

    def ask(name: str, top: int | None = None) -> tuple[list[Any], list[Any]]:
        model = find_served_model([DEAD, steady.url], name, "classification", None)
        answers = EndpointStep([DEAD, steady.url], model, top=top, timeout_s=20)(batch)
        assert answers["error"][4] == "gone"
        assert answers["classes"][4] is None
        return list(answers["classes"][:4]), list(answers["error"][:4])

    before = count_work(steady, "single")
    for name in ("tiny", "single"):
        classes, errors = ask(name)
        assert [row[0]["label"] for row in classes] == ["red", "green", "blue", "red"]
        assert [len(row) for row in classes] == [3] * 4
        assert errors == [None] * 4
    assert read_settled(lambda: count_work(steady, "single"), before)[0] - before[0] == 4
    assert [len(row) for row in ask("tiny", 1)[0]] == [1] * 4
    classes, _ = ask("binary")
    assert [row[0]["label"] for row in (classes[0], classes[1])] == ["red", "not red"]
    assert classes[1][0]["index"] is None
    classes, errors = ask("flawed")
    assert errors[2] is not None
    assert errors[2].endswith("is nan, a number was expected")
    assert (classes[2], errors[0]) == (None, None)


@server
def test_a_model_that_is_not_there(steady: Served) -> None:
    for name, task, words in (
        (None, "classification", "says of 4 models that they are for classification: binary, flawed, single, tiny"),
        (None, "detection", "says of 0 models that they are for detection"),
        ("nothing", "classification", "does not serve nothing; it serves binary, binary_classifier"),
        ("tiny", "detection", "does not take encoded images for detection"),
        ("tiny_classifier", "classification", "does not take encoded images for classification"),
    ):
        with pytest.raises(BulkError, match=words):
            find_served_model([steady.url], name, task, None)
    with pytest.raises(BulkError, match=f"no Triton server answers gRPC: {DEAD}: "):
        find_served_model([DEAD], "tiny", "classification", None)


@server
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_restart_in_the_middle_loses_and_doubles_nothing(
    mortal: Served, photos: Path, tmp_path: Path, how: str
) -> None:
    began = threading.Event()
    restarts: list[float] = []

    def restart() -> None:
        assert began.wait(30)
        getattr(mortal, how)()
        time.sleep(0.5)
        mortal.start_again()
        restarts.append(time.monotonic())

    def watch(event: Doing | Done) -> None:
        if isinstance(event, Doing) and not event.part.startswith("0 "):
            began.set()

    thread = threading.Thread(target=restart)
    thread.start()
    answer(photos, tmp_path / "results", mortal.url, on_event=watch)
    ended = time.monotonic()
    thread.join()
    check_rows(tmp_path / "results", 2000)
    assert restarts[0] < ended, "the work ended before the server did"


@server
def test_an_endpoint_that_is_gone_ends_it_and_another_one_goes_on(
    mortal: Served, steady: Served, photos: Path, tmp_path: Path
) -> None:
    killed = threading.Event()

    def kill(event: Doing | Done) -> None:
        if isinstance(event, Doing) and not event.part.startswith("0 ") and not killed.is_set():
            killed.set()
            mortal.kill()

    with pytest.raises(BulkError) as caught:
        answer(photos, tmp_path / "results", mortal.url, on_event=kill, timeout_s=3)
    assert caught.value.message == f"no server can be reached any more at {mortal.url}, 3 s after the request"
    done = parquet.read_table(tmp_path / "results").num_rows
    assert 0 < done < 2000
    before = count_work(steady)[1]
    answer(photos, tmp_path / "results", DEAD, steady.url)
    check_rows(tmp_path / "results", 2000)
    assert count_work(steady)[1] - before < 2000


@server
def test_a_hidden_limit_is_learnt_from_the_first_refusal(steady: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.bulk.endpoint._read_config", lambda *_: None)
    batch = {"path": as_column(["-"] * 9), "image": as_column([make_image("red")] * 9), "error": as_column([None] * 9)}
    for name, requests in (("tiny", 3), ("single", 9)):
        model = find_served_model([steady.url], name, "classification", None)
        step = EndpointStep([steady.url], model)
        for _ in range(2):
            before = count_work(steady, name)
            answers = step(batch)
            assert list(answers["error"]) == [None] * 9
            assert [row[0]["label"] for row in answers["classes"]] == ["red"] * 9
            assert read_settled(functools.partial(count_work, steady, name), before)[0] - before[0] == requests


@server
def test_the_command(steady: Served, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for path in itertools.islice(sorted(photos.iterdir()), 120):
        shutil.copy(path, tmp_path / "photos")
    arguments = ["classify-all", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--model", "tiny"]
    assert main([*arguments, "--endpoint", f"{DEAD},{steady.url}", "--in-flight", "3"]) == 0
    check_rows(tmp_path / "out", 120)
    output, said = capsys.readouterr()
    assert output == f"{tmp_path}/out\n"
    assert "1 of 120 images (0.8%) have no answer" in said


@server
def test_the_command_with_certificates(repository: Path, photos: Path, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    make_secrets(secrets, address="127.0.0.1")
    served = Served(repository, secrets_folder=secrets)
    try:
        arguments = ["classify-all", f"{photos}/00000*.jpg", "--out", str(tmp_path / "out"), "--model", "tiny"]
        assert main([*arguments, "--endpoint", f"{DEAD},{served.url}", "--secrets", str(secrets)]) == 0
    finally:
        served.kill()
    assert parquet.read_table(tmp_path / "out").num_rows == 10


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--endpoint", "grpc://a:8001"), 2, "'grpc://a:8001' is not HOST:PORT"),
        (("--endpoint", "a:8001,"), 2, "'' is not HOST:PORT"),
        (("--endpoint", "a..b:8001"), 1, "no Triton server answers gRPC: a..b:8001: "),
        (("--endpoint", DEAD, "--timeout", "inf"), 2, "should be less than or equal to 2147483647"),
        (("--endpoint", DEAD, "--timeout", "1e10"), 2, "should be less than or equal to 2147483647"),
        (("--batch", "99999999999999999999"), 2, "should be less than or equal to 65536"),
        (("--secrets", "certificates"), 2, "--secrets goes with --endpoint"),
        (("--endpoint", DEAD), 1, f"no Triton server answers gRPC: {DEAD}: "),
    ],
)
def test_the_command_with_bad_options(
    options: tuple[str, ...], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").touch()
    assert main(["classify-all", str(tmp_path), "--out", str(tmp_path / "out"), *options]) == code
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
