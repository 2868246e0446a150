"""models.yaml and names -> ModelSpec: every problem at once, with file, field and near spelling."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from generator.errors import SpecError
from generator.render import read_static
from generator.spec.file import load_spec, make_spec
from generator.spec.model import ModelSpec


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return path


def problems_of(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_spec(write(tmp_path, text))
    assert caught.value.hint
    return caught.value.problems


def test_a_name_is_enough() -> None:
    (spec,) = make_spec(["resnet50"])
    assert (spec.source, spec.registry_name, spec.weights) == ("torchvision", "resnet50", "default")
    assert spec.model_names == ("resnet50_preprocess", "resnet50_classifier", "resnet50")


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        ({"name": "demo"}, "demo"),
        ({"name": "x", "onnx": "x.onnx"}, "onnx"),
        ({"name": "x", "architecture": "resnet18", "weights": "w.safetensors", "classes": 3}, "checkpoint"),
        ({"name": "x", "architecture": "resnet18", "weights": "IMAGENET1K_V1"}, "torchvision"),
    ],
)
def test_the_source_follows_from_the_fields(fields: dict[str, object], source: str) -> None:
    assert ModelSpec.model_validate(fields).source == source


def test_a_file_name_is_an_onnx_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (spec,) = make_spec(["exports/defects.onnx"])
    assert (spec.name, spec.onnx) == ("defects", tmp_path / "exports/defects.onnx")


@pytest.mark.parametrize(
    ("file", "name"),
    [("my model (2).onnx", "my_model_2_"), ("..a..b.onnx", "a_.b"), ("_x.onnx", "x"), ("größe.onnx", "gr_e")],
)
def test_a_file_name_becomes_a_model_name(file: str, name: str) -> None:
    assert make_spec([file])[0].name == name


def test_a_file_name_of_which_nothing_is_left() -> None:
    with pytest.raises(SpecError, match="is not a valid model name"):
        make_spec(["__.onnx"])


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    text = "models:\n- name: resnet50\n  weights: random\n  seed: 1\n  weights: default\n"
    assert "the key weights stands in line 3 already" in problems_of(tmp_path, text)[0]
    assert "the key seed stands in line 1 already" in problems_of(tmp_path, "models: [{name: a, seed: 1, seed: 2}]")[0]
    anchors = (
        "models:\n- {name: a, batch: &q {min: 1, opt: 4, max: 8}, plan: {profiles: [&p {<<: *q, opt: 8}]}}\n"
        "- {name: b, batch: {<<: *p, opt: 2}}\n"
    )
    assert [one.batch.opt for one in load_spec(write(tmp_path, anchors))] == [4, 2]
    assert "unhashable key" in problems_of(tmp_path, "? [a]\n: 1\n")[0]
    merged = "base: &base {seed: 1}\nmodels:\n- <<: *base\n  name: resnet50\n  seed: 2\n"
    assert "base: " in problems_of(tmp_path, merged)[0], "a merge may be overruled; the key base is what is refused"


def test_aliases_that_stand_for_millions_of_values_are_refused_before_they_are_any(tmp_path: Path) -> None:
    nine = "".join(f"x{n + 1}: &x{n + 1} [{', '.join([f'*x{n}'] * 9)}]\n" for n in range(8))
    started = time.monotonic()
    (problem,) = problems_of(tmp_path, f"x0: &x0 {['x'] * 9}\n{nine}models: [{{name: *x8}}]\n")
    assert "its aliases stand for more than 100,000 values" in problem
    merges = "".join(f"m{n + 1}: &m{n + 1} {{<<: [{', '.join([f'*m{n}'] * 9)}]}}\n" for n in range(8))
    (problem,) = problems_of(tmp_path, f"m0: &m0 {{seed: 1}}\n{merges}models: [{{<<: *m8, name: a}}]\n")
    assert "its aliases stand for" in problem
    assert "stands for itself" in problems_of(tmp_path, "models: &m [*m]")[0]
    assert time.monotonic() - started < 5
    # many models that share an anchor are no bomb, nor is a long list without one
    shared = "models:\n- &base {name: m0, batch: {max: 4}}\n" + "".join(
        f"- {{<<: *base, name: m{n}}}\n" for n in range(1, 200)
    )
    assert len(load_spec(write(tmp_path, shared))) == 200


def test_a_bad_value_is_shown_in_short(tmp_path: Path) -> None:
    aliases = "x: &x [y, y, y, y, y, y, y, y]\nmodels: [{name: [*x, *x, *x, *x, *x, *x, *x, *x]}]\n"
    problems = problems_of(tmp_path, aliases)
    assert max(map(len, problems)) < 400
    assert "..." in "\n".join(problems)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("010", "010 would be read as the octal number 8; write it without the leading 0"),
        ("1:30", "1:30 would be read as a number to the base 60"),
        ("0o10", "(found '0o10')"),
        ("007", 7),
        ("0x10", 16),
        ("1_0", 10),
    ],
)
def test_a_number_is_what_its_reader_takes_it_for(tmp_path: Path, text: str, expected: str | int) -> None:
    models = f"models: [{{name: a, batch: {{max: {text}}}}}]"
    if isinstance(expected, int):
        assert load_spec(write(tmp_path, models))[0].batch.max == expected
    else:
        assert expected in problems_of(tmp_path, models)[0]


@pytest.mark.parametrize("field", ["name: on", "name: 2024-01-02", "name: a, weights: yes", "name: a, labels: no"])
def test_text_that_yaml_takes_for_a_value_is_to_be_quoted(tmp_path: Path, field: str) -> None:
    (problem,) = problems_of(tmp_path, f"models: [{{{field}}}]")
    assert "put it in quotes" in problem
    assert "put it in quotes" not in problems_of(tmp_path, "models: [{name: a, seed: x}]")[0]


def test_paths_are_relative_to_the_spec_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "models: [{name: a, onnx: a.onnx, labels: a.txt}, "
        "{name: b, architecture: resnet18, weights: b.pt, classes: 2}]",
    )
    one, two = load_spec(path)
    assert (one.onnx, one.labels) == (tmp_path / "a.onnx", tmp_path / "a.txt")
    assert two.weights == str(tmp_path / "b.pt")


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    problems = problems_of(
        tmp_path,
        "models:\n- name: 'a;b'\n  wieghts: x\n  batch: {max: 0}\n- name: ok\n  max_queue_delay_microseconds: soon\n",
    )
    assert len(problems) == 4
    assert all(str(tmp_path / "models.yaml") in problem for problem in problems)
    text = "\n".join(problems)
    assert "models[0].name: 'a;b' is not a valid model name" in text
    assert "models[0].wieghts: unknown field; did you mean weights?" in text
    assert "models[0].batch.max: Input should be greater than or equal to 1 (found 0)" in text
    assert "models[1].max_queue_delay_microseconds" in text
    assert "(found 'soon')" in text


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("{name: ../x}", "is not a valid model name"),
        ("{name: 'a..b'}", "is not a valid model name"),
        ("{name: 'a b'}", "is not a valid model name"),
        ("{name: a, batch: {opt: 9, max: 8}}", "min <= opt <= max was expected, found min 1, opt 9, max 8"),
        ("{name: a, batch: {min: 9, opt: 8}}", "min <= opt <= max was expected"),
        ("{name: a, batch: {min: 2}}", "requests with fewer images would be refused"),
        ("{name: a, batch: {max: 100000}}", "less than or equal to 1024 (found 100000)"),
        ("{name: a, source: onnx}", "needs the field onnx"),
        ("{name: a, source: checkpoint}", "needs weights to be a file"),
        ("{name: a, raw: true}", "raw goes with source: onnx only"),
        ("{name: a, target: onnxruntime, precision: fp16}", "precision: fp16 needs a TensorRT target"),
        ("{name: a, target: tensorrt-8.6, precision: bf16}", "bf16 needs tensorrt-10 or later"),
        ("{name: a, precision: fp16, calibration: images}", "calibration goes with precision: int8 only"),
        ("{name: a, precision: as-is}", "as-is takes an ONNX file as it is, and onnx is not given"),
        ("{name: a, precision: bf16, keep: [head]}", "keep goes with precision: fp16 or int8"),
        ("{name: a, plan: {profiles: [{min: 2, opt: 8, max: 32}]}}", "profiles do not cover a batch of 1:"),
        ("{name: a, plan: {profiles: [{min: 1, opt: 1, max: 4}, {min: 9, opt: 9, max: 31}]}}", "of 5-8, 32:"),
        ("{name: a, plan: {profiles: [{min: 1, opt: 9, max: 8}]}}", "min <= opt <= max was expected"),
        ("{name: a, source: export}", "source: export needs the field onnx"),
        ("{name: a, source: export, onnx: m.onnx, classes: 3}", "classes was settled when the graph was exported"),
        ("{name: a, recipe: {std: [0, 1, 1]}}", "models[0].recipe.std[0]"),
        ("{name: a, versions: []}", "models[0].versions"),
        ("{name: a, config: {clasifier: ''}}", "models[0].config.clasifier: unknown field; did you mean classifier?"),
        (
            '{name: a, config: {classifier: "dynamic_batching {}\\n\\ninstance_group { cout: 1 }"}}',
            'classifier: line 3: Message type "inference.ModelInstanceGroup" has no field named "cout"',
        ),
        ("{name: a, config: {classifier: 'instance_group [{'}}", "models[0].config.classifier: line 1: "),
        ("{name: a, config: {ensemble: 'max_batch_size: 0'}}", "max_batch_size cannot be given here: set batch.max"),
        (
            "{name: a, config: {classifier: 'optimization { execution_accelerators { } }'}}",
            "execution_accelerators cannot be given here: set precision",
        ),
        (
            '{name: a, config: {preprocess: \'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "x" } }\'}}',
            "parameters EXECUTION_ENV_PATH cannot be given here",
        ),
        ("{name: a, config: {ensemble: 'model_repository_agents { }'}}", "they load code into the server"),
        ("{name: a, config: {classifier: 'input []'}}", "input cannot be given here: tensors are read from the graph"),
        (
            "{name: a, config: {preprocess: 'parameters { key: \"crop\" value {} }'}}",
            "models[0].config.preprocess: parameters crop cannot be given here: it is part of the recipe",
        ),
        (
            "{name: a, config: {preprocess: 'parameters { key: \"fit\" value {} }'}}",
            "models[0].config.preprocess: parameters fit cannot be given here: it is part of the recipe",
        ),
        (
            "{name: a, instances: {classifier: 2}, config: {classifier: 'instance_group []'}}",
            "instances.classifier of the spec and instance_group in config.classifier state the same",
        ),
        (
            "{name: a, instances: {preprocess: 2}, config: {preprocess: 'instance_group []'}}",
            "instances.preprocess of the spec and instance_group in config.preprocess state the same",
        ),
        (
            "{name: a, max_queue_delay_microseconds: 500, config: {classifier: 'dynamic_batching {}'}}",
            "max_queue_delay_microseconds of the spec and dynamic_batching in config.classifier state the same",
        ),
        (
            "{name: a, plan: {cuda_graphs: false}, config: {classifier: 'optimization { cuda {} }'}}",
            "plan.cuda_graphs of the spec and optimization.cuda in config.classifier state the same",
        ),
        (
            "{name: a, plan: {cuda_graphs: [1, 64]}}",
            "plan.cuda_graphs lists a batch of 64, but batch.max is 32",
        ),
        ("{name: a, instances: {preprocess: 0}}", "models[0].instances.preprocess"),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, model: str, expected: str) -> None:
    assert expected in "\n".join(problems_of(tmp_path, f"models: [{model}]"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: [{name: a}, {name: a}]", "both need the directory a"),
        ("models: [{name: a}, {name: a_classifier}]", "both need the directory a_classifier"),
        ("models: []", "at least 1 item"),
        ("model: [{name: a}]", "model: unknown field; did you mean models?"),
        ("- a\n- b\n", "holds list"),
        ("models: [", "is not valid YAML"),
    ],
)
def test_a_file_as_a_whole(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in "\n".join(problems_of(tmp_path, text))


def test_a_target_goes_with_a_file(tmp_path: Path) -> None:
    """Before the fields are checked: with target auto, or another one, the file may not hold."""
    path = write(tmp_path, "models: [{name: a, target: onnxruntime}, {name: b}]")
    assert [spec.target for spec in load_spec(path, target="tensorrt-10")] == ["tensorrt-10"] * 2
    assert [spec.target for spec in load_spec(path)] == ["onnxruntime", "auto"]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path / "none.yaml")


def test_the_default_opt_never_exceeds_max() -> None:
    assert make_spec(["a"], batch={"max": 4})[0].batch.optimum == 4
    assert make_spec(["a"])[0].batch.optimum == 8


def test_the_file_that_init_writes_is_valid(tmp_path: Path) -> None:
    text = read_static("models.yaml").decode()
    assert [spec.name for spec in load_spec(write(tmp_path, text))] == ["resnet50", "demo"]
    # the examples in comments are valid too
    commented = [line.replace("  # ", "  ", 1) for line in text.splitlines() if line.startswith("  # ") and ":" in line]
    examples = [line for line in commented if line.startswith(("  - ", "    "))]
    models = yaml.safe_load("models:\n" + "\n".join(examples))["models"]
    assert [ModelSpec.model_validate(model).source for model in models] == ["checkpoint", "onnx"]
