"""`trtgen canary`: a server that answers as proved is proved again, and each planted fault is found and told."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from generator.canary.asking import Reading, ask_model
from generator.canary.metrics import CONTENT_TYPE, MetricsServer, format_metrics, write_metrics
from generator.cli import main
from generator.cli.canary import _watch
from generator.errors import ServerError, SourceError
from generator.gate.candidate import Candidate
from generator.gate.client import GrpcAddress
from generator.gate.published import find_published, read_candidate
from generator.pipeline import BuildOptions, build_repository
from generator.release.fetch import pull
from generator.release.manifest import MANIFEST_FILE
from generator.release.publish import push
from generator.server import endpoint
from generator.server.embedded import EmbeddedServer
from generator.server.hardening import OWNER_HEADER
from generator.server.secret_files import make_secrets
from generator.spec.file import make_spec
from generator.task import StageResult
from tests.server_parts import wait_until

CLASSIFIER, DETECTOR = "demo", "demo-detector"
TIMEOUT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server in explicit mode; faults are planted in `root`, while `proved` stays what it was."""

    server: EmbeddedServer
    root: Path
    proved: Path

    def ask(self, name: str, *, timeout_s: float = TIMEOUT_S) -> Reading:
        return ask_model(self.proved, name, GrpcAddress(url=self.server.grpc_url), timeout_s=timeout_s)

    def load(self, name: str) -> None:
        headers = {OWNER_HEADER: self.server.secret}
        endpoint.load_model(self.server.http_url, name, headers=headers, body={})

    @contextlib.contextmanager
    def planted(self, fault: Fault) -> Iterator[None]:
        """Serve the member with the fault, and afterwards the right one again."""
        folder, kept = self.root / fault.member, self.root.parent / "kept"
        shutil.copytree(folder, kept)
        try:
            fault.plant(folder)
            self.load(fault.member)
            yield
        finally:
            shutil.rmtree(folder)
            shutil.move(kept, folder)
            for path in folder.rglob("*"):  # the server loads what is newer than what it has
                os.utime(path)
            self.load(fault.member)


