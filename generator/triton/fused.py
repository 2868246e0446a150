"""The files of a fused model's version directory that are the same for every task."""

from __future__ import annotations

from generator.render import read_runtime, read_static

# What the model reads to know its network, besides its own tensors; its model.py says more.
NETWORK_BACKEND, NETWORK_INPUT = "network_backend", "network_input"
DECODE = "decode"  # gpu, where it decodes there
# Numbers of the plan's profiles; Triton takes them in instance_group of a plan's own model only.
PROFILE = "profile"


def read_fused_files(backend: str) -> dict[str, bytes]:
    """Return the code by its name; `backend`, onnxruntime or tensorrt, runs the network.

    Each is a copy of what serves an ensemble: the preprocessing step, the pip server's Python-based backend and
    `generator.runtime`.
    """
    return {
        "model.py": read_static("fused/1/model.py"),
        "trtgen_preprocess.py": read_static("preprocess/1/model.py"),
        f"trtgen_{backend}.py": read_static(f"backends/{backend}/model.py"),
        **read_runtime(),
    }


def read_decoder_files() -> dict[str, bytes]:
    """Return the code of a preprocessing step that decodes on the GPU, by its name."""
    return {
        "model.py": read_static("preprocess_gpu/1/model.py"),
        "trtgen_preprocess.py": read_static("preprocess/1/model.py"),
        **read_runtime(),
    }
