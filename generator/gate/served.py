"""The three served models of one spec, called over gRPC as a client would."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from generator.errors import ServerError
from generator.repository import name_option

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from generator.repository import Layout

__all__ = ["ServedModel", "check_server"]

_TIMEOUT_S = 300.0
_ASK_TIMEOUT_S = 20.0


def check_server(grpc_url: str, layouts: Sequence[Layout], repository: Path) -> None:
    """Refuse a server that cannot be asked about these models, before anything is said about the models themselves.

    Raises:
        ServerError: Nothing answers there, or it does not serve one of them.
    """
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    serve = f"trtgen serve{name_option(repository)}"
    try:
        with contextlib.closing(InferenceServerClient(grpc_url)) as client:
            index = client.get_model_repository_index(client_timeout=_ASK_TIMEOUT_S)
    except InferenceServerException as error:
        msg = f"no Triton server answers gRPC at {grpc_url}: {error.message()}"
        raise ServerError(msg, hint=f"start one with `{serve}`, or give another --url HOST:PORT") from error
    ready = sorted({entry.name for entry in index.models if entry.state == "READY"})
    for layout in layouts:
        for name in (layout.preprocess, layout.classifier, layout.ensemble):
            if name not in ready:
                msg = f"the server at {grpc_url} does not serve {name}; it serves {', '.join(ready) or 'no model'}"
                raise ServerError(msg, hint=f"serve it with `{serve}`, give another --url, or name what it serves")


class ServedModel:
    """Calls to one model's ensemble and members at `grpc_url`; a refused request becomes ServerError."""

    def __init__(self, grpc_url: str, layout: Layout, *, max_batch_size: int) -> None:
        from tritonclient.grpc import InferenceServerClient

        self._client = InferenceServerClient(grpc_url)
        self._layout = layout
        self._batch = max_batch_size
        self._names: dict[str, tuple[str, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def preprocess(self, files: Sequence[bytes]) -> NDArray[np.uint8]:
        """Return the pixels of encoded images, (N, H, W, 3)."""
        return self._in_batches(self._layout.preprocess, _as_bytes_array(files))

    def classify_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the classifier's scores, (N, classes); batches of the largest size and a rest."""
        return self._in_batches(self._layout.classifier, pixels)

    def classify_images(self, files: Sequence[bytes]) -> NDArray[np.float32]:
        """Return the ensemble's scores, (N, classes)."""
        return self._in_batches(self._layout.ensemble, _as_bytes_array(files))

    def classifier_labels(self, pixels: NDArray[np.uint8]) -> list[tuple[int, str]]:
        """Return (class index, label) of every class, as the classifier serves them."""
        return self._labels(self._layout.classifier, pixels)

    def ensemble_labels(self, file: bytes) -> list[tuple[int, str]]:
        """Return (class index, label) of every class, as the ensemble serves them."""
        return self._labels(self._layout.ensemble, _as_bytes_array([file]))

    def _in_batches(self, model: str, values: NDArray[Any]) -> NDArray[Any]:
        import numpy as np

        return np.concatenate([self._infer(model, batch, 0) for batch in _split(values, self._batch)])

    def _labels(self, model: str, values: NDArray[Any]) -> list[tuple[int, str]]:
        # the server ranks all classes when asked for more than there are
        ranked = self._infer(model, values, 1_000_000)
        rows = [item.decode("utf-8").split(":", 2) for item in ranked.reshape(-1)]
        return [(int(row[1]), row[2] if len(row) == 3 else "") for row in rows]

    def _infer(self, model: str, values: NDArray[Any], class_count: int) -> NDArray[Any]:
        from tritonclient.grpc import InferInput, InferRequestedOutput
        from tritonclient.utils import InferenceServerException, np_to_triton_dtype

        try:
            name_in, name_out = self._tensor_names(model)
            tensor = InferInput(name_in, list(values.shape), np_to_triton_dtype(values.dtype))
            tensor.set_data_from_numpy(values)
            output = InferRequestedOutput(name_out, class_count=class_count)
            result = self._client.infer(model, [tensor], outputs=[output], client_timeout=_TIMEOUT_S)
        except InferenceServerException as error:
            msg = f"{model} did not answer: {error.message()}"
            raise ServerError(msg, hint="look at the server's log") from error
        array: NDArray[Any] = result.as_numpy(name_out)
        return array

    def _tensor_names(self, model: str) -> tuple[str, str]:
        if model not in self._names:
            metadata = self._client.get_model_metadata(model, client_timeout=_TIMEOUT_S)
            self._names[model] = (metadata.inputs[0].name, metadata.outputs[0].name)
        return self._names[model]


def _as_bytes_array(files: Sequence[bytes]) -> NDArray[np.object_]:
    import numpy as np

    array = np.empty((len(files), 1), np.object_)
    for index, data in enumerate(files):
        array[index, 0] = data
    return array


def _split(values: NDArray[Any], size: int) -> Iterable[NDArray[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))
