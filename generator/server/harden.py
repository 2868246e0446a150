"""A hardened launch as text: a script, a docker command, a compose file, nginx's configuration."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from generator.render import render
from generator.server.configs import read_configs
from generator.server.container import DEFAULT_IMAGE, STOCK_RELEASE, Container, Hardening
from generator.server.hardening import (
    DEFAULT_INPUT_BYTES,
    KEY,
    Values,
    describe,
    list_remarks,
    read_key_in_shell,
    write_options,
)
from generator.server.ports import ANY_ADDRESS, LOOPBACK, Ports
from generator.server.secret_files import API_KEY, SERVER_FILES

if TYPE_CHECKING:
    from pathlib import Path

_MOST_BYTES = 2**31 - 1  # tritonserver reads a number of 32 bits
_HEADER_BYTES = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What is to be started: `repository` and `hardening.secrets` are folders of this machine."""

    repository: Path
    hardening: Hardening
    gpus: bool = True

    def write_flags(self) -> str:
        """Return a script that runs tritonserver here, HTTP and metrics on loopback."""
        values = Values(
            address="0.0.0.0",  # noqa: S104 - TLS, and a certificate asked of every client
            http_address=LOOPBACK,
            secrets=str(self.hardening.secrets),
            key=KEY,
            max_input_bytes=self.hardening.max_input_bytes,
        )
        arguments = [
            (f'"{text}"' if KEY in text else shlex.quote(text), describe(option))
            for option, text in reversed(write_options(values, "tls", "hardened", release=self.hardening.release))
        ]
        return render(
            "hardened/tritonserver.sh.j2",
            release=self.hardening.release,
            remarks=list_remarks(self.hardening.release),
            read_key=read_key_in_shell(str(self.hardening.secrets / API_KEY)),
            arguments=arguments,
            command=f"tritonserver --model-repository={shlex.quote(str(self.repository))}",
        )

    def write_docker(self) -> str:
        """Return the `docker run` command of `trtgen serve --container --hardened`, one argument a line."""
        release = self.hardening.release
        image = DEFAULT_IMAGE.replace(STOCK_RELEASE, release)
        ports = Ports(http=8000, grpc=8001, metrics=8002)
        argv = Container(self.repository, ports=ports, image=image, gpus=self.gpus, hardening=self.hardening).argv
        values = Values(address=ANY_ADDRESS, key="...", max_input_bytes=self.hardening.max_input_bytes)
        written = write_options(values, "tls", "hardened", release=release)
        stock = f"nvcr.io/nvidia/tritonserver:{release}-py3"
        install = (
            f"PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir pillow=={metadata.version('pillow')}"
        )
        comments = [
            *list_remarks(release),
            f"the image: printf 'FROM {stock}\\nRUN {install}\\n' | docker build -t {image} -",
            *(f"{text.partition('=')[0]}  {describe(option)}" for option, text in written),
        ]
        lines = [shlex.join(argv[:2]), *map(shlex.quote, argv[2:])]
        return "".join(f"# {comment}\n" for comment in comments) + " \\\n  ".join(lines) + "\n"

    def write_compose(self) -> str:
        """Return a compose file of tritonserver and nginx."""
        wrapper, arguments = self.hardening.make_command()
        return render(
            "hardened/compose.yaml.j2",
            release=self.hardening.release,
            remarks=list_remarks(self.hardening.release),
            repository=str(self.repository),
            secrets=str(self.hardening.secrets),
            files=", ".join(SERVER_FILES),
            pillow=metadata.version("pillow"),
            gpus=self.gpus,
            wrapper=wrapper,
            arguments=[("--model-repository=/models", "read-only"), *arguments],
        )

    def write_nginx(self, *, http_url: str, grpc_url: str, port: int, secrets: str = "") -> str:
        """Return nginx's configuration; `secrets` is the folder as nginx sees it."""
        return render(
            "hardened/nginx.conf.j2",
            release=self.hardening.release,
            http_url=http_url,
            grpc_url=grpc_url,
            port=port,
            secrets=secrets or str(self.hardening.secrets),
            max_input_bytes=self.hardening.max_input_bytes,
        )

    def write_nginx_of_compose(self) -> str:
        """Return what lies beside the compose file as nginx.conf."""
        return self.write_nginx(http_url="triton:8000", grpc_url="triton:8001", port=8443, secrets="/secrets")


def find_input_limit(repository: Path) -> int:
    """Return the bytes of the largest image that a recipe takes, as many times as its largest batch.

    Triton's own limit where the repository has no recipe.
    """
    limits = []
    for config in read_configs(repository).values():
        image = config.parameters["max_bytes"].string_value if "max_bytes" in config.parameters else ""
        if image.isdecimal():  # another program's may be called so, too
            limits.append(int(image) * max(config.max_batch_size, 1) + _HEADER_BYTES)
    return min(max(limits, default=DEFAULT_INPUT_BYTES), _MOST_BYTES)
