"""Small broken models, one or more for each rule that files show, and what is right in their place.

In names and texts @ is the model's name. The line that a finding must name holds the comment HERE.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import TensorProto, helper

# a text, bytes, or where a symbolic link leads
Files = dict[str, str | bytes | Path]

NETWORK = """
max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: 4 }
output { name: "Y" data_type: TYPE_FP32 dims: 4 }
"""
OWN = 'backend: "own"' + NETWORK
PYTHON = 'backend: "python"' + NETWORK
CODE = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        {}
        return config

    def execute(self, requests):
        return []
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A broken repository for one rule, the right one, and where the finding is expected."""

    name: str
    rule: str
    broken: Files
    right: Files
    at: str = "@/config.pbtxt"
    release: str = "26.10"
    options: dict[str, Any] = field(default_factory=dict)


def write_files(files: Files, root: Path, name: str) -> None:
    """Write a repository's part in which the model is called `name`."""
    for path, content in files.items():
        target = root / path.replace("@", name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            target.mkdir(exist_ok=True)
        elif isinstance(content, Path):
            target.symlink_to(content)
        elif isinstance(content, bytes):
            target.write_bytes(content)
        else:
            target.write_text(content.replace("@", name))


def find_line(case: Case) -> int | None:
    """Return the line that holds HERE."""
    content = case.broken.get(case.at)
    lines = content.splitlines() if isinstance(content, str) else []
    return next((number for number, line in enumerate(lines, 1) if "HERE" in line), None)


def configured(
    rule: str, broken: str, right: str, *, base: str = OWN, name: str = "", file: str = "", **more: Any
) -> Case:
    """A model of one configuration: `base` and what makes it broken or right; `file` is its version's."""
    content = plan() if file.endswith(".plan") else b""
    files: list[Files] = [{"@/config.pbtxt": f"{base}\n{text}\n", f"@/1/{file}": content} for text in (broken, right)]
    return Case(name=name or rule, rule=rule, broken=files[0], right=files[1], **more)


def tensors(rule: str, broken: str, right: str, *, batch: int = 8, backend: str = "own", **more: Any) -> Case:
    """A model whose tensors make it broken or right."""
    return configured(rule, broken, right, base=f'backend: "{backend}"\nmax_batch_size: {batch}', **more)


def graph(
    *, batch: int | str = "batch", output: str = "Y", opset: int = 17, ir_version: int = 8, external: bool = False
) -> bytes:
    """An ONNX file: Y is 2 X, FP32, four in a row."""
    shape = [batch, 4]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("X", output))
    two = TensorProto(name="two", data_type=TensorProto.FLOAT, dims=[1])
    if external:
        two.data_location = TensorProto.EXTERNAL
        two.external_data.add(key="location", value="weights.bin")
    else:
        two.raw_data = struct.pack("<f", 2)
    made = helper.make_graph([helper.make_node("Mul", ["X", "two"], [output])], "graph", [x], [y], [two])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    return bytes(model.SerializeToString())


def onnx(rule: str, broken: bytes | str, right: bytes | str = NETWORK, *, at: str = "@/1/model.onnx") -> Case:
    """An ONNX model: of two graphs with the same configuration, or of two configurations with the same graph."""
    files: list[Files] = []
    for one in (broken, right):
        content, text = (one, NETWORK) if isinstance(one, bytes) else (graph(), one)
        files.append({"@/config.pbtxt": f'backend: "onnxruntime"\n{text}', "@/1/model.onnx": content})
    return Case(name=rule, rule=rule, broken=files[0], right=files[1], at=at)


def python(rule: str, broken: str, right: str, *, config: str = PYTHON, **more: Any) -> Case:
    """A Python model: two files with the same configuration. A line goes into auto_complete_config."""
    files: list[Files] = [
        {"@/config.pbtxt": config, "@/1/model.py": text if "\n" in text else CODE.format(text)}
        for text in (broken, right)
    ]
    return Case(name=rule, rule=rule, broken=files[0], right=files[1], at="@/1/model.py", **more)


def completes(rule: str, broken: str, right: str, *, config: str = PYTHON) -> Case:
    """A Python model that completes its configuration."""
    return python(rule, f"config.{broken}  # HERE", f"config.{right}", config=config)


def plan(version: tuple[int, ...] = (10, 9, 0, 34)) -> bytes:
    """A file with the header of a plan."""
    head = b"ftrt" + bytes(12) + struct.pack("<Q", 64) + bytes(version)
    return head + bytes(64 - len(head))


