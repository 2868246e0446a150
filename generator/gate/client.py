"""The members of one served model, called over gRPC as a client would."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import ServerError
from generator.server.secret_files import find_client_files

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException
    from typing_extensions import Self

    from generator.repository import Layout

PREPROCESS_KEY = "preprocess"

_TIMEOUT_S = 300.0
_ASK_TIMEOUT_S = 20.0
_OTHER_MODEL = "another model of this name is served: look at the server's repository"


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcAddress:
    """Where a server is, `host:port`; `secrets` is the folder of certificates, None for a server without TLS.

    With `options`, gRPC's for the channel, `url` may be another of gRPC's targets.
    """

    url: str
    secrets: Path | None = None
    options: tuple[tuple[str, Any], ...] | None = None

    def connect(self) -> InferenceServerClient:
        """Return a client.

        Raises:
            ServerError: A file of the folder is missing.
        """
        from tritonclient.grpc import InferenceServerClient

        if self.secrets is None:
            return InferenceServerClient(self.url, channel_args=self.options)
        ca, certificate, key = (str(path) for path in find_client_files(self.secrets))
        return InferenceServerClient(
            self.url,
            ssl=True,
            root_certificates=ca,
            certificate_chain=certificate,
            private_key=key,
            channel_args=self.options,
        )


def check_server(
    address: GrpcAddress, layouts: Sequence[Layout], repository: Path, *, timeout_s: float = _ASK_TIMEOUT_S
) -> None:
    """Refuse a server that cannot be asked about these models, before anything is said about the models themselves.

    Raises:
        ServerError: Nothing answers there, or it does not serve one of them.
    """
    from tritonclient.utils import InferenceServerException

    start: dict[str, Any] = {"command": ("serve",), "fields": {"repository": repository}}
    try:
        with contextlib.closing(address.connect()) as client:
            ready = list_ready(client, [name for layout in layouts for name in layout.models], timeout_s)
    except InferenceServerException as error:
        msg = f"no Triton server answers gRPC at {address.url}: {error.message()}"
        if address.secrets is None and "Socket closed" in error.message():
            msg += " (it may ask for TLS and a certificate)"
            start["fields"]["secrets"] = None
        raise ServerError(msg, hint="give the gRPC address of another, or start one", **start) from error
    for layout in layouts:
        for name in layout.models:
            if name not in ready:
                msg = f"the server at {address.url} does not serve {name}; it serves {', '.join(ready) or 'no model'}"
                raise ServerError(msg, hint="name what it serves, give another address, or serve it", **start)


def list_ready(client: InferenceServerClient, names: Sequence[str], timeout_s: float) -> list[str]:
    """Return the models that are ready; of those in `names`, where the server does not list its models."""
    from tritonclient.utils import InferenceServerException

    try:
        index = client.get_model_repository_index(client_timeout=timeout_s)
    except InferenceServerException as error:
        if not is_restricted(error):
            raise
        return [name for name in names if client.is_model_ready(name, client_timeout=timeout_s)]
    return sorted({entry.name for entry in index.models if entry.state == "READY"})


def is_restricted(error: InferenceServerException) -> bool:
    """Tell whether the server, or a proxy in front of it, keeps this API to itself."""
    return "restricted" in error.message() or error.status() in ("StatusCode.PERMISSION_DENIED", "403")


class ServedModel:
    """Calls to one model's members at `address`, one after the other; a refused request becomes ServerError.

    Args:
        address: The server's.
        layout: Which members there are.
        max_batch_size: How many rows go into a request.
        timeout_s: How long the server may take for a request.
    """

    def __init__(
        self, address: GrpcAddress, layout: Layout, *, max_batch_size: int, timeout_s: float = _TIMEOUT_S
    ) -> None:
        self._client = address.connect()
        self._layout = layout
        self._batch = max_batch_size
        self._timeout_s = timeout_s
        self._names: dict[str, tuple[str, tuple[str, ...]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def ask(
        self,
        key: str,
        values: NDArray[Any] | Mapping[str, NDArray[Any]],
        *,
        only: Collection[str] = (),
        needed: Collection[str] = (),
    ) -> dict[str, NDArray[Any]]:
        """Return the outputs of the member with this role for any number of rows of its input, or inputs by name.

        `only` are the outputs to ask for, as far as it has them: of a fused model those that go from one of its parts
        to the next, which it answers to who asks for nothing else. `needed` are those that it must have.
        """
        import numpy as np

        model = self._layout.find(key)
        parts = []
        for batch in _split(values, self._batch):
            parts.append(part := self._infer(model, batch, 0, only))
            count = len(batch) if isinstance(batch, np.ndarray) else len(next(iter(batch.values())))
            if wrong := [name for name, rows in part.items() if rows.shape[:1] != (count,)]:
                msg = f"{model} answers {list(part[wrong[0]].shape)} as {wrong[0]} for {count} images"
                raise ServerError(msg, hint=_OTHER_MODEL)
        if missing := [name for name in needed if name not in parts[0]]:
            msg = f"{model} does not answer {', '.join(missing)}; it answers {', '.join(parts[0]) or 'nothing'}"
            raise ServerError(msg, hint=_OTHER_MODEL)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def find_versions(self) -> dict[str, int]:
        """Return of each member the version that answers who asks for none: the newest that is ready."""
        found = {}
        for model in self._layout.models:
            versions = [int(version) for version in self._read_metadata(model).versions]
            if not versions:
                raise ServerError(f"no version of {model} is ready", hint="look at the server's log")
            found[model] = max(versions)
        return found

    def rank(self, key: str, values: NDArray[Any]) -> list[tuple[int, str]]:
        """Return (index, label) of every class of the member's first output, best first, as the server ranks them."""
        # it ranks all classes when asked for more than there are
        ranked = next(iter(self._infer(self._layout.find(key), values, 1_000_000).values()))
        rows = [item.decode("utf-8").split(":", 2) for item in ranked.reshape(-1)]
        return [(int(row[1]), row[2] if len(row) == 3 else "") for row in rows]

    def _infer(
        self,
        model: str,
        values: NDArray[Any] | Mapping[str, NDArray[Any]],
        class_count: int,
        only: Collection[str] = (),
    ) -> dict[str, NDArray[Any]]:
        import numpy as np
        from tritonclient.grpc import InferInput, InferRequestedOutput
        from tritonclient.utils import InferenceServerException, np_to_triton_dtype

        try:
            only_input, outputs = self._tensor_names(model)
            tensors = []
            for name, rows in ({only_input: values} if isinstance(values, np.ndarray) else values).items():
                tensors.append(InferInput(name, list(rows.shape), np_to_triton_dtype(rows.dtype)))
                tensors[-1].set_data_from_numpy(rows)
            outputs = tuple(output for output in outputs if output in only) or outputs
            asked = [InferRequestedOutput(output, class_count=class_count) for output in outputs]
            result = self._client.infer(model, tensors, outputs=asked, client_timeout=self._timeout_s)
        except InferenceServerException as error:
            raise _no_answer(model, error) from error
        answers = {output: result.as_numpy(output) for output in outputs}
        return {output: values for output, values in answers.items() if values is not None}

    def _tensor_names(self, model: str) -> tuple[str, tuple[str, ...]]:
        if model not in self._names:
            metadata = self._read_metadata(model)
            self._names[model] = (metadata.inputs[0].name, tuple(output.name for output in metadata.outputs))
        return self._names[model]

    def _read_metadata(self, model: str) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return self._client.get_model_metadata(model, client_timeout=self._timeout_s)
        except InferenceServerException as error:
            raise _no_answer(model, error) from error


def _no_answer(model: str, error: InferenceServerException) -> ServerError:
    return ServerError(f"{model} did not answer: {error.message()}", hint="look at the server's log")


def as_bytes(files: Sequence[bytes]) -> NDArray[np.object_]:
    """Return encoded images as the rows of a BYTES tensor."""
    import numpy as np

    array = np.empty((len(files), 1), np.object_)
    for index, data in enumerate(files):
        array[index, 0] = data
    return array


def _split(
    values: NDArray[Any] | Mapping[str, NDArray[Any]], size: int
) -> Iterable[NDArray[Any] | dict[str, NDArray[Any]]]:
    import numpy as np

    if isinstance(values, np.ndarray):
        return (values[start : start + size] for start in range(0, len(values), size))
    count = len(next(iter(values.values())))
    return ({name: rows[at : at + size] for name, rows in values.items()} for at in range(0, count, size))
