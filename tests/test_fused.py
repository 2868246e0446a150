"""`layout: fused`: one model decodes and runs the network. Its answers, its gate, and the change of a layout."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient import grpc, http
from tritonclient.utils import InferenceServerException

from generator.demo.draw import draw_set
from generator.demo.scenes import draw_scenes
from generator.errors import RepositoryError, ServerError, SpecError
from generator.exporting import export_folder
from generator.gate.client import as_bytes
from generator.gate.published import verify_published
from generator.images.geometry import measure_geometry
from generator.images.served_pixels import prepare_without_torch
from generator.measure.perf.served import read_models
from generator.pipeline import BuildOptions, build_repository
from generator.repository import read_record
from generator.repository.publish import hash_tree
from generator.server.container import FUSED_IMAGE, Container
from generator.server.embedded import EmbeddedServer
from generator.server.ports import Ports
from generator.spec.exported import ExportRecord, write_export
from generator.spec.file import make_spec
from tests.test_repository import QUICK, tiny, words

Edit = Callable[[Path, str, str], None]
ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "clients" / "samples"
MOST = 8
# What is planted into a copy of the model: file, text, its replacement, and the stages that find it.
FAULTS: dict[str, tuple[str, str, str, str, list[str]]] = {
    "bgr": (
        "demo",
        "trtgen_preprocess.py",
        "return np.asarray(part).reshape(self.shape)",
        "return np.asarray(part).reshape(self.shape)[..., ::-1]",
        ["served pixels", "served model"],
    ),
    "shifted": (
        "demo",
        "trtgen_preprocess.py",
        "part = resize_part(image, (width, height), (start_x,",
        "part = resize_part(image, (width, height), (start_x + 3,",
        ["served pixels", "served model"],
    ),
    # the pixels that are told are right, those that the network gets are not
    "elsewhere": (
        "demo",
        "model.py",
        "self.network.run(decoded.pixels, decoded.begun)",
        "self.network.run(decoded.pixels[:, ::-1], decoded.begun)",
        ["served classifier", "served model"],
    ),
    "geometry": (
        "demo-detector",
        "model.py",
        "np.array(decoded.geometry, np.float32)",
        "np.array(decoded.geometry, np.float32)[:, [1, 0, 2, 3, 4, 5]]",
        ["served pixels", "served model"],
    ),
    "nms": (
        "demo-detector",
        "trtgen_postprocess.py",
        "apart |= classes[rest] != classes[best]",
        "apart &= classes[rest] != classes[best]",
        ["postprocessing"],
    ),
}


@pytest.fixture(scope="module")
def exports(built_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The graphs of the demo models, as `trtgen export` writes them."""
    folder = tmp_path_factory.mktemp("exports")
    export_folder(make_spec(["demo-detector"], target="onnxruntime", batch={"max": MOST})[0], folder / "demo-detector")
    shutil.copytree(built_demo / "demo_classifier/1", folder / "demo")  # exported once for all tests
    record = read_record(built_demo, "demo")
    assert record is not None
    names = ("made_by", "name", "description", "recipe", "packages", "head", "assumed", "repairs")
    written = ExportRecord(
        **{name: getattr(record, name) for name in names},
        **{name: record.spec[name] for name in ("target", "precision", "activation")},
        labels=record.contract["labels"],
        notes=[],
        keep=[],
        spec=record.spec,
        files=hash_tree(folder / "demo"),
    )
    write_export(written, folder / "demo")
    return {name: folder / name / "model.onnx" for name in ("demo", "demo-detector")}


