"""How the views of a store are kept: as plain pixels, or each view encoded by itself, as small as a picture file.

Chosen by measuring (`benchmarks/view_codecs.py`): JPEG without chroma subsampling decodes fastest and keeps every view
far above 40 dB; lossless WebP decodes as fast and is smaller than PNG.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

RAW = "raw"


@dataclass(frozen=True)
class Codec:
    """A picture format of PIL, with the options that it is written with."""

    format: str
    options: dict[str, Any]

    def encode(self, view: np.ndarray) -> bytes:
        """(3, S, S) uint8 -> the bytes of a picture file."""
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(view.transpose(1, 2, 0))).save(file, self.format, **self.options)
        return file.getvalue()

    def decode_into(self, view: np.ndarray, data: bytes) -> None:
        """Fill the view (3, S, S) uint8 with a picture; raises whatever PIL does, or ValueError for another size."""
        with Image.open(io.BytesIO(data), formats=(self.format,)) as image:
            if image.size != view.shape[1:]:  # before it takes any memory
                raise ValueError(f"{image.size[0]} x {image.size[1]} pixels")
            view[:] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)  # (S, S, 3) -> (3, S, S)


ENCODED = {
    "jpeg": Codec("JPEG", {"quality": 95, "subsampling": 0}),
    "lossless": Codec("WEBP", {"lossless": True, "method": 1, "quality": 0}),
}
CODECS = (RAW, *ENCODED)
