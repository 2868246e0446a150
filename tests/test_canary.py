"""`trtgen canary`: a server that answers as proved is proved again, and each planted fault is found and told."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from generator.canary.asking import RELEASE_FILE, Reading, ask_model
from generator.canary.metrics import CONTENT_TYPE, MetricsServer, format_metrics, write_metrics
from generator.cli import main
from generator.errors import ServerError
from generator.gate.client import GrpcAddress
from generator.pipeline import BuildOptions, build_repository
from generator.repository import Layout, read_record
from generator.server import endpoint
from generator.server.embedded import EmbeddedServer
from generator.server.hardening import OWNER_HEADER
from generator.server.secret_files import make_secrets
from generator.spec.file import make_spec
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
        plant=edit(CONFIG, 'key: "score"\n  value { string_value: "0.', 'key: "score"\n  value { string_value: "0.0'),
        stage="served postprocessing",
        says="differ from a plain loop",
    ),
    Fault(
        member="demo-detector_postprocess",
        plant=edit("labels.txt", "arrow\nhexagon", "hexagon\narrow"),
        stage="served postprocessing",
        says="is served as 'hexagon', the source calls it 'arrow'",
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
