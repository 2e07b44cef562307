"""Views of one object that is no row of a store: photos and meshes, as packing would have made them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli.data.pictures import read_photo
from ddclip_cli.errors import UserError


def photo_views(paths: Sequence[Path], size: int) -> np.ndarray:
    """Picture files of one object -> (F, 3, size, size) uint8. Raises UserError naming a file that is no picture."""
    views = []
    for path in paths:
        try:
            views.append(read_photo(path, size))
        except FileNotFoundError:
            raise UserError(f"{path}: no such picture") from None
        except Exception as error:  # PIL raises whatever a decoder comes upon in a broken file
            reason = str(error).split("\n")[0].replace(f" {str(path)!r}", "") or type(error).__name__
            raise UserError(f"{path} is not a picture that can be read ({reason})") from None
    return np.stack(views)


def mesh_views(path: Path, size: int, *, image_size: int, **render: Any) -> np.ndarray:
    """A mesh file, rendered at `image_size` with the options of `render_mesh` -> (F, 3, size, size) uint8."""
    from PIL import Image

    from ddclip_cli.data.pictures import resized_on_white
    from ddclip_cli.render import render_mesh

    rendered = render_mesh(path, image_size=image_size, **render)  # (F, H, W, 4)
    return np.stack([resized_on_white(Image.fromarray(view), size) for view in rendered])
