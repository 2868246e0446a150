"""What a tritonserver is started with: a repository, options, a log; for the pip one a directory and an environment."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import ServerError
from generator.files import expand_home
from generator.render import read_runtime, template_root
from generator.repository import published_root, recover
from generator.server.configs import read_configs
from generator.server.hardening import OWNER_HEADER, PIP_RELEASE, write_options
from generator.triton.fused import NETWORK_BACKEND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from generator.server.hardening import Use, Values
    from generator.server.ports import Ports
    from generator.server.wheel import EmbeddedTriton

logger = logging.getLogger(__name__)

_AS_STATED = "disable-auto-complete-config"
_SAFE_PATH = re.compile(r"[A-Za-z0-9_./+@:-]+")


def open_repository(repository: Path) -> Path:
    """Return the repository's absolute path after an interrupted publish in it was finished or undone.

    Raises:
        ServerError: It does not exist, or holds no model.
        RepositoryError: The interrupted publish can be neither finished nor undone.
    """
    root = expand_home(repository).resolve()
    advice: dict[str, Any] = {
        "hint": "build a model",
        "command": ("build-repo", "resnet50"),
        "fields": {"repository": repository},
    }
    if not os.path.isdir(root):  # noqa: PTH112 - Path.is_dir raises where a folder may not be searched
        raise ServerError(f"there is no model repository at {root}", **advice)
    for action in recover(root, otherwise="served as it is"):
        logger.warning("%s", action)
    if not any(root.glob("*/config.pbtxt")):
        raise ServerError(f"the model repository {root} holds no model", **advice)
    return root


def name_rebuild(repository: Path, model: str, **fields: object) -> dict[str, Any]:
    """Return command and fields that build a model again, by its public name: from its record where it has one."""
    root = published_root(repository)
    root = root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root
    record = root / model / "trtgen.json"
    if record.is_file():
        return {"command": ("build-repo",), "fields": {"spec": record, "repository": root, **fields}}
    return {"command": ("build-repo", model), "fields": {"repository": root, **fields}}


def find_ensembles(repository: Path) -> dict[str, str]:
    """Return the ensemble, whose name is the public one, of each model that is a member of one."""
    configs = read_configs(repository)
    return {step.model_name: name for name, config in configs.items() for step in config.ensemble_scheduling.step}


def find_fused(repository: Path) -> list[str]:
    """Return the models that decode and run their network in one process."""
    return [name for name, config in read_configs(repository).items() if NETWORK_BACKEND in config.parameters]


def create_log(path: Path) -> None:
    """Make an empty log.

    Raises:
        ServerError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    except OSError as error:
        msg = f"cannot write the log {path}: {error.strerror}"
        raise ServerError(msg, hint="name another file for the log", fields={"log_path": None}) from error


def is_safe_path(path: Path) -> bool:
    """Tell whether tritonserver 2.51 can take the path.

    It starts the stub through a shell without quoting (a space makes it wait for ever), and the stub's Python, isolated
    from the locale, cannot open a path that is not ASCII.
    """
    return _SAFE_PATH.fullmatch(str(path)) is not None


def make_directory(identifier: str) -> Path:
    """Return a new temporary directory for one server, at a path that tritonserver can take."""
    parent = Path(tempfile.gettempdir())
    return Path(tempfile.mkdtemp(prefix=f"{identifier}-", dir=parent if is_safe_path(parent) else "/tmp"))  # noqa: S108


def give_safe_path(repository: Path, directory: Path) -> Path:
    """Return a path of the repository that tritonserver can take: itself, or a link inside `directory`."""
    if is_safe_path(repository):
        return repository
    link = directory / "models"
    link.symlink_to(repository, target_is_directory=True)
    return link


def assemble_backends(triton: EmbeddedTriton, directory: Path) -> Path:
    """Return a new backend directory inside `directory`: the wheel's Python backend and our Python-based ones.

    Files are copied: tritonserver refuses a symbolic link that leads out of it ("escapes backend directory").
    """
    backends = directory / "backends"
    python = backends / "python"
    python.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy2(triton.python_backend / name, python / name)
    shutil.copy2(triton.stub, python / triton.stub.name)
    for model in (template_root() / "backends").glob("*/model.py"):
        target = backends / model.parent.name
        target.mkdir()
        shutil.copy2(model, target / model.name)
    copy_runtime(backends / "tensorrt")
    return backends


