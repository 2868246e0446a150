"""Properties that hold for whatever comes in, tried on what hypothesis thinks of.

The examples are the same in every run (`derandomize`), so that a failure in CI is one on every machine.
"""

from __future__ import annotations

import base64
import random
import re
import shutil
import string
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from google.protobuf import text_format
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from generator.artifact import Artifact
from generator.demo.draw import LABELS
from generator.errors import SpecError
from generator.pipeline import BuildOptions, build_repository
from generator.server.embedded import EmbeddedServer
from generator.spec.file import load_spec, make_spec
from generator.spec.model import ModelSpec
from generator.spec.recipe import IMAGENET, Recipe
from generator.task import find_task
from generator.triton.check import check_members
from tests.test_images import ANSWERED, STATUS, Caller, encode, stubs
from tests.test_model_config import GRAPH, HEAD
from tests.test_preprocess import read, step
from tests.tiny_onnx import write_tiny_onnx

__all__ = ["step"]  # a fixture

CLASSES = 60
settings.register_profile(
    "same every time",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
SAME = settings.get_profile("same every time")


def times(count: int) -> settings:
    return settings(SAME, max_examples=count)


# --- specs ------------------------------------------------------------------------------------------------------------

EDGE = st.integers(1, 8192)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", fullmatch=True).filter(lambda name: ".." not in name)
# Tensors of an ONNX file may be called anything.
TENSORS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
# Triton takes one line for one label, and a C string.
LABEL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), min_size=1, max_size=40).filter(
    lambda label: label.strip() != "" and not label.startswith("\ufeff")
)


@st.composite
def recipes(draw: st.DrawFn, most: int = 8192) -> dict[str, Any]:
    crop = draw(st.tuples(st.integers(1, most), st.integers(1, most)))
    return {
        "resize": draw(
            st.one_of(
                st.integers(max(crop), 8192),
                st.tuples(st.integers(crop[0], 8192), st.integers(crop[1], 8192)).map(list),
            )
        ),
        "crop": draw(st.just(list(crop)) if crop[0] != crop[1] else st.sampled_from([crop[0], list(crop)])),
        "interpolation": draw(st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])),
        "mean": draw(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3)),
        "std": draw(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3)),
        "exif": draw(st.sampled_from(["ignore", "apply"])),
        "max_pixels": draw(st.integers(500_000, 1_000_000_000)),
        "max_bytes": draw(st.integers(250_000, 2_000_000_000)),
    }


@st.composite
def queues(draw: st.DrawFn, maximum: int) -> dict[str, Any]:
    levels = draw(st.none() | st.integers(2, 100))
    timeout = draw(st.none() | st.integers(1_000_001, 3_600_000_000))
    return {
        "max_size": draw(st.none() | st.integers(1, 1_000_000)),
        "timeout_microseconds": timeout,
        "timeout_action": draw(st.sampled_from(["reject", "delay"])) if timeout else None,
        "priority_levels": levels,
        "default_priority": draw(st.none() | st.integers(1, levels)) if levels else None,
        "preferred_batch_sizes": draw(st.lists(st.integers(1, maximum), max_size=4)),
    }


@st.composite
def specs(
    draw: st.DrawFn, *, crop: int = 8192, batch: int = 1024, instances: tuple[int, int] = (256, 64)
) -> dict[str, Any]:
    """A valid entry of models.yaml for the ONNX file tiny.onnx."""
    maximum = draw(st.integers(1, batch))
    spec: dict[str, Any] = {
        "name": draw(NAMES),
        "source": "onnx",
        "onnx": "tiny.onnx",
        "labels": "index",
        "recipe": draw(recipes(crop)),
        "activation": draw(st.sampled_from(["softmax", "sigmoid", "none"])),
        "batch": {"max": maximum, "opt": draw(st.integers(1, maximum))},
        "instances": {
            "preprocess": draw(st.integers(1, instances[0])),
            "classifier": draw(st.integers(1, instances[1])),
        },
        "max_queue_delay_microseconds": draw(st.integers(0, 1_000_000)),
        "queue": draw(st.none() | queues(maximum)),
        "versions": draw(
            st.one_of(st.integers(1, 100), st.just("all"), st.lists(st.integers(1, 1_000_000), min_size=1, max_size=9))
        ),
    }
    return spec


def validate(*models: dict[str, Any], folder: Path) -> list[ModelSpec]:
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump({"models": list(models)}, allow_unicode=True), encoding="utf-8")
    return load_spec(path)


