"""From texts, pictures and meshes to query vectors: torch is loaded only for what cannot do without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddclip_cli.model.locate import find_checkpoint
from ddclip_cli.model.text_tower import TextTower
from ddclip_cli.search.feature_cache import FeatureCache

if TYPE_CHECKING:
    from ddclip_cli.model.multiview import MultiViewCLIP

CACHED_AT_MOST = 1000
"""Texts of one call: a long list is a job, not a habit."""


class Encoders:
    """What one checkpoint makes of a query.

    Texts go through the text tower in numpy on a CPU in float32, and through torch's model if another device or
    precision is asked for. All vectors are float32 of unit length.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        backbone: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        cache: FeatureCache | None = None,
    ) -> None:
        """`source`, `backbone`, `device`, `precision` as of `load_model`; `cache` keeps text features between runs."""
        self._source, self._backbone = source, backbone
        self._device, self._precision = device, precision
        self._cache = cache

    @property
    def embed_dim(self) -> int:
        return self._text_model.embed_dim

    @property
    def fingerprint(self) -> str:
        return self._text_model.fingerprint

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """N texts -> (N, E)."""
        known: dict[str, np.ndarray] = {}
        use_cache = self._cache is not None and len(texts) <= CACHED_AT_MOST
        if self._cache is not None and use_cache:
            known = self._cache.get(self.fingerprint, texts, self.embed_dim)
        missing = list(dict.fromkeys(text for text in texts if text not in known))
        if missing:
            encoded: Any = self._text_model.encode_text(missing)
            if not isinstance(encoded, np.ndarray):
                encoded = encoded.float().cpu().numpy()
            new = dict(zip(missing, encoded, strict=True))
            if self._cache is not None and use_cache:
                self._cache.put(self.fingerprint, new)
            known |= new
        return np.stack([known[text] for text in texts])

    def pictures(self, paths: Sequence[Path], *, crop: str) -> np.ndarray:
        """Pictures of one object -> (E,)."""
        from ddclip_cli.search.views import photo_views

        return self.views(photo_views(paths, self.model.image_size), crop=crop)

    def mesh(self, path: Path, *, crop: str, render: Mapping[str, Any]) -> np.ndarray:
        """A mesh file, rendered with the options of `render_mesh` -> (E,)."""
        from ddclip_cli.search.views import mesh_views

        return self.views(mesh_views(path, self.model.image_size, **render), crop=crop)

    def views(self, views: np.ndarray, *, crop: str) -> np.ndarray:
        """Views of one object, (F, 3, S, S) uint8 -> (E,)."""
        return self.model.encode_views(views, crop=crop).float().cpu().numpy()  # type: ignore[arg-type]

    @cached_property
    def model(self) -> MultiViewCLIP:
        from ddclip_cli.model.checkpoints import load_model

        return load_model(self._source, backbone=self._backbone, device=self._device, precision=self._precision)

    @cached_property
    def _text_model(self) -> TextTower | MultiViewCLIP:
        if self._device in ("auto", "cpu") and self._precision in ("auto", "fp32"):
            tower = TextTower.load(find_checkpoint(self._source), self._backbone)
            if tower is not None:
                return tower
        return self.model