def passport(capability: str = "9.0", *, largest: int = 8, level: str = "none") -> str:
    """The passport of that plan."""
    shapes = {"X": {"min": [1, 4], "opt": [4, 4], "max": [largest, 4]}}
    gpu = {"name": "GPU", "compute_capability": capability, "multiprocessors": 10, "memory_bytes": 1}
    tensor = {"data_type": "TYPE_FP32", "shape": [-1, 4]}
    content = {
        "made_by": "trtgen",
        "tensorrt": "10.9.0.34",
        "gpu": gpu,
        "driver": "1",
        "cuda": "12",
        "precision": "fp32",
        "profiles": [shapes],
        "inputs": [{"name": "X", **tensor}],
        "outputs": [{"name": "Y", **tensor}],
        "flags": [],
        "options": {"hardware_compatibility": level},
        "onnx_sha256": "0",
        "plan_sha256": "0",
        "plan_bytes": 64,
        "build_seconds": 1,
        "timing_cache": "cold",
        "command": "trtgen",
        "format": 1,
    }
    return json.dumps(content)


def planned(rule: str, broken: Files, right: Files, *, at: str = "@/1/model.plan", **options: Any) -> Case:
    """A plan with a passport that fits, unless other files are given."""
    base: Files = {
        "@/config.pbtxt": f'backend: "tensorrt"{NETWORK}',
        "@/1/model.plan": plan(),
        "@/1/model.plan.json": passport(),
    }
    return Case(name=rule, rule=rule, broken=base | broken, right=base | right, at=at, options=options)


def two_plans(one: str, other: str) -> str:
    """A configuration that names the plans for two compute capabilities."""
    names = [f'{{ key: "{key}" value: "model.sm{key.replace(".", "")}.plan" }}' for key in (one, other)]
    return f'backend: "tensorrt"{NETWORK}cc_model_filenames [ {names[0]}, {names[1]} ]  # HERE\n'


def for_capabilities(
    rule: str, broken: Files, right: Files | None = None, *, at: str = "@/config.pbtxt", **options: Any
) -> Case:
    """Plans for 8.9 and 9.0 with passports that fit, unless other files are given."""
    base: Files = {"@/config.pbtxt": two_plans("8.9", "9.0")}
    for capability, name in (("8.9", "model.sm89.plan"), ("9.0", "model.sm90.plan")):
        base |= {f"@/1/{name}": plan(), f"@/1/{name}.json": passport(capability)}
    return Case(name=rule, rule=rule, broken=base | broken, right=base | (right or {}), at=at, options=options)


def step(
    member: str, *, version: str = "model_version: -1", reads: str = '"X" value: "IN"', writes: str = '"Y" value: "OUT"'
) -> str:
    """A step of an ensemble, on one line."""
    return f'step {{ model_name: "{member}" {version} input_map {{ key: {reads} }} output_map {{ key: {writes} }} }}'


def ensemble(
    rule: str,
    broken: str,
    right: str,
    *,
    member: str = OWN,
    right_member: str = "",
    head: str = "",
    data_type: str = "TYPE_FP32",
    name: str = "",
    right_head: str | None = None,
    release: str = "26.10",
) -> Case:
    """An ensemble of the member @_a: its steps, and what stands before them; `head` in place of the usual one."""
    usual = (
        f'platform: "ensemble"\nmax_batch_size: 8\ninput {{ name: "IN" data_type: {data_type} dims: 4 }}\n'
        'output { name: "OUT" data_type: TYPE_FP32 dims: 4 }\n'
    )
    files: list[Files] = []
    for steps, first, of in (
        (broken, head or usual, member),
        (right, right_head or usual.replace(data_type, "TYPE_FP32"), right_member or member),
    ):
        text = f"{first}ensemble_scheduling {{\n{steps}\n}}\n" if steps else first
        files.append({"@/config.pbtxt": text, "@/1/": "", "@_a/config.pbtxt": of, "@_a/1/": ""})
    return Case(name=name or rule, rule=rule, broken=files[0], right=files[1], release=release)


def control(tensor: str, *controls: str) -> str:
    """A control input of sequence batching."""
    inner = " ".join(f"control {{ {one} }}" for one in controls)
    return f'control_input {{ name: "{tensor}" {inner} }}'


def sequences(rule: str, *broken: str) -> Case:
    """Sequence batching with these control inputs, one a line, the last one wrong."""
    lines = [*broken[:-1], broken[-1] + "  # HERE"]
    right = f"sequence_batching {{ {START} }}"
    return configured(rule, "sequence_batching {\n" + "\n".join(lines) + "\n}", right)


