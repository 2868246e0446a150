"""TensorRT's Python bindings: the module, and its log."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections import deque
from typing import Any

_LOG = logging.getLogger(__name__)
_BINDINGS = "tensorrt_bindings"
_KEPT_MESSAGES = 50


def import_tensorrt(name: str = "tensorrt") -> Any:
    """Return the module, or the bindings of `tensorrt` alone, which NVIDIA's images let one add to the libraries.

    Raises:
        ImportError, OSError: It is not there, or does not load.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name == error.name == "tensorrt" or importlib.util.find_spec(_BINDINGS) is None:
            raise
        return importlib.import_module(_BINDINGS)


class TensorRTLog:
    """TensorRT's messages: handed on to Python's log, and kept, since its functions return None instead of raising.

    `logger` is what TensorRT's functions take. `info` of TensorRT is our debug level: it reports every layer.
    """

    def __init__(self, trt: Any) -> None:
        self.errors: deque[str] = deque(maxlen=_KEPT_MESSAGES)
        self.warnings: deque[str] = deque(maxlen=_KEPT_MESSAGES)
        severity = trt.ILogger.Severity
        # what goes wrong is raised with these words; printing it too would say it twice
        told = (severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING)
        keep = {severity.INTERNAL_ERROR: self.errors, severity.ERROR: self.errors, severity.WARNING: self.warnings}

        class Bridge(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, level: Any, text: str) -> None:
                if level == severity.VERBOSE and not _LOG.isEnabledFor(logging.DEBUG):
                    return  # a builder says hundreds of thousands of these
                if level in keep:
                    keep[level].append(" ".join(text.split()))
                _LOG.log(logging.INFO if level in told else logging.DEBUG, "%s", text)

        self.logger = Bridge()

    def clear(self) -> None:
        """Forget what was said so far: call before what may fail."""
        self.errors.clear()
        self.warnings.clear()

    def last_error(self, otherwise: str = "TensorRT did not say why") -> str:
        """Return the last error's text, else `otherwise`."""
        return self.errors[-1] if self.errors else otherwise
