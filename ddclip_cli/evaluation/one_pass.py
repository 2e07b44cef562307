"""One pass over a view store: shape embeddings for every run and number of views, each view read and encoded once.

Plainly, R runs at several numbers of views F read and encode the views of an object again for each: 153 times a view
for the paper's nine F and three runs. Here the views that any of them needs are read once and go through the blocks in
which a view is alone (`view_tokens`) once a crop: once in all, or once a run where the crop is random. Only then are
the sets of views formed, and sets that are equal are joined (`join_views`) once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError
from ddclip_cli.evaluation.view_choice import crop_seed, view_order
from ddclip_cli.model.multiview import VIEWS_AT_ONCE, MultiViewCLIP
from ddclip_cli.model.transforms import Crop


@dataclass(frozen=True)
class Protocol:
    """What an evaluation shows of every object: in each run the first F views of a random order, for each F."""

    views: tuple[int, ...]
    """The numbers of views F, rising."""
    runs: int = 1
    seed: int = 678
    """Of the views and crops, together with the run and the object's id."""
    crop: Crop = "center"
    """`random`: one crop of an object a run."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(sorted(set(self.views))))
        if not self.views or self.views[0] < 1 or self.runs < 1:
            raise UserError("numbers of views and of runs must be at least 1")

    def check_store(self, store: ViewStore) -> None:
        if self.views[-1] > store.num_views:
            raise UserError(
                f"{self.views[-1]} views were asked for, but the store has {store.num_views} of each object: "
                "lower --views"
            )


@dataclass(frozen=True)
class Entrant:
    """A model that takes part in an evaluation, and the crop that it is given."""

    model: MultiViewCLIP
    crop: Crop


class OnePass:
    """What a process needs to embed any objects of an evaluation; goes to other processes as a pickle."""

    def __init__(
        self, store: ViewStore, object_ids: Sequence[str], protocol: Protocol, entrants: Sequence[Entrant]
    ) -> None:
        self.store, self.object_ids, self.protocol, self.entrants = store, list(object_ids), protocol, list(entrants)
        self._rows = store.rows(object_ids)

    def embeddings(self, part: range) -> list[Tensor]:
        """Shape embeddings (len(views), R, B, E) of the objects numbered `part`, not normalised, for each entrant."""
        batch = _Batch(self.store, self._rows[part], [self.object_ids[number] for number in part], self.protocol)
        with _evaluating([entrant.model for entrant in self.entrants]):
            found = [batch.embeddings(entrant) for entrant in self.entrants]
        if not all(embeddings.isfinite().all() for embeddings in found):
            raise UserError("the model's shape embeddings are not numbers (NaN): try --precision fp32")
        return found

    def made_from(self) -> dict[str, Any]:
        """What the embeddings depend on, as JSON; of the store its size and age instead of its pictures."""
        file = os.stat(self.store.path)
        ids = hashlib.sha256("\n".join(self.object_ids).encode("utf-8", "surrogatepass"))
        return {
            "store": [str(self.store.path), file.st_size, file.st_mtime_ns],
            "objects": ids.hexdigest(),
            "protocol": asdict(self.protocol),
            "models": [[e.model.fingerprint, e.model.precision, e.model.device.type, e.crop] for e in self.entrants],
        }

    def settle(self, worker: int, workers: int) -> None:
        """Take this process's share of the machine: one of the GPUs in turn, or a part of the CPU's threads."""
        for entrant in self.entrants:
            if entrant.model.device.type == "cuda":
                entrant.model.to(torch.device("cuda", worker % torch.cuda.device_count()))
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


class _Batch:
    """The views that some objects need over all runs, each read once, and what a model makes of them."""

    def __init__(self, store: ViewStore, rows: np.ndarray, object_ids: Sequence[str], protocol: Protocol) -> None:
        self.object_ids, self.protocol = object_ids, protocol
        every, most = store.num_views, protocol.views[-1]
        order = np.stack(
            [
                [view_order(every, seed=protocol.seed, run=run, object_id=object_id) for object_id in object_ids]
                for run in range(protocol.runs)
            ]
        )  # (R, B, V)
        wanted = order[:, :, :most]  # (R, B, most)
        # One run needs only its own views; several together need about all.
        needed = np.sort(wanted[0], axis=1) if protocol.runs == 1 else np.tile(np.arange(every), (len(rows), 1))
        self.pictures = torch.from_numpy(store.read(rows, needed))  # (B, P, 3, H, W)
        # Where each wanted view lies among those read.
        self.places = (needed[None, :, None, :] == wanted[..., None]).argmax(axis=-1)  # (R, B, most)

    def embeddings(self, entrant: Entrant) -> Tensor:
        """(len(views), R, B, E) float32, on the model's device."""
        model, protocol = entrant.model, self.protocol
        shape = (len(protocol.views), protocol.runs, len(self.object_ids), model.embed_dim)
        found = torch.empty(shape, device=model.device)
        # Runs that see the same pixels go together.
        together = 1 if entrant.crop == "random" else protocol.runs
        for run in range(0, protocol.runs, together):
            runs = slice(run, run + together)
            tokens = self._tokens(model, entrant.crop, run)  # (B, P, L, D)
            for column, num_views in enumerate(protocol.views):
                found[column, runs] = _joined(model, tokens, self.places[runs, :, :num_views])
        return found

    def _tokens(self, model: MultiViewCLIP, crop: Crop, run: int) -> Tensor:
        """(B, P, L, D)"""
        pictures = self.pictures.to(model.device)
        if crop == "random":
            # An object at a time: its crop must not depend on who else is in the batch.
            own = zip(self.object_ids, pictures, strict=True)
            pixels = torch.stack([self._cropped(model, object_id, views, run) for object_id, views in own])
        else:
            pixels = model.to_pixels(pictures, crop)
        flat = pixels.flatten(0, 1)  # (B, P, 3, S, S) -> (B*P, 3, S, S)
        tokens = torch.cat([model.view_tokens(part) for part in flat.split(VIEWS_AT_ONCE)])
        return tokens.unflatten(0, pixels.shape[:2])

    def _cropped(self, model: MultiViewCLIP, object_id: str, views: Tensor, run: int) -> Tensor:
        seed = crop_seed(seed=self.protocol.seed, run=run, object_id=object_id)
        return model.to_pixels(views, "random", torch.Generator().manual_seed(seed))


