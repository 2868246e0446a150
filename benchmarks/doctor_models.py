"""How long does `trtgen doctor` take for repositories of 1,000 and 10,000 models?

    python -m benchmarks.doctor_models

Each model is an ONNX file of a few hundred bytes with its configuration; every tenth is an ensemble of two others.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.doctor_cases import NETWORK, graph, step

_ENSEMBLE = (
    'platform: "ensemble"\nmax_batch_size: 8\ninput { name: "IN" data_type: TYPE_FP32 dims: 4 }\n'
    'output { name: "OUT" data_type: TYPE_FP32 dims: 4 }\n'
)


def write_models(root: Path, count: int) -> None:
    """Write a repository of that many models."""
    content = graph()
    for number in range(count):
        model = root / f"model{number}"
        (model / "1").mkdir(parents=True)
        if number % 10 == 9:
            first = step(f"model{number - 1}", writes='"Y" value: "MID"')
            second = step(f"model{number - 2}", reads='"X" value: "MID"')
            (model / "config.pbtxt").write_text(f"{_ENSEMBLE}ensemble_scheduling {{\n{first}\n{second}\n}}\n")
        else:
            (model / "config.pbtxt").write_text(f'backend: "onnxruntime"{NETWORK}')
            (model / "1" / "model.onnx").write_bytes(content)


def main() -> int:
    """Print the seconds of the whole command."""
    for count in (1000, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            write_models(Path(folder), count)
            seconds = []
            for _ in range(3):
                before = time.perf_counter()
                run = subprocess.run(
                    [sys.executable, "-m", "generator", "doctor", folder], capture_output=True, text=True, check=True
                )
                seconds.append(time.perf_counter() - before)
            print(f"{count:6,} models: {min(seconds):.1f} s ({run.stdout.strip()})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