def copy_runtime(backend: Path) -> None:
    """Put `generator.runtime`, and what it imports, beside the backend's model.py as the package `trtgen_runtime`."""
    for name, content in read_runtime().items():
        path = backend / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def assemble_python(triton: EmbeddedTriton, directory: Path) -> Path:
    """Return the `bin` of a new virtual environment inside `directory` that has the packages of this process.

    The stub ignores every PYTHON* variable (it runs isolated) and takes the first `python3` on PATH as its home, so
    this is the way to give it the same standard library and the same packages, wherever they are installed.
    """
    home = directory / "python"
    site_packages = home / "lib" / f"python{triton.python_version}" / "site-packages"
    site_packages.mkdir(parents=True)
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(sys.executable)
    base = Path(sys.base_prefix) / "bin"
    (home / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n", encoding="utf-8")
    packages = [str(folder) for path in sys.path if _holds_packages(folder := Path(path).absolute())]
    lines = [
        # Else byte code of model.py files would be written into the model repository.
        "import sys; sys.dont_write_bytecode = True",
        *(f"import site; site.addsitedir({path!r})" for path in packages),
    ]
    (site_packages / "trtgen.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return home / "bin"


def _holds_packages(folder: Path) -> bool:
    """Say whether pip installs there: by its name, or by what it holds, as after `pip install --target`."""
    if folder.name in ("site-packages", "dist-packages"):
        return True
    return os.path.isdir(folder) and any(folder.glob("*.dist-info"))  # noqa: PTH112 - as in open_repository


def make_argv(
    triton: EmbeddedTriton,
    repository: Path | str,
    *,
    options: Sequence[str],
    backends: Path,
    values: Values,
    uses: Sequence[Use] = (),
    ports: Ports,
    identifier: str,
    models: Sequence[str] = (),
    locked: bool = False,
    completed: bool = False,
) -> list[str]:
    """Return tritonserver's command line.

    Args:
        triton: The parts of the wheel.
        repository: A path that tritonserver can take, or an address that it reads by itself.
        options: What `find_options` returned for it.
        backends: What `assemble_backends` returned.
        values: What its options depend on.
        uses: Which options it gets beside those of every server.
        ports: Where it listens.
        identifier: What its shared memory is called after.
        models: Load these only, `*` for all.
        locked: Whether calls that list and load models must carry the key; whoever may load models may run code.
        completed: Whether configurations may leave out what a backend fills in.
    """
    lock = f"model-repository:{OWNER_HEADER}={values.key}"
    locks = [f"--http-restricted-api={lock}", f"--grpc-restricted-protocol={lock}"]
    return [
        str(triton.binary),
        f"--model-repository={repository}",
        *(f"--load-model={model}" for model in models),
        *(locks if locked and "hardened" not in uses else ()),  # which restricts these, too
        *(
            text
            for option, text in write_options(values, *uses, release=PIP_RELEASE)
            if not (completed and option.name == _AS_STATED)
        ),
        f"--backend-directory={backends}",
        f"--cache-directory={triton.caches}",
        *options,
        *(f"--{name}-port={port}" for name, port in ports.named().items()),
        "--metrics-interval-ms=250",  # the server's end waits for an interval's end; the default is 2 s
        f"--backend-config=python,shm-region-prefix-name={identifier}_",
    ]


def find_libraries(triton: EmbeddedTriton) -> list[str]:
    """Return the folders of the shared libraries that tritonserver and its stubs need."""
    return [str(triton.libraries), *([str(triton.libpython)] if triton.libpython else [])]


def make_environment(triton: EmbeddedTriton, *, python: Path) -> dict[str, str]:
    """Return this process's environment with the libraries and the Python (its `bin`) that the stub needs."""
    environment = {"PATH": os.defpath, **os.environ}
    for name, folders in (("LD_LIBRARY_PATH", find_libraries(triton)), ("PATH", [str(python)])):
        environment[name] = os.pathsep.join([*folders, *filter(None, [environment.get(name)])])
    return environment
