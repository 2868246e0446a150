"""What TensorRT plans take on a GPU, for docs/benchmarks.md, from one command.

    python -m benchmarks.gpu --work gpu-run

Exports, builds and proves ResNet-50, EfficientNet-B0 and the demo model for the installed TensorRT, builds once more
with the warm timing cache, measures the plans beside PyTorch and onnxruntime, looks into them and counts right answers
on the demo model's held-out images. Weights are random (seed 0) where they would be downloaded. What is behind the
endpoint is measured by benchmarks.gpu_serving. On a machine with several GPUs and many cores:

    CUDA_VISIBLE_DEVICES=0 taskset -c 0-15 python -m benchmarks.gpu ...

TensorRT and torch may live in two Pythons: `--torch-python` names the one that exports and runs the PyTorch side, and
`--torch-path` what it needs besides. Steps can be run one after another in several commands; what a step leaves in
`--work` is what the next one takes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu_targets import describe, of_bench

TREE = Path(__file__).resolve().parent.parent
# name -> precision -> optimization profiles (min, opt, max); kernels are chosen for `opt`
_SMALL, _LARGE = (1, 1, 8), (1, 64, 128)
_DEMO = (1, 8, 32)
# ResNet-50 first: its timing cache is empty then, which the step `rebuild` compares with.
MODELS: dict[str, dict[str, tuple[tuple[int, int, int], ...]]] = {
    "resnet50": {"fp16": (_SMALL, _LARGE), "int8": (_LARGE,)},
    "demo": {"fp32": (_DEMO,), "fp16": (_DEMO,), "int8": (_DEMO,)},
    "efficientnet_b0": {"fp16": (_LARGE,)},
}
# Not published: with random weights the scores of a ResNet lie closer together than int8 rounds, and the gate says so.
UNPROVED = {"resnet50_int8"}
BENCH_BATCHES = {"resnet50": "1,8,32,64,128", "efficientnet_b0": "1,64"}
HELD_OUT = 1000


class Run:
    """The commands of one run: each is logged with its seconds, and a failed one ends the run."""

    def __init__(self, work: Path, torch_python: str, torch_path: str) -> None:
        self.work = work
        self.failed = False
        self.failures: list[str] = []
        self.torch_python = torch_python
        paths = os.pathsep.join(filter(None, (str(TREE), os.environ.get("PYTHONPATH"))))
        self.environment = {**os.environ, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(work / "cache")}
        self.torch_environment = dict(self.environment)
        if torch_python != sys.executable:  # another Python must not see this one's libraries
            for name in ("PYTHONHOME", "LD_LIBRARY_PATH"):
                self.torch_environment.pop(name, None)
            self.torch_environment["PYTHONPATH"] = os.pathsep.join([str(TREE), *([torch_path] if torch_path else [])])
        self.new: dict[str, Any] = {}

    def kept(self) -> dict[str, Any]:
        """Return what gpu.json holds, of earlier runs too."""
        path = self.work / "gpu.json"
        loaded: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return loaded

    def save(self, key: str, value: Any) -> None:
        """Keep a result; gpu.json is complete after every step, also beside another run in the same folder."""
        self.new[key] = value
        (self.work / "gpu.json").write_text(json.dumps({**self.kept(), key: value}, indent=2) + "\n")

    def trtgen(self, *arguments: str, torch: bool = False, check: bool = True, show: bool = True) -> str:
        """Run one trtgen command, show what it says, and return its stdout."""
        python = self.torch_python if torch else sys.executable
        print(f"$ trtgen {' '.join(arguments)}", flush=True)
        started = time.monotonic()
        done = subprocess.run(
            [python, "-m", "generator", *arguments],
            env=self.torch_environment if torch else self.environment,
            cwd=self.work,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        said = done.stdout.rstrip() if show else ""
        print(f"{said}\n# {time.monotonic() - started:.1f} s, exit code {done.returncode}", flush=True)
        self.failed = done.returncode != 0
        self.failures += [f"trtgen {' '.join(arguments)}"] if self.failed else []
        if check and self.failed:
            raise SystemExit(done.returncode)
        return done.stdout


def export(run: Run, target: str, only: list[str]) -> None:
    """Export every model in every precision, at the same time: this is work for the CPU alone."""
    children = []
    for name, precisions in MODELS.items():
        for precision in precisions:
            if only and f"{name}_{precision}" not in only:
                continue
            folder = run.work / "exported" / f"{name}_{precision}"
            arguments = ["export", name, "--target", target, "--precision", precision, "--output", str(folder)]
            arguments += [] if name == "demo" else ["--weights", "random"]
            arguments += ["--max-batch", str(max(profile[2] for profile in precisions[precision]))]
            log = (run.work / f"export-{name}-{precision}.log").open("w")
            child = subprocess.Popen(
                [run.torch_python, "-m", "generator", *arguments],
                env=run.torch_environment, cwd=run.work, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
            children.append((arguments, child, log))
    failed = 0
    for arguments, child, log in children:
        failed |= child.wait()
        log.close()
        print(f"$ trtgen {' '.join(arguments)}\n{Path(log.name).read_text().rstrip()}", flush=True)
    if failed:
        raise SystemExit("an export failed")


def build(run: Run, repository: Path, only: list[str]) -> None:
    """Build and prove each model; every failure is kept and shown, and the others go on."""
    for name, precisions in MODELS.items():
        for precision, profiles in precisions.items():
            served = f"{name}_{precision}"
            if only and served not in only:
                continue
            if served in UNPROVED:
                build_unproved(run, served, precision, profiles)
                continue
            model = {
                "name": served,
                "source": "export",
                "onnx": str(run.work / "exported" / served / "model.onnx"),
                "batch": {"max": max(profile[2] for profile in profiles)},
                "decode": "cpu",
                "plan": {
                    "profiles": [{"min": low, "opt": opt, "max": high} for low, opt, high in profiles],
                },
            }
            spec = run.work / f"{served}.yaml"
            spec.write_text(yaml.safe_dump({"models": [model]}))
            run.trtgen("build-repo", "--spec", str(spec), "--repository", str(repository), check=False)
            if run.failed:
                continue
            record = repository / served / "trtgen.json"
            if record.is_file():
                data = json.loads(record.read_text())
                passport = json.loads(plan_of(repository, served).with_suffix(".plan.json").read_text())
                run.save(f"built {served}", {"proof": data["proof"], "plan": data["plan"], "passport": passport})


def build_unproved(run: Run, served: str, precision: str, profiles: tuple[tuple[int, int, int], ...]) -> None:
    """Build a plan without a repository around it."""
    folder = run.work / "exported" / served
    listed = [text for profile in profiles for text in ("--profile", ",".join(map(str, profile)))]
    run.trtgen(
        "build-plan", str(folder / "model.onnx"), "--output", str(folder / "model.plan"), "--precision", precision,
        "--max-batch", str(max(profile[2] for profile in profiles)), *listed, check=False,
    )  # fmt: skip
    passport = folder / "model.plan.json"
    if passport.is_file():
        run.save(f"built {served}", {"passport": json.loads(passport.read_text())})


def plan_of(repository: Path, served: str) -> Path:
    """Return the path of the newest plan of a model."""
    if served in UNPROVED:
        return repository.parent / "exported" / served / "model.plan"
    plans = (repository / f"{served}_classifier").glob("*/model.plan")
    return max(plans, key=lambda path: int(path.parent.name), default=repository / "absent")


def rebuild(run: Run, repository: Path) -> None:
    """Build the ResNet-50 plan once more: all kernel times are in the timing cache now."""
    plan = plan_of(repository, "resnet50_fp16")
    if not plan.is_file():
        print(f"{plan} is not there: nothing to build again")
        return
    warm = run.work / "warm.plan"
    profiles = [text for p in MODELS["resnet50"]["fp16"] for text in ("--profile", ",".join(map(str, p)))]
    run.trtgen(
        "build-plan", str(plan.with_name("model.onnx")), "--output", str(warm), "--precision", "fp16", *profiles,
        "--max-batch", "128", check=False,
    )  # fmt: skip
    if run.failed:
        return
    first = json.loads(plan.with_suffix(".plan.json").read_text())
    second = json.loads(warm.with_suffix(".plan.json").read_text())
    times = {
        "cold_s": first["build_seconds"], "cold": first["timing_cache"],
        "warm_s": second["build_seconds"], "warm": second["timing_cache"],
        "ratio": first["build_seconds"] / second["build_seconds"],
    }  # fmt: skip
    run.save("timing cache", times)
    print(times)


def bench(run: Run, repository: Path, only: list[str]) -> None:
    """Measure the plans beside PyTorch and onnxruntime."""
    for name, batches in BENCH_BATCHES.items():
        plans = [plan for precision in MODELS[name] if (plan := plan_of(repository, f"{name}_{precision}")).is_file()]
        if not plans or (only and not any(one.startswith(f"{name}_") for one in only)):
            continue
        arguments = [text for plan in plans for text in ("--plan", str(plan))]
        onnx = run.work / "exported" / f"{name}_fp16" / "model.onnx"
        output = run.work / f"bench-{name}"
        run.trtgen(
            "bench", str(onnx), *arguments, "--model", name, "--torch-python", run.torch_python,
            "--batches", batches, "--output", str(output), "--rounds", "3", "--seconds", "0.3", check=False,
        )  # fmt: skip
        if (output / "bench.json").is_file():
            run.save(f"bench {name}", json.loads((output / "bench.json").read_text()))


def inspect(run: Run, repository: Path) -> None:
    """Look into the plans of the two large networks."""
    for served, batch in (("resnet50_fp16", "128"), ("resnet50_int8", "128"), ("efficientnet_b0_fp16", "64")):
        plan = plan_of(repository, served)
        if not plan.is_file():
            continue
        page = run.work / f"inspect-{served}.html"
        run.trtgen("inspect", str(plan), "--batch", batch, "--html", str(page), "--top", "25", check=False)
        text = run.trtgen("inspect", str(plan), "--batch", batch, "--json", check=False, show=False)
        (run.work / f"inspect-{served}.json").write_text(text)


def count_right(run: Run, repository: Path) -> None:
    """Count right answers on images that training never saw."""
    from generator.demo.draw import LABELS, draw_set
    from generator.demo.train import HELD_OUT_SEED

    folder = run.work / "held-out"
    if not folder.exists():
        for label in LABELS:
            (folder / label).mkdir(parents=True)
        for index, image in enumerate(draw_set(HELD_OUT, seed=HELD_OUT_SEED)):
            (folder / LABELS[index % len(LABELS)] / f"{index:05}.jpg").write_bytes(image.jpeg)
    found = dict(run.kept().get("held-out", {}))
    for name in (f"demo_{precision}" for precision in MODELS["demo"]):
        if (repository / name).is_dir():
            text = run.trtgen(
                "verify", name, "--repository", str(repository), "--labelled", str(folder), "--json", check=False
            )
            if text.strip():
                found[name] = json.loads(text)[0]
                run.save("held-out", found)


def open_run(arguments: argparse.Namespace) -> tuple[Run, str]:
    """Return a run with `--work`, `--torch-python` and `--torch-path`, and the target of the TensorRT that is here."""
    from generator.plan.library import installed_version

    version = installed_version()
    if version is None:
        raise SystemExit("TensorRT is not installed: pip install -e '.[tensorrt]'")
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    python = shutil.which(arguments.torch_python) or arguments.torch_python
    return Run(work, python, arguments.torch_path), version.target


def main() -> None:
    """Run the steps that are asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("gpu-run"))
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--torch-path", default="", help="PYTHONPATH of the Python that has torch")
    parser.add_argument("--only", nargs="*", default=[], help="export, build and bench only these, such as demo_fp16")
    steps = ("export", "build", "rebuild", "inspect", "bench", "held-out")
    parser.add_argument("--steps", nargs="*", choices=steps, default=list(steps))
    arguments = parser.parse_args()
    run, target = open_run(arguments)
    repository = run.work / "model_repository"
    for step in arguments.steps:
        print(f"## {step}", flush=True)
        if step == "export":
            export(run, target, arguments.only)
        elif step == "build":
            build(run, repository, arguments.only)
        elif step == "rebuild":
            rebuild(run, repository)
        elif step == "inspect":
            inspect(run, repository)
        elif step == "bench":
            bench(run, repository, arguments.only)
        else:
            count_right(run, repository)
    targets = [*of_bench(run.new)]
    print("\n".join(describe(targets)))
    for failure in run.failures:
        print(f"failed: {failure}")
    if run.failures or not all(one.reaches(one.must) for one in targets):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