@pytest.fixture(scope="module")
def served(built_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("canary")
    proved = Path(shutil.copytree(built_demo, folder / "proved"))
    spec = make_spec([DETECTOR], batch={"max": 8}, instances={"preprocess": 1})[0]
    build_repository(spec, proved, BuildOptions(verify=False))
    root = Path(shutil.copytree(proved, folder / "served"))
    with (root / "demo" / "config.pbtxt").open("a") as config:  # which must not hide what changes behind it
        config.write("response_cache { enable: true }\n")
    with EmbeddedServer(root, explicit=True) as server:
        yield Served(server=server, root=root, proved=proved)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is planted in the folder of a member, in which stage it must show, and what must be said."""

    member: str
    plant: Callable[[Path], None]
    stage: str
    says: str

    @property
    def model(self) -> str:
        return self.member.partition("_")[0]


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return plant


def change_graph(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        model = onnx.load(folder / "1" / "model.onnx")
        change(model)
        onnx.save(model, folder / "1" / "model.onnx")

    return plant


def largest_weight(model: onnx.ModelProto, factor: float) -> None:
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    values = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def next_class_first(model: onnx.ModelProto) -> None:
    """Another order of the classes, as after a training with another list of folders."""
    order = np.roll(np.arange(10), 1)
    model.graph.initializer.append(numpy_helper.from_array(order, "order"))
    for node in model.graph.node:
        node.output[:] = ["before" if name == "PROBABILITIES" else name for name in node.output]
    model.graph.node.append(helper.make_node("Gather", ["before", "order"], ["PROBABILITIES"], axis=1))


def another_version(folder: Path) -> None:
    shutil.copytree(folder / "1", folder / "2")


def an_unrelated_model(folder: Path) -> None:
    """A model of the same name and shapes that answers texts."""
    (folder / "config.pbtxt").write_text(
        'backend: "python" max_batch_size: 8 input { name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] } '
        'output { name: "PROBABILITIES" data_type: TYPE_STRING dims: [ 10 ] } '
    )
    (folder / "1" / "model.py").write_text(
        "import numpy as np\n"
        "import triton_python_backend_utils as pb_utils\n\n"
        "class TritonPythonModel:\n"
        "    def execute(self, requests):\n"
        "        counts = [len(pb_utils.get_input_tensor_by_name(one, 'IMAGE').as_numpy()) for one in requests]\n"
        "        texts = [np.full((count, 10), b'cat', object) for count in counts]\n"
        "        return [pb_utils.InferenceResponse([pb_utils.Tensor('PROBABILITIES', one)]) for one in texts]\n"
    )


def without_labels(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    text = re.sub(r',\s*{\s*name: "LABELS"[^}]*}', "", text)
    (folder / CONFIG).write_text(text.replace('output_map { key: "LABELS" value: "LABELS" }', ""))


CODE, CONFIG = "1/model.py", "config.pbtxt"
FOUND = [
    Fault(
        member="demo_preprocess",  # what another Pillow does to single pixels
        plant=edit(CODE, "self.recipe.cropped(image)", "self.recipe.cropped(image) // 4 * 4"),
        stage="served pixels",
        says="differ by more than 1 level of 255",
    ),
    Fault(
        member="demo_preprocess",
        plant=edit(CONFIG, '"112"', '"104"'),
        stage="served ensemble",
        says="cosine",
    ),
    Fault(
        member="demo_preprocess",
        plant=edit(CONFIG, '"bilinear"', '"bicubic"'),
        stage="served pixels",
        says="the source was trained with bilinear",
    ),
    Fault(
        member="demo_classifier",
        plant=change_graph(lambda model: largest_weight(model, 1.05)),
        stage="served ensemble",
        says="cosine",
    ),
    Fault(
        member="demo_classifier",
        plant=change_graph(next_class_first),
        stage="served ensemble",
        says="top-1 0.0%",
    ),
    Fault(
        member="demo_classifier",
        plant=change_graph(lambda model: largest_weight(model, float("nan"))),
        stage="served ensemble",
        says="NaN or infinity for 40 of 40 images",
    ),
    Fault(member="demo_classifier", plant=another_version, stage="served version", says="version 2 of demo_classifier"),
    Fault(
        member="demo",
        plant=edit("labels.txt", "arrow\nhexagon", "hexagon\narrow"),
        stage="served ensemble",
        says="class 8 is served as 'hexagon', the source calls it 'arrow' (2 labels differ)",
    ),
    Fault(member="demo", plant=an_unrelated_model, stage="served ensemble", says="the answer cannot be compared"),
    Fault(
        member="demo-detector_postprocess",
        plant=edit(CONFIG, 'key: "score" value { string_value: "0.25"', 'key: "score" value { string_value: "0.27"'),
        stage="served postprocessing",
        says="differ from a plain loop",
    ),
    Fault(
        member="demo-detector_postprocess",
        plant=edit("labels.txt", "arrow\nhexagon", "hexagon\narrow"),
        stage="served postprocessing",
        says="labels.txt has its lines in another order",
    ),
    Fault(
        member="demo-detector_detector",
        plant=change_graph(lambda model: largest_weight(model, 1.05)),
        stage="served ensemble",
        says="agreement",
    ),
    Fault(
        member="demo-detector_preprocess",
        plant=edit(CODE, "self.recipe.cropped(image)", "self.recipe.cropped(image)[..., ::-1]"),
        stage="served pixels",
        says="BGR",
    ),
]
"""What a server answers, but otherwise than proved."""
REFUSED = [
    Fault(
        member="demo_preprocess",
        plant=edit(CONFIG, '"33554432"', '"33000"'),  # the warm-up image has less
        stage="served pixels",
        says="bytes, at most 33000 are accepted",
    ),
    Fault(
        member="demo_preprocess",
        plant=edit(
            CODE,
            "        return [self._respond(request)",
            "        __import__('time').sleep(3)\n        return [self._respond(request)",
        ),
        stage="served pixels",
        says="Deadline Exceeded",
    ),
    Fault(
        member="demo-detector",
        plant=without_labels,
        stage="served ensemble",
        says="demo-detector does not answer LABELS; it answers NUM_DETECTIONS, BOXES, SCORES, CLASSES",
    ),
]
"""What a server does not answer."""


@pytest.mark.server
@pytest.mark.parametrize("fault", FOUND, ids=lambda fault: f"{fault.member}: {fault.says}")
def test_a_wrong_answer_is_found(served: Served, fault: Fault) -> None:
    with served.planted(fault):
        reading = served.ask(fault.model)
        assert reading.is_answered
        assert not reading.is_proved
        told = {result.stage: f"{result.reason} {result.cause}" for result in reading.unproved}
        assert fault.says in told[fault.stage]


@pytest.mark.server
def test_what_is_served_as_proved_is_proved_again(served: Served) -> None:
    for name in (CLASSIFIER, DETECTOR):
        reading = served.ask(name)
        assert reading.is_proved, (reading.error, reading.unproved)
        assert reading.agreement == 1
        assert reading.seconds < TIMEOUT_S
        assert abs(reading.at_s - time.time()) < 60


@pytest.mark.server
def test_how_many_images_agree_is_told(served: Served) -> None:
    """Between none and all of them: those of which nothing is left are few."""
    weaker = Fault(member="demo_classifier", plant=change_graph(lambda m: largest_weight(m, 1.05)), stage="", says="")
    with served.planted(weaker):
        agreement = served.ask(CLASSIFIER).agreement
    assert agreement is not None
    assert 0 < agreement < 1


@pytest.mark.server
@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault.says)
def test_what_is_not_answered_is_told(served: Served, fault: Fault) -> None:
    """Neither right nor wrong: the share of images is not known."""
    with served.planted(fault):
        start_s = time.monotonic()
        reading = served.ask(fault.model, timeout_s=1)
        assert not reading.is_answered
        assert not reading.is_proved
        assert reading.error is not None
        assert fault.says in reading.error.message
        assert reading.agreement is None
        assert fault.stage not in [result.stage for result in reading.results]
        assert time.monotonic() - start_s < TIMEOUT_S  # a slow server is not asked on and on


# --- the command, once ---------------------------------------------------------------------------------------------


@pytest.mark.server
def test_once_prints_a_table_and_writes_metrics(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trtgen.prom"
    arguments = ["canary", served.server.grpc_url, "-r", str(served.proved), "--metrics-file", str(path)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        [CLASSIFIER, "served version"],
        [CLASSIFIER, "served pixels"],
        [CLASSIFIER, "served ensemble"],
        [DETECTOR, "served version"],
        [DETECTOR, "served pixels"],
        [DETECTOR, "served postprocessing"],
        [DETECTOR, "served ensemble"],
    ]
    assert all("proved" in line for line in lines)
    metrics = path.read_text()
    check_with_promtool(metrics)
    for name in (CLASSIFIER, DETECTOR):
        for metric in ("up", "agreement", "proved"):
            assert f'trtgen_canary_{metric}{{model="{name}"}} 1\n' in metrics
    assert path.stat().st_mode & 0o777 == 0o644  # node_exporter is another user
    with served.planted(FOUND[7]):
        assert main([*arguments[:2], CLASSIFIER, *arguments[2:]]) == 1
    captured = capsys.readouterr()
    assert re.search(r"demo  served ensemble  failed +class 8 is served as 'hexagon'", captured.out)
    assert "what is served is not what was proved" in captured.err
    assert "likely cause: labels.txt has its lines in another order" in captured.err
    metrics = path.read_text()
    assert 'trtgen_canary_up{model="demo"} 1\n' in metrics
    assert 'trtgen_canary_proved{model="demo"} 0\n' in metrics
    assert 'trtgen_canary_agreement{model="demo"} 0\n' in metrics
    assert DETECTOR not in metrics
    assert list(tmp_path.iterdir()) == [path]


def check_with_promtool(metrics: str) -> None:
    """Prometheus's own tool finds neither an error nor anything to complain about."""
    assert shutil.which("promtool"), "apt-get install prometheus"
    run = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


SLIM = """\
import sys
for name in ("torch", "torchvision", "onnx", "onnxruntime", "tensorrt", "jinja2", "onnxscript", "safetensors", "timm"):
    sys.modules[name] = None
from generator.cli import main
from generator.cli.canary import _watch
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.server
def test_records_and_references_are_enough_and_neither_torch_nor_onnxruntime_is_imported(
    served: Served, tmp_path: Path
) -> None:
    kept = ("trtgen.json", "reference.npz", "config.pbtxt")
    for path in served.proved.rglob("*"):
        if path.name in kept:
            target = tmp_path / path.relative_to(served.proved)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    command = [sys.executable, "-c", SLIM, "canary", served.server.grpc_url, "-r", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    with served.planted(FOUND[2]):  # where the likely cause is looked for, too
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 1
    assert "likely cause: interpolation is bicubic" in run.stderr
    assert "Traceback" not in run.stderr
    last_bit = edit(CODE, "self.recipe.cropped(image)", "self.recipe.cropped(image) ^ 1")
    with served.planted(Fault(member="demo-detector_preprocess", plant=last_bit, stage="", says="")):
        run = subprocess.run([*command, DETECTOR], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 1
    assert "demo-detector  served pixels          proved      within 1/255" in run.stdout
    assert "served ensemble not proved: it needs the package onnx, which is not installed" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.server
def test_a_release_is_told_by_its_id(served: Served, tmp_path: Path) -> None:
    without = served.ask(CLASSIFIER).expected
    assert without is not None
    assert re.fullmatch("[0-9a-f]{12}", without.release)
    root = tmp_path / "pulled"
    pushed = push(served.proved, str(tmp_path / "store"), allow_unproved=True)  # its own files are not all there
    pull(str(tmp_path / "store"), root)
    own = replace(served, proved=root)
    line = f'trtgen_release_info{{model="demo",release="{pushed.manifest.release}",version="1"}} 1\n'
    assert line in format_metrics([own.ask(CLASSIFIER)])
    (root / MANIFEST_FILE).write_text("[]")
    reading = own.ask(CLASSIFIER)
    assert reading.error is not None
    assert f"{MANIFEST_FILE} cannot be used" in reading.error.message


# --- again and again -----------------------------------------------------------------------------------------------


wait_for = partial(wait_until, timeout_s=90)


class Canary:
    """`trtgen canary --every 1s` as a process; `read` gives its metrics, `said` what it has printed so far."""

    def __init__(self, folder: Path, url: str, *arguments: str) -> None:
        folder.mkdir()
        self.file, self._log = folder / "trtgen.prom", folder / "log"
        command = [sys.executable, "-m", "generator", "canary", url, "--every", "1s", "--timeout", "5"]
        command += ["--metrics-port", "0", "--metrics-file", str(self.file), *arguments]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=log, stderr=log)
        assert wait_for(lambda: "metrics: " in self.said)
        self.url = self.said.partition("metrics: ")[2].split()[0]

    @property
    def said(self) -> str:
        return self._log.read_text()

    def read(self) -> str:
        with urllib.request.urlopen(self.url, timeout=10) as answer:
            assert answer.headers["Content-Type"] == CONTENT_TYPE
            return str(answer.read().decode())

    def tells(self, metric: str, value: int, model: str = CLASSIFIER) -> bool:
        return f'trtgen_canary_{metric}{{model="{model}"}} {value}\n' in self.read()

    def count_runs(self, runs: int) -> None:
        """Wait for so many more runs."""
        for _ in range(runs):
            last = self.read()
            assert wait_for(lambda last=last: self.read() != last)  # type: ignore[misc]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0, self.said
        assert "Traceback" not in self.said
        assert self.said.splitlines()[-1] == "ended by SIGTERM"
        assert {path.name for path in self.file.parent.iterdir()} == {"trtgen.prom", "log"}


def watch(every_s: float, *rounds: Reading) -> list[float]:
    """Let the watch have these readings, and return its pauses: one before each, and one after the last."""
    pauses, left = list[float](), list(rounds)

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if not left:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _watch(lambda: [left.pop(0)], lambda _: None, every_s, sleep)
    return pauses


ANSWERED = Reading(
    model="demo",
    expected=None,
    results=[StageResult(stage="served pixels", status="proved")],
    error=None,
    at_s=0.0,
    seconds=1.0,
)


def unanswered(message: str) -> Reading:
    return replace(ANSWERED, results=[], error=ServerError(message, hint="start it"))


def drifted(reason: str) -> Reading:
    return replace(ANSWERED, results=[StageResult(stage="served pixels", status="failed", reason=reason)])


@pytest.mark.parametrize(("every_s", "longest_start_s"), [(1.0, 0.1), (60.0, 6.0), (3600.0, 30.0)])
def test_pauses_are_a_tenth_longer_or_shorter(every_s: float, longest_start_s: float) -> None:
    first, *others = watch(every_s, *[ANSWERED] * 200)
    assert 0 <= first <= longest_start_s
    assert len(set(others)) > 100  # no clock
    assert all(0.9 * every_s <= pause <= 1.1 * every_s for pause in others)
    assert max(others) - min(others) > 0.1 * every_s


def test_a_reason_is_told_when_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    refused, timeout = "no answer at a:8001: connection refused", "no answer at a:8001: deadline exceeded after {} s"
    watch(
        1.0,
        ANSWERED,
        ANSWERED,
        unanswered(refused),
        unanswered(refused),
        unanswered(timeout.format(4.99)),  # another reason of the same type
        unanswered(timeout.format(10)),  # the same with another figure
        drifted("2 pixels differ"),
        drifted("3 pixels differ"),
        ANSWERED,
    )
    assert [line.removeprefix("error: ") for line in capsys.readouterr().err.splitlines()] == [
        "demo: proved, in 1.0 s",
        f"demo: {refused}",
        f"demo: {timeout.format(4.99)}",
        "demo: served pixels failed: 2 pixels differ",
        "demo: proved, in 1.0 s",
    ]


@pytest.mark.server
def test_the_watch_goes_on_while_models_come_and_go(served: Served, tmp_path: Path) -> None:
    canary = Canary(tmp_path / "canary", served.server.grpc_url, CLASSIFIER, "-r", str(served.proved))
    try:
        assert wait_for(lambda: canary.tells("proved", 1))
        unload(served, CLASSIFIER)
        assert wait_for(lambda: canary.tells("up", 0))
        assert canary.tells("proved", 0)
        assert "trtgen_canary_agreement{" not in canary.read()
        canary.count_runs(3)
        assert canary.said.count("does not serve demo;") == 1  # not every time
        check_with_promtool(canary.read())
        with pytest.raises(HTTPError, match="404"):
            urllib.request.urlopen(canary.url.replace("/metrics", "/"), timeout=10)
        served.load(CLASSIFIER)
        assert wait_for(lambda: canary.tells("proved", 1))
        assert canary.said.count("demo: proved, in ") == 2
        assert canary.file.read_text().startswith("# HELP trtgen_canary_up")
        canary.end()
    finally:
        canary.kill()
        served.load(CLASSIFIER)


def unload(served: Served, name: str) -> None:
    headers = {OWNER_HEADER: served.server.secret}
    url = f"http://{served.server.http_url}/v2/repository/models/{name}/unload"
    urllib.request.urlopen(urllib.request.Request(url, b"{}", headers, method="POST"), timeout=20).close()


@pytest.mark.server
def test_a_server_with_tls_that_starts_after_the_canary_and_ends_before_it(demo: Path, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    make_secrets(secrets, address="127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"127.0.0.1:{port}"
    canary = Canary(tmp_path / "canary", url, "-r", str(demo), "--secrets", str(secrets))
    try:
        no_server = "no Triton server answers gRPC"
        assert wait_for(lambda: no_server in canary.said.splitlines()[-1])
        with EmbeddedServer(demo, grpc_port=port, secrets_folder=secrets):
            assert wait_for(lambda: canary.tells("proved", 1))
            reading = ask_model(demo, CLASSIFIER, GrpcAddress(url=url), timeout_s=5)
            assert reading.error is not None
            assert "it may ask for TLS" in reading.error.message
        assert wait_for(lambda: canary.tells("up", 0))
        assert wait_for(lambda: no_server in canary.said.splitlines()[-1])
        canary.end()
    finally:
        canary.kill()


def test_what_is_no_triton_server_is_told(built_demo: Path) -> None:
    with MetricsServer("127.0.0.1", 0) as endpoint_:
        reading = ask_model(built_demo, CLASSIFIER, GrpcAddress(url=endpoint_.url), timeout_s=5)
    assert reading.error is not None
    assert "no Triton server answers gRPC" in reading.error.message


@pytest.mark.server
def test_a_configuration_that_is_no_text_is_told(served: Served, tmp_path: Path) -> None:
    root = Path(shutil.copytree(served.proved, tmp_path / "copy"))
    (root / "demo-detector_postprocess" / "config.pbtxt").write_bytes(b"\xff")
    reading = replace(served, proved=root).ask(DETECTOR)
    assert reading.error is not None
    assert "can't decode byte 0xff" in reading.error.message


def test_a_repository_that_goes_away_is_told(demo: Path) -> None:
    shutil.rmtree(demo / "demo_classifier" / "1")
    reading = ask_model(demo, CLASSIFIER, GrpcAddress(url="127.0.0.1:1"), timeout_s=5)
    assert reading.error is not None
    assert "reference.npz cannot be read" in reading.error.message
    shutil.rmtree(demo)
    reading = ask_model(demo, CLASSIFIER, GrpcAddress(url="127.0.0.1:1"), timeout_s=5)
    assert reading.error is not None
    assert reading.expected is None
    assert "trtgen_release_info{" not in format_metrics([reading])


def test_the_precision_of_a_graph_that_is_not_there_is_the_records(demo: Path) -> None:
    """Its limits follow from it. Older records do not tell it: then the graph is looked into."""
    path = demo / "demo" / "trtgen.json"
    record = json.loads(path.read_text())
    record["spec"] |= {"precision": "as-is", "source": "onnx", "onnx": "demo.onnx", "architecture": None}
    record["graph"]["low_precisions"] = ["int8"]
    path.write_text(json.dumps(record))
    (demo / "demo_classifier" / "1" / "model.onnx").unlink()

    def read() -> Candidate:
        (record,) = find_published(demo, ["demo"])
        return read_candidate(demo, record, read_graph=False)

    assert read().precision == "int8"
    del record["graph"]["low_precisions"]
    path.write_text(json.dumps(record))
    with pytest.raises(SourceError, match=r"model\.onnx cannot be read"):
        read()


# --- what is asked for in vain -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["127.0.0.1:1"], 1, "no Triton server answers gRPC at 127.0.0.1:1"),
        (["http://127.0.0.1:1"], 1, "http://127.0.0.1:1"),
        (["127.0.0.1:1", "toad"], 1, "holds no model 'toad'; it has demo"),
        (["127.0.0.1:1", "--secrets", "nowhere"], 1, "lacks ca.crt, client.crt, client.key"),
        (["127.0.0.1:1", "--metrics-file", "nowhere/trtgen.prom"], 1, "nowhere/trtgen.prom cannot be written"),
        (["127.0.0.1:1", "--metrics-port", "0"], 2, "--metrics-port goes with --every"),
        (["127.0.0.1:1", "--every", "5"], 2, "'5' is not an interval such as 30s, 5m or 1h"),
        (["127.0.0.1:1", "--every", "0s"], 2, "'0s' is not an interval"),
        (["127.0.0.1:1", "--every", "1m", "--metrics-port", "0", "--address", "192.0.2.1"], 1, "cannot be served at"),
        (["127.0.0.1:1", "--every", "1m", "--metrics-port", "0", "--address", "no host"], 1, "cannot be served at"),
        (["127.0.0.1:1", "-r", "nowhere"], 1, "holds no model made by trtgen"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(
    built_demo: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    given = arguments if "-r" in arguments else [*arguments, "-r", str(built_demo)]
    assert main(["canary", *given]) == code
    assert says in capsys.readouterr().err


def test_a_metrics_port_that_is_taken() -> None:
    with MetricsServer("127.0.0.1", 0) as first, pytest.raises(ServerError, match="Address already in use"):
        MetricsServer("127.0.0.1", int(first.url.rpartition(":")[2]))


def test_who_asks_for_metrics_and_hangs_up_is_not_heard_of(capfd: pytest.CaptureFixture[str]) -> None:
    before = {thread for thread in threading.enumerate() if thread.is_alive()}
    with MetricsServer("127.0.0.1", 0) as server:
        server.publish("x" * (64 << 20))  # so that it is writing when the other end goes
        host, _, port = server.url.partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert connection.recv(1)
    assert wait_until(lambda: set(threading.enumerate()) <= before, timeout_s=10)
    assert capfd.readouterr().err == ""


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    path = tmp_path / "trtgen.prom"
    path.mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        write_metrics(path, "")
    assert list(tmp_path.iterdir()) == [path]