@times(120)
@given(data=specs(), classes=st.integers(1, 1_000_000), tensors=st.tuples(TENSORS, TENSORS))
@example(data={"name": f"Z{string.digits}_.-."}, classes=1, tensors=('"', "\\"))
def test_valid_specs_become_valid_configurations(
    tmp_path: Path, step: Any, data: dict[str, Any], classes: int, tensors: tuple[str, str]
) -> None:
    spec = validate(data, folder=tmp_path)[0]
    recipe = spec.recipe.apply_to(IMAGENET)
    graph = replace(
        GRAPH,
        input=replace(GRAPH.input, name=tensors[0], shape=(-1, *recipe.crop, 3)),
        outputs=(replace(GRAPH.output, name=tensors[1], shape=(-1, classes)),),
    )
    artifact = Artifact(onnx=graph, head=HEAD, recipe=recipe, labels=("",) * classes, description="")
    members = find_task(spec.task).make_members(spec, artifact)
    texts = {member.config.name: member.render() for member in members}
    check_members(texts, members, artifact)
    parsed = {name: text_format.Parse(text, model_config_pb2.ModelConfig()) for name, text in texts.items()}
    preprocess, classifier, ensemble = parsed.values()
    assert list(parsed) == [f"{spec.name}_preprocess", f"{spec.name}_classifier", spec.name]
    assert {config.max_batch_size for config in parsed.values()} == {spec.batch.max}
    assert (classifier.input[0].name, ensemble.output[0].name) == tensors
    assert list(classifier.output[0].dims) == list(ensemble.output[0].dims) == [classes]
    assert preprocess.instance_group[0].count == spec.instance_counts()["preprocess"]
    assert classifier.instance_group[0].count == spec.instance_counts()["classifier"]
    if spec.queue is not None:
        policy = classifier.dynamic_batching.default_queue_policy
        assert policy.max_queue_size == (spec.queue.max_size or 0)
        assert policy.default_timeout_microseconds == (spec.queue.timeout_microseconds or 0)
        assert list(classifier.dynamic_batching.preferred_batch_size) == list(spec.queue.preferred_batch_sizes)
    if spec.batch.max > 1:
        assert classifier.dynamic_batching.max_queue_delay_microseconds == spec.queue_delay_microseconds()
    seen = step.Recipe({key: {"string_value": it.string_value} for key, it in preprocess.parameters.items()})
    assert seen.crop == recipe.crop
    assert seen.resize == ([recipe.resize] if isinstance(recipe.resize, int) else list(recipe.resize))
    assert seen.filter == Image.Resampling[recipe.interpolation.upper()]
    assert (seen.apply_exif, seen.max_pixels, seen.max_bytes) == (
        recipe.exif == "apply",
        recipe.max_pixels,
        recipe.max_bytes,
    )


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9) | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9) | st.integers(), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(sorted(ModelSpec.model_fields))


def load_or_refuse(load: Callable[[], list[ModelSpec]]) -> None:
    """What a user can write is a list of specs, or is refused in words and with a hint."""
    try:
        specs = load()
    except SpecError as error:
        words = [*error.problems, error.hint or ""]
    else:
        words = [spec.name for spec in specs]
    assert words
    assert all(word.strip() for word in words)


def write_yaml(path: Path, data: Any) -> Path:
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


@times(200)
@given(good=specs(), wrong=st.dictionaries(FIELDS | st.text(max_size=9), ANYTHING, min_size=1, max_size=3))
def test_wrong_fields_are_refused_in_words(tmp_path: Path, good: dict[str, Any], wrong: dict[str, Any]) -> None:
    path = tmp_path / "models.yaml"
    load_or_refuse(partial(load_spec, write_yaml(path, {"models": [{**good, **wrong}]})))
    nested = {key: {**good[key], **wrong} for key in ("recipe", "batch", "instances")}
    load_or_refuse(partial(load_spec, write_yaml(path, {"models": [{**good, **nested}]})))
    wrong.pop("name", None)
    load_or_refuse(partial(make_spec, [good["name"]], **wrong))


@times(150)
@given(
    data=ANYTHING
    | st.fixed_dictionaries({"models": ANYTHING})
    | st.fixed_dictionaries({"made_by": ANYTHING, "spec": ANYTHING})
)
def test_any_data_is_specs_or_refused(tmp_path: Path, data: Any) -> None:
    load_or_refuse(partial(load_spec, write_yaml(tmp_path / "models.yaml", data)))


