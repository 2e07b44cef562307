"""Multi-view CLIP: 3D objects searched by text and images.

`from ddclip_cli import load_model, render_mesh` works from a notebook; torch is imported only when one of them is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddclip_cli.model.checkpoints import load_model as load_model
    from ddclip_cli.render import render_mesh as render_mesh

    __version__: str

_EXPORTS = {"load_model": "ddclip_cli.model.checkpoints", "render_mesh": "ddclip_cli.render"}
__all__ = ["__version__", "load_model", "render_mesh"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("ddclip")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
