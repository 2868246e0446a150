"""What perf_analyzer and Model Analyzer need to measure a model of ours without us.

images.json           perf_analyzer's input file, for a model that takes encoded images
perf_analyzer.sh      the command lines that `trtgen perf` would run
model_analyzer.yaml   Model Analyzer's quick search over the ensemble as it is
tritonserver          the pip server as a command, for Model Analyzer's local mode; it needs `server/` beside it
"""

from __future__ import annotations

import shlex
import shutil
from typing import TYPE_CHECKING, Any

import yaml

from generator.errors import MissingDependencyError, PerfError, ServerError
from generator.measure.perf.images import write_input
from generator.measure.perf.sweep import INPUT_FILE, make_arguments, make_memory_arguments, make_window_arguments
from generator.server.launch import assemble_backends, assemble_python, find_libraries, give_safe_path, is_safe_path
from generator.server.ports import LOOPBACK
from generator.server.wheel import check_embedded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from generator.measure.perf.images import RequestImages
    from generator.measure.perf.served import MeasuredModel
    from generator.measure.perf.sweep import Load
    from generator.server.wheel import EmbeddedTriton

_CHECKPOINTS = "checkpoints"
_SERVER, _CONFIG, _SCRIPT, _HOME = "tritonserver", "model_analyzer.yaml", "perf_analyzer.sh", "server"


def write_export(
    folder: Path, *, repository: Path, models: Sequence[MeasuredModel], images: RequestImages, load: Load
) -> tuple[list[Path], str]:
    """Write the files into `folder` for the first of `models`; the rest are its members.

    Returns:
        The files, and why there is no `tritonserver` among them, empty when there is.

    Raises:
        PerfError: tritonserver does not take the folder's path, or it cannot be written.
    """
    folder, repository = folder.resolve(), repository.resolve()
    if not is_safe_path(folder):
        raise PerfError(
            f"tritonserver does not take the path {folder}",
            hint="choose a folder of ASCII letters, digits and _./+@:- only",
            fields={"export": None},
        )
    if (folder / _HOME).exists() and not (folder / _CONFIG).is_file():
        raise PerfError(
            f"{folder / _HOME} exists, but {folder} was not exported by trtgen: nothing was changed",
            hint="give another folder",
            fields={"export": None},
        )
    model = models[0]
    written = [folder / _CONFIG, folder / _SCRIPT]
    missing = ""
    try:
        home = folder / _HOME
        for old in (home, folder / _CHECKPOINTS):  # Model Analyzer would take what it measured before for a result
            shutil.rmtree(old, ignore_errors=True)
        home.mkdir(parents=True)
        try:
            triton = check_embedded()
        except (MissingDependencyError, ServerError) as error:
            missing = error.message
        else:
            written.append(_write(folder / _SERVER, _make_server(triton, home), executable=True))
        if model.image_input:
            write_input(images.images, model.image_input, folder / INPUT_FILE)
            written.append(folder / INPUT_FILE)
        _write(folder / _SCRIPT, _make_script(model, load), executable=True)
        config = _make_config(folder, give_safe_path(repository, home), models, load, has_server=not missing)
        _write(folder / _CONFIG, _describe_config(folder) + yaml.safe_dump(config, sort_keys=False))
    except OSError as error:
        msg = f"{folder} cannot be written: {error.strerror}"
        raise PerfError(msg, hint="choose another folder", fields={"export": None}) from error
    return written, missing


def _write(path: Path, text: str, *, executable: bool = False) -> Path:
    path.write_text(text, encoding="utf-8")
    if executable:
        path.chmod(0o755)
    return path