# What has a meaning in YAML, so that random text gets beyond the first line.
YAML_WORDS = st.sampled_from(
    [*"-?:,[]{}#&*!|>'\"%@`~=<.\n\t ", "\n  ", "---", "...", "- ", ": ", "&a ",
     "*a", "<<: ", "!!int ", "!!float ", "!!bool ",
     "!!set ", "!!omap ", "!!pairs ", "!!timestamp ", "!!binary ", "!!python/name:os.system ", "models", "name",
     "2024-13-45", "0b", "0x_", "0b_", "1:99:1", "1_000", ".nan", "-.inf", "1e999", "0o7", "demo", "true",
     "\\ud800", "\\U00110000", "\ufeff", "\x85", "\u2028"]
)  # fmt: skip


@times(600)
@given(
    text=st.lists(YAML_WORDS | st.text(max_size=3), max_size=30).map("".join).map(str.encode) | st.binary(max_size=60)
)
@example(text=b"models: 2024-13-45")
@example(text=b"models: 0b_")
@example(text=b"models: !!int ")
@example(text=b"models: !!bool x")
@example(text=b"models: !!timestamp x")
@example(text=b"[" * 5000)
@example(text=b"models: [{name: demo, seed: 0x" + b"f" * 5000 + b"}]")
@example(text=b"models: &a [*a]")
@example(text=b"models: [" + b"9" * 5000 + b"]")
def test_any_text_is_specs_or_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "models.yaml"
    path.write_bytes(text)
    load_or_refuse(partial(load_spec, path))


# --- images -----------------------------------------------------------------------------------------------------------

SMALL = Image.fromarray(np.random.default_rng(2).integers(0, 256, (29, 37, 3), dtype=np.uint8))
SMALL_JPEGS = [encode(SMALL, "JPEG", **options) for options in ({}, {"progressive": True}, {"restart_marker_rows": 1})]
SEEDS = [file.data for files in ANSWERED.values() for file in files]
SMALL_SEEDS = [
    *SMALL_JPEGS,
    *(encode(SMALL, kind) for kind in ("PNG", "WEBP", "GIF", "BMP")),
    *(encode(SMALL.quantize(8), kind) for kind in ("PNG", "GIF", "BMP")),
    *(encode(SMALL, kind, save_all=True, append_images=[SMALL.rotate(90)]) for kind in ("PNG", "WEBP", "GIF", "MPO")),
    *(data for data in SEEDS if len(data) < 1000),
]