@pytest.fixture(scope="module")
def root(built_demo: Path, exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both demo models in both layouts, the fused ones proved at every stage, and copies with a fault in each."""
    root = tmp_path_factory.mktemp("fused") / "model_repository"
    for name, graph in exports.items():
        (spec,) = make_spec([str(graph)], name=f"{name}-fused", layout="fused", max_queue_delay_microseconds=50_000)
        report = build_repository(spec, root, BuildOptions(require_all=True)).report
        assert report is not None
        assert {result.status for result in report.results} == {"proved"}
    shutil.copytree(built_demo, root, dirs_exist_ok=True)
    (spec,) = make_spec([str(exports["demo-detector"])], instances={"preprocess": 1})
    build_repository(spec, root, QUICK)
    for fault, (name, file, old, new, _) in FAULTS.items():
        shutil.copytree(root / f"{name}-fused", root / fault)
        changes = {
            "config.pbtxt": (f"{name}-fused", fault),
            "trtgen.json": (f"{name}-fused", fault),
            f"1/{file}": (old, new),
        }
        for path, (text, other) in changes.items():
            content = (root / fault / path).read_text()
            assert text in content
            (root / fault / path).write_text(content.replace(text, other))
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(root) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: EmbeddedServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as connection:
        yield connection


def ask(
    client: Any, model: str, files: list[bytes], outputs: list[str] | None = None, triton: Any = grpc
) -> dict[str, NDArray[Any]]:
    """Return what one request is answered, by the names of the response's own outputs."""
    tensor = triton.InferInput("IMAGE", [len(files), 1], "BYTES")
    tensor.set_data_from_numpy(as_bytes(files))
    asked = None if outputs is None else [triton.InferRequestedOutput(name) for name in outputs]
    result = client.infer(model, [tensor], outputs=asked)
    response = result.get_response()
    names = [one["name"] for one in response["outputs"]] if triton is http else [one.name for one in response.outputs]
    return {name: result.as_numpy(name) for name in names}


def draw(name: str, count: int) -> list[bytes]:
    return [image.jpeg for image in (draw_set(count, seed=9) if name == "demo" else draw_scenes(count, seed=9))]


def recipe_of(root: Path, name: str) -> Any:
    record = read_record(root, name)
    assert record is not None
    return record.recipe


@pytest.mark.server
@pytest.mark.parametrize("name", ["demo", "demo-detector"])
def test_answers_are_those_of_the_ensemble_to_the_bit(
    server: EmbeddedServer, client: grpc.InferenceServerClient, name: str
) -> None:
    files = draw(name, MOST)
    with http.InferenceServerClient(server.http_url) as over_http:
        for batch in (files[:1], files[:5], files):
            expected, answers = ask(client, name, batch), ask(client, f"{name}-fused", batch)
            assert answers.keys() == expected.keys()
            for output, values in expected.items():
                np.testing.assert_array_equal(answers[output], values, err_msg=output)
            again = ask(over_http, f"{name}-fused", batch, triton=http)
            assert all(np.array_equal(again[output], values) for output, values in expected.items())


@pytest.mark.server
def test_what_is_inside_is_told_to_who_asks_for_nothing_else(root: Path, client: grpc.InferenceServerClient) -> None:
    files = draw("demo-detector", 3)
    model, answered = "demo-detector-fused", ["NUM_DETECTIONS", "BOXES", "SCORES", "CLASSES", "LABELS"]
    inner = ask(client, model, files, ["PIXELS", "GEOMETRY", "DET_SCORES"])
    recipe = recipe_of(root, model)
    np.testing.assert_array_equal(inner["PIXELS"], prepare_without_torch(recipe, files))
    np.testing.assert_allclose(inner["GEOMETRY"], measure_geometry(recipe, files), rtol=1e-6)
    assert inner["DET_SCORES"].shape[0] == 3
    assert list(ask(client, model, files)) == answered  # all outputs: who names none
    assert list(ask(client, model, files, ["PIXELS", "BOXES"])) == ["BOXES"]
    assert list(ask(client, model, files, ["PIXELS"])) == ["PIXELS"]


@pytest.mark.server
def test_a_bad_image_is_named_and_the_others_of_its_execution_are_answered(client: grpc.InferenceServerClient) -> None:
    """And the requests of one execution, of several sizes and together more than a batch, each get their own rows."""
    files = draw("demo", 40)
    bad = b"\xff\xd8\xff garbage"
    sizes = [1, 5, 2, 8, 3, 1, 4, 7, 2, 6]
    parts = [files[start : start + size] for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False)]
    alone = {file: ask(client, "demo-fused", [file])["PROBABILITIES"][0] for file in files}
    parts[4] = [*parts[4][:1], bad, *parts[4][1:]]
    parts[6] = [bad]

    def count_executions() -> int:
        stats = client.get_inference_statistics("demo-fused").model_stats[0]
        return int(stats.execution_count)

    def answer(part: list[bytes]) -> NDArray[Any] | str:
        try:
            return ask(client, "demo-fused", part)["PROBABILITIES"]
        except InferenceServerException as error:
            return f"{error.status()} {error.message()}"

    before = count_executions()
    with ThreadPoolExecutor(len(parts)) as pool:
        answers = list(pool.map(answer, parts))
    assert count_executions() - before < len(parts)
    for number, (part, given) in enumerate(zip(parts, answers, strict=True)):
        if number in (4, 6):
            place = f"IMAGE[{part.index(bad)}] of {len(part)}: "
            assert isinstance(given, str)
            assert given.startswith("StatusCode.INVALID_ARGUMENT")
            assert place + "not an image in one of the formats" in given
            with pytest.raises(InferenceServerException) as caught:
                ask(client, "demo", part)
            assert place in caught.value.message()
        else:
            assert not isinstance(given, str)
            np.testing.assert_allclose(given, [alone[file] for file in part], atol=1e-6)


