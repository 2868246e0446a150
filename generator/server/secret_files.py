"""The folder of certificates and key that a hardened server and its clients use; for development it is made here."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from generator.errors import ServerError
from generator.files import expand_home

if TYPE_CHECKING:
    from collections.abc import Sequence

API_KEY = "api-key"
SERVER_FILES = ("ca.crt", "server.crt", "server.key", API_KEY)
CLIENT_FILES = ("ca.crt", "client.crt", "client.key")
# The extensions of each certificate: the server's is shown by the proxy to tritonserver, as a client's.
_CONFIG = """\
[req]
distinguished_name = subject
[subject]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = {names}
[client]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = clientAuth
"""
_OPTIONS = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650")


def find_client_files(folder: Path) -> list[Path]:
    """Return the authority's certificate, the client's and its key.

    Raises:
        ServerError: Naming what is missing.
    """
    return _find(folder, CLIENT_FILES, "a client")


def check_secrets(folder: Path) -> Path:
    """Return the folder's absolute path, once everything that a server needs is in it.

    Raises:
        ServerError: Naming what is missing.
    """
    return _find(folder, SERVER_FILES, "a server")[0].parent


def _find(folder: Path, names: Sequence[str], who: str) -> list[Path]:
    folder = expand_home(folder).resolve()
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ServerError(
            f"{folder} lacks {', '.join(missing)}; {who} needs {', '.join(names)}",
            hint="put them there (docs/hardening.md says what they are), or have a new folder filled for a trial",
            command=("serve",),
            fields={"tls": True, "secrets": folder},
        )
    return [folder / name for name in names]


def read_key(folder: Path) -> str:
    """Return what opens the restricted APIs."""
    return (folder / API_KEY).read_text(encoding="utf-8").strip()


def make_secrets(folder: Path, *, address: str) -> bool:
    """Fill a new folder with a certificate authority, certificates of a server and a client, and a key.

    The authority's own key is not kept: nobody can sign more. Returns False where the folder is there already.

    Raises:
        ServerError: openssl is absent or fails, or the folder cannot be written.
    """
    folder = expand_home(folder).resolve()
    if folder.exists():
        return False
    numbers = {"127.0.0.1", address} if _is_number(address) else {"127.0.0.1"}
    names = {"localhost", "triton", socket.gethostname(), address} - numbers
    alternatives = [*(f"DNS:{name}" for name in sorted(names)), *(f"IP:{number}" for number in sorted(numbers))]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            made = Path(temporary) / "made"
            made.mkdir(mode=0o700)
            config = Path(temporary) / "openssl.cnf"
            config.write_text(_CONFIG.format(names=", ".join(alternatives)), encoding="utf-8")
            for name in ("ca", "server", "client"):
                _make_certificate(name, made, config)
            (made / "ca.key").unlink()
            key = made / API_KEY
            key.touch(mode=0o600)
            key.write_text(secrets.token_hex(16) + "\n", encoding="utf-8")
            made.rename(folder)
    except OSError as error:
        msg = f"{folder} cannot be written: {error.strerror}"
        raise ServerError(msg, hint="choose another folder", fields={"secrets": None}) from error
    return True


def _make_certificate(name: str, folder: Path, config: Path) -> None:
    """Write NAME.key and NAME.crt, signed by `ca`."""
    program = shutil.which("openssl")
    if program is None:
        hint = "install it (apt-get install openssl), or put certificates of your own into a folder"
        raise ServerError("openssl, which makes the certificates, was not found on PATH", hint=hint)
    signer = () if name == "ca" else ("-CA", folder / "ca.crt", "-CAkey", folder / "ca.key")
    files = ("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt")
    about = ("-config", config, "-extensions", name, "-subj", f"/CN=trtgen {name}")
    run = subprocess.run(
        [program, "req", "-x509", *_OPTIONS, *about, *signer, *files], capture_output=True, text=True, check=False
    )
    if run.returncode:
        msg = f"openssl does not make a certificate: {run.stderr.strip()}"
        raise ServerError(msg, hint="version 3.0 or later was expected (openssl version)")


def _is_number(address: str) -> bool:
    return address.replace(".", "").isdigit()