_START = "kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ]"
START = control("START", _START)
_FULL = 'platform: "ensemble"\nmax_batch_size: 8\n'
_IN, _OUT = (f'{{ name: "{name}" data_type: TYPE_FP32 dims: 4 }}\n' for name in ("IN", "OUT"))
_ENDS = f"input {_IN}output {_OUT}"
_STEP = step("@_a")
_METRIC = 'metric_control { metric_identifier { family: "f" } histogram_options { buckets: [ 1 ] } }'
_COUNT = "kind: BATCH_ELEMENT_COUNT"
_DECOUPLED = OWN + "model_transaction_policy { decoupled: true }\n"
_QUEUE = "dynamic_batching { default_queue_policy { max_queue_size: 4 } }\n"
_PREFERRED = "sequence_batching { oldest { max_candidate_sequences: 4\npreferred_batch_size: "

CASES = (
    # tensors
    tensors(
        "tensor-name-missing",
        "input { data_type: TYPE_FP32 dims: 4 }  # HERE",
        'input { name: "X" data_type: TYPE_FP32 dims: 4 }',
    ),
    tensors(
        "tensor-data-type-missing",
        'input { name: "X" dims: 4 }  # HERE',
        'input { name: "X" data_type: TYPE_FP32 dims: 4 }',
    ),
    tensors(
        "tensor-dims-missing",
        'output { name: "Y" data_type: TYPE_FP32 }  # HERE',
        'output { name: "Y" data_type: TYPE_FP32 dims: -1 }',
    ),
    tensors(
        "tensor-dim-invalid",
        'input {\nname: "X" data_type: TYPE_FP32\ndims: [ 4, 0 ]  # HERE\n}',
        'input {\nname: "X" data_type: TYPE_FP32\ndims: [ 4, -1 ]\n}',
    ),
    tensors(
        "tensor-format-dims",
        'input {\nname: "X" data_type: TYPE_FP32 dims: [ 1, 3, 8, 8 ]\nformat: FORMAT_NCHW  # HERE\n}',
        'input {\nname: "X" data_type: TYPE_FP32 dims: [ 3, 8, 8 ]\nformat: FORMAT_NCHW\n}',
    ),
    tensors(
        "reshape-empty",
        'input { name: "X" data_type: TYPE_FP32 dims: 1\nreshape { }  # HERE\n}',
        'input { name: "X" data_type: TYPE_FP32 dims: 1\nreshape { shape: 1 }\n}',
        batch=0,
    ),
    tensors(
        "reshape-dim-invalid",
        'input { name: "X" data_type: TYPE_FP32 dims: 4\nreshape { shape: [ 4, -2 ] }  # HERE\n}',
        'input { name: "X" data_type: TYPE_FP32 dims: 4\nreshape { shape: [ 2, 2 ] }\n}',
    ),
    tensors(
        "reshape-size",
        'output { name: "Y" data_type: TYPE_FP32 dims: 4\nreshape { shape: 5 }  # HERE\n}',
        'output { name: "Y" data_type: TYPE_FP32 dims: 4\nreshape { shape: [ 4, 1 ] }\n}',
    ),
    tensors(
        "reshape-size",
        'output { name: "Y" data_type: TYPE_FP32 dims: [ 2, -1, 2 ]\nreshape { shape: [ 4, -1 ] }  # HERE\n}',
        'output { name: "Y" data_type: TYPE_FP32 dims: [ 2, -1, 2 ]\nreshape { shape: [ 2, -1, 1, 2 ] }\n}',
        name="reshape-size-between-variables",
    ),
    tensors(
        "reshape-variable-dims",
        'output { name: "Y" data_type: TYPE_FP32 dims: [ -1, -1 ]\nreshape { shape: -1 }  # HERE\n}',
        'output { name: "Y" data_type: TYPE_FP32 dims: [ -1, -1 ]\nreshape { shape: [ -1, 1, -1 ] }\n}',
    ),
    tensors(
        "tensor-non-linear-dims",
        'input { name: "X" data_type: TYPE_FP32\ndims: [ 3, 8 ]  # HERE\nis_non_linear_format_io: true }',
        'input { name: "X" data_type: TYPE_FP32\ndims: [ 3, 8, 8 ]\nis_non_linear_format_io: true }',
        backend="tensorrt",
        file="model.plan",
    ),
    tensors(
        "tensor-only-tensorrt",
        'input { name: "X" data_type: TYPE_INT32 dims: 4 is_shape_tensor: true }  # HERE',
        'input { name: "X" data_type: TYPE_INT32 dims: 4 }',
    ),
    # batches, queues, sequences, instances
    configured("batch-negative", "max_batch_size: -1  # HERE", "max_batch_size: 0", base='backend: "own"'),
    configured(
        "batch-preferred-not-positive",
        "dynamic_batching {\npreferred_batch_size: [ 4, 0 ]  # HERE\n}",
        "dynamic_batching {\npreferred_batch_size: [ 4, 8 ]\n}",
    ),
    configured(
        "batch-preferred-too-large",
        "dynamic_batching {\npreferred_batch_size: [ 4, 9 ]  # HERE\n}",
        "dynamic_batching {\npreferred_batch_size: [ 4, 8 ]\n}",
    ),
    configured(
        "batch-preferred-too-large",
        _PREFERRED + "9 } }  # HERE",
        _PREFERRED + "8 } }",
        name="sequence-preferred",
    ),
    configured(
        "priority-default",
        "dynamic_batching { priority_levels: 2\ndefault_priority_level: 3 }  # HERE",
        "dynamic_batching { priority_levels: 2\ndefault_priority_level: 2 }",
    ),
    configured(
        "priority-policy",
        "dynamic_batching { priority_levels: 2 default_priority_level: 1\npriority_queue_policy { key: 3 } }  # HERE",
        "dynamic_batching { priority_levels: 2 default_priority_level: 1\npriority_queue_policy { key: 2 } }",
    ),
    configured(
        "ordering-priorities",
        "dynamic_batching { preserve_ordering: true default_priority_level: 1\npriority_levels: 2 }  # HERE",
        "dynamic_batching { preserve_ordering: true default_priority_level: 1\npriority_levels: 1 }",
    ),
    configured(
        "ordering-delay",
        "dynamic_batching {\npreserve_ordering: true  # HERE\n"
        "default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5 } }",
        # without a timeout nothing is delayed
        "dynamic_batching {\npreserve_ordering: true\ndefault_queue_policy { timeout_action: DELAY } }",
    ),
    sequences("control-name-missing", START, control("", "kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ]")),
    sequences("control-twice", START, control("START", "kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ]")),
    sequences("control-kind-twice", START, control("END", _START)),
    sequences("control-value", control("START", "kind: CONTROL_SEQUENCE_START int32_false_true: [ 0 ]")),
    configured(
        "batch-tensor-sources",
        f'batch_input {{ {_COUNT} target_name: "N" data_type: TYPE_INT32 }}  # HERE',
        f'batch_input {{ {_COUNT} target_name: "N" data_type: TYPE_INT32 source_input: "X" }}',
    ),
    configured(
        "batch-tensor-unknown",
        f'batch_input {{ {_COUNT} target_name: "N" data_type: TYPE_INT32 source_input: "Q" }}  # HERE',
        f'batch_input {{ {_COUNT} target_name: "N" data_type: TYPE_INT32 source_input: "X" }}',
    ),
    configured(
        "batch-tensor-type",
        f'batch_input {{ {_COUNT} target_name: "N" data_type: TYPE_FP16 source_input: "X" }}  # HERE',
        f'batch_input {{ {_COUNT} target_name: "N" data_type: TYPE_FP32 source_input: "X" }}',
    ),
    configured(
        "batch-tensor-twice",
        'batch_output { target_name: [ "Y", "Y" ] kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "X" }  # HERE',
        'batch_output { target_name: "Y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "X" }',
    ),
    configured(
        "metrics-incomplete",
        f"model_metrics {{\n{_METRIC}\nmetric_control {{ histogram_options {{ buckets: [ 1 ] }} }}  # HERE\n}}",
        f"model_metrics {{ {_METRIC} }}",
    ),
    configured(
        "cache-unsupported",
        "response_cache { enable: true }  # HERE\nmodel_transaction_policy { decoupled: true }",
        "response_cache { enable: true }",
    ),
    configured(
        "instance-cpu-with-gpus",
        "instance_group { kind: KIND_CPU\ngpus: [ 0 ] }  # HERE",
        "instance_group { kind: KIND_GPU gpus: [ 0 ] }",
    ),
    configured(
        "instance-gpu-unknown",
        "instance_group { kind: KIND_GPU\ngpus: [ -1 ] }  # HERE",
        "instance_group { kind: KIND_GPU\ngpus: [ 1 ] }",
    ),
    configured(
        "instance-profile",
        'instance_group { kind: KIND_CPU\nprofile: "1" }  # HERE',
        "instance_group { kind: KIND_CPU }",
    ),
    planned(
        "parameter-value",
        {
            "@/config.pbtxt": f'backend: "tensorrt"{NETWORK}parameters {{ key: "other" }}\nparameters {{  # HERE\n'
            'key: "execution_context_allocation_strategy" value { string_value: "MUCH" } }'
        },
        {
            "@/config.pbtxt": f'backend: "tensorrt"{NETWORK}parameters {{\n'
            'key: "execution_context_allocation_strategy" value { string_value: "STATIC" } }'
        },
        at="@/config.pbtxt",
    ),
    # fields and syntax
    configured(
        "config-syntax",
        "dynamic_batching {\npreferred_size: 4  # HERE\n}",
        "dynamic_batching {\npreferred_batch_size: 4\n}",
    ),
    configured("config-syntax", "max_queue: 3 # HERE", "", name="config-unknown-field"),
    configured(
        "config-field-newer", f"model_metrics {{ {_METRIC} }}  # HERE", "", release="24.10", name="config-field-newer"
    ),
    # ensembles
    ensemble("ensemble-members-absent", step("@_b") + "  # HERE", _STEP),
    ensemble(
        "ensemble-member-version",
        step("@_a", version="model_version: 2") + "  # HERE",
        step("@_a", version="model_version: 1"),
    ),
    ensemble("ensemble-member-version", step("@_a", version="") + "  # HERE", _STEP, name="ensemble-no-version"),
    ensemble("ensemble-circular", step("@", reads='"IN" value: "IN"', writes='"OUT" value: "OUT"') + "  # HERE", _STEP),
    ensemble("ensemble-backend", _STEP, _STEP, head=_FULL + 'backend: "own"  # HERE\n' + _ENDS),
    ensemble("ensemble-not-scheduled", "", _STEP, head='platform: "ensemble"  # HERE\nmax_batch_size: 8\n' + _ENDS),
    configured("ensemble-scheduled", f"ensemble_scheduling {{  # HERE\n{_STEP}\n}}", "", name="ensemble-scheduled"),
    ensemble("ensemble-field", _STEP, _STEP, head=_FULL + "instance_group { count: 2 }  # HERE\n" + _ENDS),
    ensemble(
        "ensemble-step-incomplete",
        'step { model_name: "@_a" model_version: -1 input_map { key: "X" value: "IN" } }  # HERE',
        _STEP,
    ),
    ensemble("ensemble-written-twice", f"{_STEP}\n{_STEP}  # HERE", _STEP),
    ensemble(
        "ensemble-unused", _STEP, _STEP, head=_FULL + _ENDS + 'input { name: "MORE" data_type: TYPE_FP32 dims: 4 }\n'
    ),
    ensemble(
        "ensemble-unwritten",
        _STEP,
        _STEP,
        head=_FULL + _ENDS + 'output { name: "MORE" data_type: TYPE_FP32 dims: 4 }  # HERE\n',
    ),
    ensemble(
        "ensemble-input-unmapped",
        _STEP + "  # HERE",
        _STEP,
        member=OWN + 'input { name: "Z" data_type: TYPE_FP32 dims: 4 }',
        right_member=OWN + 'input { name: "Z" data_type: TYPE_FP32 dims: 4 optional: true }',
    ),
    ensemble("ensemble-map-unknown", step("@_a", reads='"Q" value: "IN"') + "  # HERE", _STEP),
    ensemble("ensemble-batch", _STEP, _STEP, head='platform: "ensemble"\nmax_batch_size: 16  # HERE\n' + _ENDS),
    ensemble("ensemble-data-type", _STEP, _STEP, data_type="TYPE_FP16"),
    ensemble(
        "ensemble-shape",
        _STEP,
        _STEP,
        member=OWN.replace("dims: 4", "dims: 5"),
        right_member=OWN.replace("dims: 4", "dims: -1"),
    ),
    ensemble(
        "ensemble-decoupled",
        step("@_a", writes='"Y" value: "ONE"') + "\n" + step("@_a", writes='"Y" value: "TWO"') + "\n"
        'step { model_name: "@_a" model_version: -1  # HERE\ninput_map { key: "X" value: "ONE" } '
        'input_map { key: "Z" value: "TWO" } output_map { key: "Y" value: "OUT" } }',
        _STEP,
        member=_DECOUPLED + 'input { name: "Z" data_type: TYPE_FP32 dims: 4 optional: true }',
    ),
    ensemble("ensemble-queue-size", _STEP + "  # HERE", _STEP, member=OWN + _QUEUE, right_member=OWN, release="26.02"),
    # folders, files, backends
    Case(
        name="stray",
        rule="layout-no-config",
        at="@",
        broken={"@/notes.txt": "x"},
        right={"@/config.pbtxt": OWN, "@/1/": ""},
    ),
    Case(
        name="warmup",
        rule="warmup-file-missing",
        broken={
            "@/config.pbtxt": OWN + 'model_warmup { name: "w" batch_size: 1  # HERE\n'
            'inputs { key: "X" value { data_type: TYPE_FP32 dims: 4 input_data_file: "x" } } }',
            "@/1/": "",
        },
        right={
            "@/config.pbtxt": OWN + 'model_warmup { name: "w" batch_size: 1\n'
            'inputs { key: "X" value { data_type: TYPE_FP32 dims: 4 input_data_file: "x" } } }',
            "@/1/": "",
            "@/warmup/x": bytes(16),
        },
    ),
    Case(
        name="labels",
        rule="layout-named-file-missing",
        broken={
            "@/config.pbtxt": OWN + 'output { name: "Z" data_type: TYPE_FP32 dims: 2\n'
            'label_filename: "labels.txt" }  # HERE',
            "@/1/": "",
        },
        right={
            "@/config.pbtxt": OWN + 'output { name: "Z" data_type: TYPE_FP32 dims: 2\nlabel_filename: "labels.txt" }',
            "@/1/": "",
            "@/labels.txt": "one\ntwo\n",
        },
    ),
    Case(
        name="labels-count",
        rule="labels-count",
        broken={
            "@/config.pbtxt": OWN + 'output { name: "Z" data_type: TYPE_FP32 dims: 2\n'
            'label_filename: "labels.txt" }  # HERE',
            "@/1/": "",
            "@/labels.txt": "one\ntwo\nthree\n",
        },
        right={
            "@/config.pbtxt": OWN + 'output { name: "Z" data_type: TYPE_FP32 dims: 2\nlabel_filename: "labels.txt" }',
            "@/1/": "",
            "@/labels.txt": "one\ntwo",
        },
    ),
    Case(
        name="label-outside",
        rule="label-outside",
        broken={
            "@/config.pbtxt": OWN + 'output { name: "Z" data_type: TYPE_FP32 dims: 2\n'
            'label_filename: "../@.txt" }  # HERE',
            "@/1/": "",
            "@.txt": "one\ntwo\n",
        },
        right={
            "@/config.pbtxt": OWN + 'output { name: "Z" data_type: TYPE_FP32 dims: 2\nlabel_filename: "more/@.txt" }',
            "@/1/": "",
            "@/more/@.txt": "one\ntwo\n",
        },
    ),
    Case(
        name="no-version",
        rule="layout-no-version",
        at="@",
        broken={"@/config.pbtxt": OWN, "@/v1/": ""},
        right={"@/config.pbtxt": OWN, "@/1/": ""},
    ),
    configured(
        "layout-no-version",
        "version_policy { specific { versions: 2 } }",
        "version_policy { specific { versions: 1 } }",
        name="absent-version",
        at="@",
    ),
    configured("layout-other-name", 'name: "another"  # HERE', 'name: "@"'),
    Case(
        name="no-file",
        rule="layout-no-model-file",
        at="@/1/model.onnx",
        broken={"@/config.pbtxt": f'backend: "onnxruntime"{NETWORK}', "@/1/best.onnx": graph()},
        right={
            "@/config.pbtxt": f'backend: "onnxruntime"{NETWORK}default_model_filename: "best.onnx"',
            "@/1/best.onnx": graph(),
        },
    ),
    Case(
        name="pointer",
        rule="layout-git-lfs",
        at="@/1/model.onnx",
        broken={
            "@/config.pbtxt": f'backend: "onnxruntime"{NETWORK}',
            "@/1/model.onnx": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        },
        right={"@/config.pbtxt": f'backend: "onnxruntime"{NETWORK}', "@/1/model.onnx": graph()},
    ),
    Case(
        name="zero",
        rule="layout-version-ignored",
        at="@/02",
        broken={"@/config.pbtxt": OWN, "@/1/": "", "@/02/": ""},
        right={"@/config.pbtxt": OWN, "@/1/": "", "@/2/": "", "@/warmup/": ""},
    ),
    Case(
        name="link",
        rule="layout-link-outside",
        at="@/1/model.onnx",
        broken={"@/config.pbtxt": f'backend: "onnxruntime"{NETWORK}', "@/1/model.onnx": Path("/etc/hostname")},
        right={
            "@/config.pbtxt": f'backend: "onnxruntime"{NETWORK}',
            "@/1/whole.onnx": graph(),
            "@/1/model.onnx": Path("whole.onnx"),
        },
    ),
    Case(
        name="blank",
        rule="layout-name-characters",
        at="@ net",
        broken={"@ net/config.pbtxt": OWN, "@ net/1/": ""},
        right={"@_net/config.pbtxt": OWN, "@_net/1/": ""},
    ),
    Case(
        name="twins",
        rule="layout-case-twins",
        at="@",
        broken={"@/config.pbtxt": OWN, "@/1/": "", "NET/config.pbtxt": OWN, "NET/1/": ""},
        right={"@/config.pbtxt": OWN, "@/1/": ""},
    ),
    Case(
        name="unstated",
        rule="backend-unstated",
        broken={"@/config.pbtxt": NETWORK, "@/1/best.onnx": graph()},
        at="@/config.pbtxt",
        right={"@/config.pbtxt": NETWORK, "@/1/model.onnx": graph()},
    ),
    # core looks for the file in the folder whose name comes first
    Case(
        name="checkpoints",
        rule="backend-unstated",
        at="@/config.pbtxt",
        broken={"@/config.pbtxt": NETWORK, "@/1/model.onnx": graph(), "@/.ipynb_checkpoints/": ""},
        right={"@/config.pbtxt": NETWORK, "@/1/model.onnx": graph(), "@/checkpoints/": ""},
    ),
    configured("backend-library", 'runtime: "../other.so"  # HERE', 'runtime: "libtriton_own.so"'),
    configured(
        "platform-unknown", 'platform: "caffe2_netdef"  # HERE', 'platform: "own"\nbackend: "own"', base=NETWORK
    ),
    configured(
        "platform-unknown",
        'backend: "pytorch"\nplatform: "tensorrt_plan"  # HERE',
        'backend: "pytorch"\nplatform: "pytorch_libtorch"',
        file="model.pt",
        base=NETWORK,
        name="platform-of-another",
    ),
    configured(
        "backend-removed",
        'platform: "tensorflow_graphdef"  # HERE',
        'platform: "pytorch_libtorch"',
        base=NETWORK,
        file="model.pt",
    ),
    configured("network-no-output", "", NETWORK, base='backend: "pytorch"', file="model.pt"),
    Case(
        name="many",
        rule="memory-shared-small",
        at="",
        broken={"@/config.pbtxt": PYTHON + "instance_group { count: 70 }", "@/1/model.py": CODE.format("pass")},
        right={"@/config.pbtxt": PYTHON + "instance_group { count: 4 }", "@/1/model.py": CODE.format("pass")},
    ),
    # model.py
    completes(
        "python-config-property-missing",
        'add_input({"name": "X"})',
        'add_input({"name": "X", "data_type": "TYPE_FP32", "dims": [4]})',
    ),
    completes(
        "python-config-property-unknown",
        'add_output({"name": "Y", "data_type": "TYPE_FP32", "dims": [4], "is_shape": 1})',
        'add_output({"name": "Y", "data_type": "TYPE_FP32", "dims": [4]})',
    ),
    python(
        "python-config-not-returned",
        "class TritonPythonModel:\n    def auto_complete_config(config):  # HERE\n        pass\n",
        "class TritonPythonModel:\n    def auto_complete_config(config):\n        return config\n",
    ),
    completes("python-config-batch", "set_max_batch_size(4)", "set_max_batch_size(8)"),
    completes(
        "python-config-scheduling", "set_dynamic_batching()", "add_input(None)", config=PYTHON + "sequence_batching { }"
    ),
    completes(
        "python-config-decoupled",
        "set_model_transaction_policy(dict(decoupled=True))",
        "set_model_transaction_policy(dict(decoupled=False))",
        config=PYTHON + "model_transaction_policy { decoupled: false }",
    ),
    completes(
        "python-config-data-type",
        'add_input({"name": "X", "data_type": "TYPE_INT8", "dims": [4]})',
        'add_input({"name": "X", "data_type": "TYPE_FP32", "dims": [4]})',
    ),
    completes(
        "python-config-dims",
        'add_input({"name": "X", "data_type": "TYPE_FP32", "dims": [5]})',
        'add_input({"name": "X", "data_type": "TYPE_FP32", "dims": [4]})',
    ),
    python("python-no-class", "class Model:  # HERE\n    pass\n", CODE.format("pass")),
    python("python-raised", "class TritonPythonModel  # HERE\n    pass\n", CODE.format("pass"), release="24.10"),
    python(
        "python-import-absent",
        "import os\nimport torch  # HERE\n" + CODE.format("pass"),
        "try:\n    import torch\nexcept ImportError:\n    pass\n" + CODE.format("pass"),
    ),
    Case(
        name="environment",
        rule="python-environment",
        broken={
            "@/config.pbtxt": PYTHON + 'parameters {  # HERE\nkey: "EXECUTION_ENV_PATH" value { string_value: '
            '"env.tar.gz" } }',
            "@/1/model.py": CODE.format("pass"),
            "@/env.tar.gz": b"",
        },
        right={
            "@/config.pbtxt": PYTHON + 'parameters {\nkey: "EXECUTION_ENV_PATH" value { string_value: '
            '"$$TRITON_MODEL_DIRECTORY/env.tar.gz" } }',
            "@/1/model.py": CODE.format("pass"),
            "@/env.tar.gz": b"",
        },
    ),
    # ONNX files
    onnx("onnx-external-data", graph(external=True), graph()),
    onnx("onnx-damaged", graph()[:40], graph()),
    onnx("onnx-ir-newer", graph(ir_version=99), graph(ir_version=10)),
    onnx("onnx-opset-newer", graph(opset=99), graph(opset=21)),
    onnx(
        "network-tensor-unknown",
        NETWORK.replace('"Y"', '"Q"').replace("\noutput { ", "\noutput {\n").replace('"Q"', '"Q"  # HERE\n'),
        at="@/config.pbtxt",
    ),
    onnx("network-tensor-count", NETWORK + 'input { name: "Z" data_type: TYPE_FP32 dims: 4 }', at="@/config.pbtxt"),
    onnx("network-data-type", NETWORK.replace("TYPE_FP32 dims", "TYPE_FP16  # HERE\ndims", 1), at="@/config.pbtxt"),
    onnx("network-dims", NETWORK.replace("dims: 4 }", "dims: [ -1, 4 ] }  # HERE", 1), at="@/config.pbtxt"),
    onnx("network-batch-fixed", graph(batch=1), graph(), at="@/config.pbtxt"),
    # plans
    planned("plan-version", {}, {"@/1/model.plan": plan((10, 13, 0, 35))}, tensorrt="10.13.0.35"),
    planned("plan-gpu", {"@/1/model.plan.json": passport("8.6")}, {}, gpu="9.0"),
    planned("plan-damaged", {"@/1/model.plan": plan()[:40]}, {}),
    planned("plan-version-unknown", {}, {"@/1/model.plan": plan((99, 9, 9, 9))}),
    planned("network-max-batch", {"@/1/model.plan.json": passport(largest=4)}, {}, at="@/config.pbtxt"),
    # several plans
    for_capabilities("plan-capability-key", {"@/config.pbtxt": two_plans("sm_89", "9.0")}),
    for_capabilities("plan-capability-missing", {"@/config.pbtxt": two_plans("8.6", "9.0")}),
    for_capabilities("plan-capability-none", {"@/config.pbtxt": two_plans("8.9", "8.9")}, gpu="9.0"),
    for_capabilities("plan-capability-other", {"@/1/model.sm89.plan.json": passport("8.6")}, at="@/1/model.sm89.plan"),
    for_capabilities("plan-capability-default", {"@/1/model.plan": plan()}, at="@/1/model.plan"),
    for_capabilities("plan-damaged", {"@/1/model.sm89.plan": plan()[:40]}, at="@/1/model.sm89.plan"),
    for_capabilities(
        "plan-capability-default",
        {"@/1/model.plan": plan(), "@/1/model.plan.json": passport("8.0", level="same-compute-capability")},
        {"@/1/model.plan": plan(), "@/1/model.plan.json": passport("8.0", level="ampere-plus")},
        at="@/1/model.plan",
        gpu="12.0",
    ),
    for_capabilities(
        "plan-capability-differs", {"@/1/model.sm90.plan.json": passport(largest=16)}, at="@/1/model.sm90.plan"
    ),
)