@pytest.mark.server
def test_the_gate_finds_planted_faults(root: Path, server: EmbeddedServer) -> None:
    for report in verify_published(root, list(FAULTS), grpc_url=server.grpc_url):
        *_, stages = FAULTS[report.model]
        assert [result.stage for result in report.failed] == stages, report.model


@pytest.mark.server
def test_clients_and_measuring_know_it(server: EmbeddedServer) -> None:
    both = (("classify.py", "demo", "classes"), ("detect.py", "demo-detector", "detections"))
    for script, task, key in both:
        answers = []
        for model in (task, f"{task}-fused"):
            command = [
                sys.executable,
                str(ROOT / "clients" / script),
                "--json",
                "--url",
                server.grpc_url,
                "--model",
                model,
            ]
            run = subprocess.run([*command, str(SAMPLES)], capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stderr
            answers.append([json.loads(line) for line in run.stdout.splitlines()])
        assert len(answers[0]) == 3
        assert key in answers[0][0]
        assert answers[1] == answers[0]
    _, (only,) = read_models("grpc", server.grpc_url, "demo-fused")
    assert (only.image_input, only.members, only.is_fused, only.on_cpu) == ("IMAGE", (), True, True)


# --- the spec and the repository --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"layout": "fused", "instances": {"preprocess": 2}},
            "instances: preprocess is no member with layout: fused, which has fused",
        ),
        (
            {"layout": "fused", "config": {"ensemble": "response_cache { enable: true }"}},
            "config: ensemble is no member with layout: fused",
        ),
        (
            {"instances": {"fused": 2}},
            "fused is no member with layout: ensemble, which has preprocess, classifier, ensemble",
        ),
        ({"layout": "one"}, "layout"),
        (
            {"layout": "fused", "config": {"fused": 'parameters { key: "crop" value { string_value: "1 1" } }'}},
            "parameters crop cannot be given here: it is part of the recipe that was proved",
        ),
        (
            {"layout": "fused", "config": {"fused": 'parameters { key: "network_input" value { string_value: "x" } }'}},
            "parameters network_input cannot be given here: it follows from what was built",
        ),
    ],
)
def test_what_belongs_to_the_other_layout_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(["demo"], **given)
    assert words in str(caught.value)