def _make_script(model: MeasuredModel, load: Load) -> str:
    lines = [
        "#!/bin/sh",
        f"# What `trtgen perf` runs to measure {model.name}; the server is the one at {load.url}.",
        'cd "$(dirname "$0")" || exit 1',
        f"analyzer={shlex.quote(str(load.analyzer))}",
        'perf_analyzer="${PERF_ANALYZER:-$analyzer}"',
    ]
    for concurrency in load.concurrencies:
        arguments = make_arguments(model, concurrency, load, output=f"{model.name}-{concurrency}.csv")
        lines.append(f'"$perf_analyzer" {shlex.join([*arguments, *make_window_arguments(load)])} "$@" || code=$?')
    return "\n".join([*lines, 'exit "${code:-0}"', ""])


def _make_server(triton: EmbeddedTriton, home: Path) -> str:
    """Return the script that is tritonserver for who knows nothing of our backends and its libraries."""
    libraries = ":".join(find_libraries(triton))
    python = assemble_python(triton, home)
    options = [
        f"--backend-directory={assemble_backends(triton, home)}",
        # Model Analyzer starts it so that whoever reaches it may load models, and with them code.
        *(f"--{endpoint}-address={LOOPBACK}" for endpoint in ("http", "grpc", "metrics")),
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
    ]
    return "\n".join(
        [
            "#!/bin/sh",
            "# tritonserver of nvidia-pytriton with trtgen's backends, on loopback; made by `trtgen perf --export`.",
            f'export LD_LIBRARY_PATH={shlex.quote(libraries)}"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"',
            f'export PATH={shlex.quote(str(python))}:"$PATH"',
            f'exec {shlex.join([str(triton.binary), *options])} "$@"',
            "",
        ]
    )


def _describe_config(folder: Path) -> str:
    command = f"model-analyzer profile -f {folder / _CONFIG}"
    return (
        f"# {command}\n"
        "# starts servers of its own. Beside `trtgen serve --model-control explicit --unlocked`:\n"
        f"# {command} --triton-launch-mode remote\n"
    )


def _make_config(
    folder: Path, repository: Path, models: Sequence[MeasuredModel], load: Load, *, has_server: bool
) -> dict[str, Any]:
    """Return Model Analyzer's configuration for a quick search, the one that it has for ensembles.

    That search refuses `batch_sizes` and sends one image per request, whatever `load` says. It applies a limit of
    max_batch_size to the members and not to the ensemble, which then does not load: there is none.
    """
    model, *members = models
    parts = members or [model]
    host = load.url.rpartition(":")[0]
    http, grpc = (load.url if protocol == load.protocol else "" for protocol in ("http", "grpc"))
    arguments = [*make_memory_arguments(model, load), *make_window_arguments(load)]
    if model.image_input:  # else it sends random strings, which are no images
        arguments += ["--input-data", str(folder / INPUT_FILE)]
    flags = {name.removeprefix("--"): value for name, value in zip(arguments[::2], arguments[1::2], strict=True)}
    profile: dict[str, Any] = {"perf_analyzer_flags": flags}
    if all(part.on_cpu for part in parts):  # else it tries instances on a GPU
        profile["cpu_only"] = True
    config: dict[str, Any] = {
        "model_repository": str(repository),
        "profile_models": {model.name: profile},
        "run_config_search_mode": "quick",
        "run_config_search_max_concurrency": max(*load.concurrencies, 2 * model.max_batch_size),
        "client_protocol": load.protocol,
        "perf_analyzer_path": str(load.analyzer),
        "perf_analyzer_timeout": int(load.timeout_s),
        "triton_launch_mode": "local",
        "triton_http_endpoint": http or f"{host}:8000",
        "triton_grpc_endpoint": grpc or f"{host}:8001",
        "triton_metrics_url": f"http://{load.metrics_url}/metrics",
        "triton_output_path": str(folder / "tritonserver.log"),
        "checkpoint_directory": str(folder / _CHECKPOINTS),
        "output_model_repository_path": str(folder / "output_model_repository"),
        "override_output_model_repository": True,
        "export_path": str(folder / "results"),
    }
    if on_cpu := [member.name for member in members if member.on_cpu]:
        config["cpu_only_composing_models"] = on_cpu
    if has_server:
        config["triton_server_path"] = str(folder / _SERVER)
    return config
