"""Shape embeddings of a whole view store, written with their ids, thumbnails and what made them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddclip_cli import files
from ddclip_cli.console import progress_bar
from ddclip_cli.data.hdf5_output import create_contiguous, create_ids, creating
from ddclip_cli.data.object_ids import rows_file, write_rows
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.model.transforms import Crop

THUMBNAIL_SIZE = 112
THUMBNAIL_QUALITY = 85


def embed_store(
    model: MultiViewCLIP,
    store: ViewStore,
    out: str | Path,
    *,
    num_views: int = 12,
    crop: Crop = "center",
    batch_size: int = 32,
    made_by: dict[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Write the shape embedding of every object of `store`, from its first `num_views` views, to the file `out`.

    The HDF5 file holds `shape_feat` (N, E) float32 of unit length, `ids` (N,), `thumbnail_bytes` (JPEGs of
    `best_views`, end to end) with `thumbnail_offsets` (N + 1,), and the attribute `made_by`: a JSON object of the given
    `made_by` with the model's fingerprint, `num_views` and `crop`. `<stem>_model_to_idx.json` beside it has the rows as
    the reference writes them.

    Raises:
        UserError: `out` or its rows exist (and not `force`), the disk is full, the store is empty or has fewer views,
            or an embedding is not finite.
    """
    out = Path(out)
    rows_path = rows_file(out)
    for path in (out, rows_path):
        files.refuse_existing(path, force=force)
    if len(store) == 0:
        raise UserError("the store has no objects: there is nothing to embed")
    if num_views > store.num_views:
        raise UserError(
            f"{num_views} views were asked for, but the store has {store.num_views} of each object: lower --num-views"
        )
    record = {**(made_by or {}), "fingerprint": model.fingerprint, "num_views": num_views, "crop": crop}
    model.eval()
    files.remove_leftovers(out.parent, (out.name, rows_path.name))
    # The embeddings get their name first: they have their ids inside, and rows alone would be refused as another's.
    with files.writing(rows_path) as partial_rows, files.writing(out) as partial:
        with creating(partial, out) as file, progress_bar(total=len(store), label="embed") as bar:
            file.attrs["made_by"] = json.dumps(record, ensure_ascii=False, sort_keys=True)
            create_ids(file, store.ids)
            vectors = create_contiguous(file, "shape_feat", (len(store), model.embed_dim), "<f4")
            thumbnails = _ThumbnailWriter(file, len(store))
            for start in range(0, len(store), batch_size):
                rows = np.arange(start, min(start + batch_size, len(store)))
                pictures = store.read(rows, np.arange(num_views))  # (B, F, 3, H, W)
                vectors[start : start + len(rows)] = _embeddings(model, pictures, crop, store.ids[start:])
                thumbnails.write(start, pictures[np.arange(len(rows)), best_views(pictures)])
                file.check()
                bar.update(len(rows))
        write_rows(partial_rows, store.ids)


def best_views(pictures: np.ndarray) -> np.ndarray:
    """(B, F, 3, H, W) uint8 -> (B,) the view to show: the brightest of those that show much of the object.

    Rendered from below, an object is all shadow. What is not white is taken for the object.
    """
    small = pictures[..., ::4, ::4].astype(np.float32)
    shown = (small < 250).any(axis=2)  # (B, F, H / 4, W / 4)
    area = shown.sum(axis=(2, 3))
    brightness = (small.max(axis=2) * shown).sum(axis=(2, 3)) / np.maximum(area, 1)
    return np.where(area * 2 >= area.max(axis=1, keepdims=True), brightness, -1).argmax(axis=1)


def thumbnail_jpeg(view: np.ndarray) -> bytes:
    """A view, (3, H, W) uint8, as a small JPEG."""
    picture = Image.fromarray(np.ascontiguousarray(view.transpose(1, 2, 0)))
    picture.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return buffer.getvalue()


def _embeddings(model: MultiViewCLIP, pictures: np.ndarray, crop: Crop, object_ids: list[str]) -> np.ndarray:
    """(B, F, 3, H, W) uint8 -> (B, E) float32, unit length."""
    with torch.inference_mode():
        pixels = model.to_pixels(torch.from_numpy(pictures).to(model.device), crop)
        embeddings: Tensor = torch.nn.functional.normalize(model(pixels).float(), dim=1).cpu()
    finite = embeddings.isfinite().all(dim=1)
    if not finite.all():
        bad = object_ids[int(torch.nonzero(~finite)[0])]
        raise UserError(f"the embedding of {bad} is not finite: try --precision fp32")
    return embeddings.numpy()


class _ThumbnailWriter:
    """JPEGs end to end in one growing dataset, with the offset at which each begins."""

    def __init__(self, file: h5py.File, objects: int) -> None:
        self.data = file.create_dataset("thumbnail_bytes", shape=(0,), maxshape=(None,), dtype="u1", chunks=(1 << 16,))
        self.offsets = file.create_dataset("thumbnail_offsets", data=np.zeros(objects + 1, dtype="<i8"))

    def write(self, start: int, views: np.ndarray) -> None:
        """`views` (B, 3, H, W) are those of the rows from `start`, which follow the rows written before."""
        jpegs = [thumbnail_jpeg(view) for view in views]
        end = len(self.data)
        self.offsets[start + 1 : start + 1 + len(jpegs)] = end + np.cumsum([len(jpeg) for jpeg in jpegs])
        joined = np.frombuffer(b"".join(jpegs), dtype=np.uint8)
        self.data.resize((end + len(joined),))
        self.data[end:] = joined