def test_a_fused_model_is_one_folder_with_all_that_it_runs(tmp_path: Path) -> None:
    spec = tiny(tmp_path, layout="fused", instances=None)
    assert set(words(tmp_path, spec).values()) == {"create"}
    repository = tmp_path / "repo"
    files = [path for path in hash_tree(repository) if not path.startswith("tiny/1/trtgen_runtime/")]
    assert files == [
        "tiny/1/model.onnx",
        "tiny/1/model.py",
        "tiny/1/reference.npz",
        "tiny/1/trtgen_onnxruntime.py",
        "tiny/1/trtgen_preprocess.py",
        "tiny/config.pbtxt",
        "tiny/labels.txt",
        "tiny/trtgen.json",
        "tiny/warmup/image.bin",
    ]
    record = read_record(repository, "tiny")
    assert record is not None
    assert set(record.files) == set(hash_tree(repository)) - {"tiny/trtgen.json"}
    assert set(words(tmp_path, spec).values()) == {"identical"}
    ports = Ports(http=8000, grpc=8001, metrics=8002)
    with pytest.raises(ServerError, match="tiny is a fused model, and trtgen-serving") as caught:
        Container(repository, ports=ports, gpus=False).check()
    assert caught.value.fields == {"image": FUSED_IMAGE}
    Container(repository, ports=ports, gpus=False, image=FUSED_IMAGE).check()


def test_other_code_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code lies in the version directory, which is never changed."""
    from generator.render import read_runtime

    spec = tiny(tmp_path, layout="fused", instances=None)
    words(tmp_path, spec)
    other = {**read_runtime(), "trtgen_runtime/runtime/cpu_images.py": b"# another one\n"}
    monkeypatch.setattr("generator.triton.fused.read_runtime", lambda: other)
    changes = words(tmp_path, spec)
    assert changes["tiny/2/trtgen_runtime/runtime/cpu_images.py"] == "create"
    assert "tiny/1/model.py" not in changes


def test_a_queue_delay_is_no_new_version(tmp_path: Path) -> None:
    words(tmp_path, tiny(tmp_path, layout="fused", instances=None))
    changes = words(tmp_path, tiny(tmp_path, layout="fused", instances=None, max_queue_delay_microseconds=9))
    assert {path for path, word in changes.items() if word != "identical"} == {"tiny/config.pbtxt", "tiny/trtgen.json"}


def test_another_layout_is_another_contract(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    ensemble, fused = tiny(tmp_path), tiny(tmp_path, layout="fused", instances=None)
    words(tmp_path, ensemble)
    before = hash_tree(repository)
    for options in (QUICK, replace(QUICK, dry_run=True)):
        with pytest.raises(RepositoryError, match="layout: ensemble -> fused") as caught:
            build_repository(fused, repository, options)
        assert caught.value.fields == {"replace": True}
        assert hash_tree(repository) == before
    changes = words(tmp_path, fused, replace(QUICK, replace=True))
    assert {path.split("/")[0] for path, word in changes.items() if word == "remove"} == {
        "tiny",
        "tiny_classifier",
        "tiny_preprocess",
    }
    assert [path.name for path in repository.iterdir()] == ["tiny"]
    assert (repository / "tiny/2/model.onnx").is_file()
    assert not (repository / "tiny/1").exists()
    # and back; what somebody put where the members will be is not ours
    with pytest.raises(RepositoryError, match="layout: fused -> ensemble"):
        build_repository(ensemble, repository, QUICK)
    (repository / "tiny_preprocess").mkdir()
    with pytest.raises(RepositoryError, match="tiny_preprocess exists, but trtgen did not make it"):
        build_repository(ensemble, repository, replace(QUICK, replace=True))
    (repository / "tiny_preprocess").rmdir()
    words(tmp_path, ensemble, replace(QUICK, replace=True))
    assert sorted(path.name for path in repository.iterdir()) == ["tiny", "tiny_classifier", "tiny_preprocess"]
    assert [path.name for path in (repository / "tiny").iterdir() if path.is_dir()] == ["3"]