def mutate(data: bytes, seed: int) -> bytes:
    """Change, remove and insert a few bytes, most of them near the beginning, where the sizes and tables are."""
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(min(len(changed), rng.choice([64, 400, len(changed)])) or 1)
        how = rng.randrange(4)
        if how == 0:
            changed[at : at + 1] = rng.randbytes(1)
        elif how == 1:
            changed[at : at + 4] = rng.choice([bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1"])
        elif how == 2:
            del changed[at : at + rng.randrange(1, 9)]
        else:
            changed[at:at] = rng.randbytes(rng.randrange(1, 5))
    return bytes(changed)


MUTATED = st.builds(mutate, st.sampled_from(SMALL_SEEDS), st.integers(0, 2**32))
MUTATED_TEXT = st.builds(mutate, st.sampled_from([*map(base64.encodebytes, SMALL_SEEDS)]), st.integers(0, 2**32))


@times(1500)
@given(data=MUTATED | MUTATED_TEXT | st.binary(max_size=200), exif=st.sampled_from(["ignore", "apply"]))
def test_decode_answers_or_raises_one_error(step: Any, data: bytes, exif: str) -> None:
    limits = {"resize": 40, "crop": (32, 24), "exif": exif, "max_pixels": 1_000_000}
    recipe = read(step, Recipe.model_validate({**IMAGENET.model_dump(), **limits}))
    try:
        pixels = step.decode(data, recipe)
    except step.BadImageError as error:
        reason = str(error)
    else:
        reason = f"{pixels.shape} {pixels.dtype}"
        assert reason == "(32, 24, 3) uint8"
    assert reason


@times(300)
@given(jpeg=st.sampled_from(SMALL_JPEGS), missing=st.integers(1, 3000))
def test_a_cut_jpeg_is_never_answered_from_a_part(step: Any, jpeg: bytes, missing: int) -> None:
    recipe = read(step, Recipe.model_validate({**IMAGENET.model_dump(), "resize": 40, "crop": (32, 24)}))
    try:
        pixels = step.decode(jpeg[: -min(missing, len(jpeg))], recipe)
    except step.BadImageError:
        return
    assert np.array_equal(pixels, step.decode(jpeg, recipe))


# --- a real server ----------------------------------------------------------------------------------------------------


def sample(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Return the last of a few dozen examples, the same every time; the first ones are the simplest."""
    drawn: list[Any] = []

    @times(40)
    @given(strategy)
    def keep(value: Any) -> None:
        drawn.append(value)

    keep()
    return drawn[-count:]


def write_free_onnx(path: Path) -> Path:
    """Write a tiny classifier whose height and width are free, so that it fits every recipe."""
    model = onnx.load(write_tiny_onnx(path, classes=CLASSES))
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def served(
    built_demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EmbeddedServer, dict[str, Any]]]:
    """The demo model and a sample of random specs, each with random labels: the server, and labels by model."""
    folder = tmp_path_factory.mktemp("properties")
    root = Path(shutil.copytree(built_demo, folder / "model_repository"))
    write_free_onnx(folder / "tiny.onnx")
    by_name = {spec["name"]: spec for spec in sample(specs(crop=64, batch=16, instances=(2, 2)), 40)}
    chosen = list(by_name.values())[-4:]
    labels = sample(st.lists(LABEL, min_size=CLASSES, max_size=CLASSES), 4)
    for number, (spec, names) in enumerate(zip(chosen, labels, strict=True)):
        file = folder / f"labels-{number}.txt"
        file.write_bytes("".join(f"{name}\n" for name in names).encode())
        spec["labels"] = file.name
        spec["versions"] = spec["versions"] if isinstance(spec["versions"], int | str) else [1]
    for spec in validate(*chosen, folder=folder):
        build_repository(spec, root, BuildOptions(verify=False))
    with EmbeddedServer(root) as server:
        yield server, {spec["name"]: names for spec, names in zip(chosen, labels, strict=True)}


@pytest.fixture
def call(served: tuple[EmbeddedServer, dict[str, Any]]) -> Iterator[Callable[[str], Caller]]:
    callers = {protocol: Caller(served[0], protocol) for protocol in STATUS}
    yield callers.__getitem__
    for caller in callers.values():
        caller.close()


@pytest.mark.server
def test_random_specs_are_loaded(served: tuple[EmbeddedServer, dict[str, Any]]) -> None:
    server, labels = served
    states = {(model.name, model.state) for model in server.models()}
    assert len(labels) == 4
    for name in labels:
        for model in (name, f"{name}_preprocess", f"{name}_classifier"):
            assert (model, "READY") in states


@pytest.mark.server
@pytest.mark.parametrize("protocol", STATUS)
def test_any_label_arrives_unchanged(
    served: tuple[EmbeddedServer, dict[str, Any]], call: Callable[[str], Caller], protocol: str
) -> None:
    for name, labels in served[1].items():
        output = read_output(served[0].repository / name / "config.pbtxt")
        cells = call(protocol).ask(name, output, [SMALL_JPEGS[0]], classes=CLASSES).reshape(-1)
        got = {int(index): label for _, index, label in (cell.decode().split(":", 2) for cell in cells)}
        assert [got[index] for index in range(CLASSES)] == labels


def read_output(path: Path) -> str:
    return str(text_format.Parse(path.read_text(), model_config_pb2.ModelConfig()).output[0].name)


@pytest.mark.server
def test_no_bytes_kill_the_server_or_a_stub(
    served: tuple[EmbeddedServer, dict[str, Any]], call: Callable[[str], Caller]
) -> None:
    server, _ = served
    before = stubs(server).keys()
    assert before

    @times(200)
    @given(
        data=MUTATED
        | MUTATED_TEXT
        | st.builds(mutate, st.sampled_from(SEEDS), st.integers(0, 2**32))
        | st.binary(max_size=200),
        protocol=st.sampled_from(sorted(STATUS)),
    )
    def send(data: bytes, protocol: str) -> None:
        try:
            answer = call(protocol).label([data])[0]
        except InferenceServerException as error:
            answer = f"{error.status()} {error.message()}"
        assert answer in LABELS or re.match(re.escape(STATUS[protocol]) + r" .*IMAGE\[0\] of 1: .", answer)

    send()
    assert stubs(server).keys() == before
    assert call("grpc").label([next(iter(ANSWERED.values()))[0].data]) == ["star"]
