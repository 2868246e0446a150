"""Another version of a model into a server that runs: its members first, and back again if one does not load."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from generator.errors import RepositoryError, ServerError
from generator.repository import Layout
from generator.server import endpoint
from generator.server.hardening import OWNER_HEADER
from generator.server.ports import is_loopback
from generator.triton.check import parse_config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from generator.repository import Record


class LiveServer:
    """A server of `root` in explicit mode, on this machine.

    Args:
        url: Its HTTP address, `host:port`.
        root: The model repository that it serves.
        key: What opens its repository API.

    Raises:
        ServerError: It is no address, or another machine's: whoever may load models may run code there.
    """

    def __init__(self, url: str, root: Path, *, key: str) -> None:
        host, _, port = url.rpartition(":")
        if not host or "/" in host or not port.isdecimal():
            msg = f"{url!r} is not an address, a name and a port were expected"
            raise ServerError(msg, hint="give one", fields={"http_url": "127.0.0.1:8000"})
        if not is_loopback(host):
            raise ServerError(
                f"{url} is not this machine, and whoever may load models may run code: only loopback is served so",
                hint="run it where the server runs",
                fields={"http_url": "127.0.0.1:8000"},
            )
        self._url, self._root = url, root
        self._headers = {OWNER_HEADER: key} if key else {}

    def reload(self, record: Record, version: int | None = None) -> dict[str, list[int]]:
        """Load the published version of each member and of the ensemble, or `version`; return what was served before.

        Where one does not load, all get their old versions back.

        Raises:
            RepositoryError: There is no such version.
            ServerError: The server does not serve the model or does not let it be loaded, or one did not load.
        """
        models = Layout.of_record(record).models
        target = version or record.version
        if missing := [model for model in models if not (self._root / model / str(target)).is_dir()]:
            msg = f"{self._root / missing[0]} has no version {target}"
            raise RepositoryError(msg, hint="take one that is there", fields={"version": None})
        before = self._find_versions(models)
        if absent := [model for model, versions in before.items() if not versions]:
            raise ServerError(
                f"the server at {self._url} does not serve {absent[0]}",
                hint="start it so that models can be loaded",
                command=("serve",),
                fields={"model_control": "explicit", "repository": self._root},
            )
        try:
            self._load_all(models, target, None if version is None else [version])
        except ServerError as error:
            for model in models:
                with contextlib.suppress(ServerError):  # the others are to come back all the same
                    self._load(model, before[model])
            now = self._find_versions(models)
            wrong = [f"{model} {now[model]}" for model in models if now[model] != before[model]]
            after = f"not all is as before: {', '.join(wrong)}" if wrong else "what was served before is served on"
            raise ServerError(f"{error.message}; {after}", **error.advice) from error
        return before

    def _load_all(self, models: Sequence[str], target: int, versions: Sequence[int] | None) -> None:
        ensemble = models[-1]
        served = endpoint.find_batch_limit(self._url, ensemble, headers=self._headers)
        # An ensemble may not take more than its members: where they are to take less, it comes before them, too.
        lowered = len(models) > 1 and self._read_config(ensemble).max_batch_size < served
        for model in [ensemble, *models] if lowered else models:
            self._load(model, versions)
        now = self._find_versions(models)
        if late := [model for model in models if target not in now[model]]:
            msg = f"version {target} of {late[0]} is not ready at {self._url}"
            raise ServerError(msg, hint="look at its version_policy, and whether the server has this repository")

    def _find_versions(self, models: Sequence[str]) -> dict[str, list[int]]:
        """Return the versions of each model that are ready."""
        try:
            states = endpoint.list_models(self._url, headers=self._headers)
        except ServerError as error:
            hint = "start one that takes models, and give its key"
            raise ServerError(error.message, hint=hint, fields={"key": None}) from error
        ready = [(state.name, int(state.version)) for state in states if state.state == "READY" and state.version]
        return {model: [version for name, version in ready if name == model] for model in models}

    def _load(self, model: str, versions: Sequence[int] | None) -> None:
        """Load a model as its config.pbtxt says, or these versions of it."""
        body = {}
        if versions is not None:
            from google.protobuf import json_format

            config = self._read_config(model)
            config.name = model
            config.version_policy.specific.versions[:] = versions
            text = json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True))
            body = {"parameters": {"config": text}}
        endpoint.load_model(self._url, model, headers=self._headers, body=body)

    def _read_config(self, model: str) -> Any:
        return parse_config(model, (self._root / model / "config.pbtxt").read_text(encoding="utf-8"))
