"""trtgen: a vision model becomes a Triton model repository that is proved to work.

from generator import build, serve

build("resnet50", weights="random")
with serve() as server:
print(server.grpc_url)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from generator.api import build, export, serve, verify
    from generator.errors import TrtgenError
    from generator.source import register_source
    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe
    from generator.task import register_task

__version__ = "0.1.0"
__all__ = [
    "ModelSpec",
    "Recipe",
    "TrtgenError",
    "__version__",
    "build",
    "export",
    "register_source",
    "register_task",
    "serve",
    "verify",
]

_HOMES = {
    **dict.fromkeys(("build", "export", "serve", "verify"), "generator.api"),
    "ModelSpec": "generator.spec.model",
    "Recipe": "generator.spec.recipe",
    "TrtgenError": "generator.errors",
    "register_source": "generator.source",
    "register_task": "generator.task",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: `trtgen --help` needs none of it."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOMES[name]), name)