def _joined(model: MultiViewCLIP, tokens: Tensor, places: np.ndarray) -> Tensor:
    """Tokens (B, P, L, D) of the views at `places` (R, B, F) -> (R, B, E); equal sets of views are joined once."""
    runs, objects, num_views = places.shape
    owner = np.tile(np.arange(objects), runs)[:, None]  # (R*B, 1)
    sets = np.sort(places.reshape(-1, num_views), axis=1)  # in the order in which they are stored
    distinct, back = np.unique(np.hstack([owner, sets]), axis=0, return_inverse=True)
    chosen = torch.from_numpy(distinct).to(tokens.device)  # (U, 1 + F)
    parts = [
        model.join_views(tokens[part[:, :1], part[:, 1:]])  # (u, F, L, D) -> (u, E)
        for part in chosen.split(max(1, VIEWS_AT_ONCE // num_views))
    ]
    return torch.cat(parts)[torch.from_numpy(back.reshape(runs, objects)).to(tokens.device)]


@contextmanager
def _evaluating(models: Sequence[MultiViewCLIP]) -> Iterator[None]:
    """No gradients, eval mode; training goes on as it was."""
    training = [model.training for model in models]
    try:
        with torch.no_grad():
            for model in models:
                model.eval()
            yield
    finally:
        for model, was in zip(models, training, strict=True):
            model.train(was)
