"""How good a model is on fresh sample objects: the two figures that the README states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddclip_cli.evaluation.class_features import make_class_features
from ddclip_cli.evaluation.metrics import percent, top_k_hits, true_class_ranks
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.sample.captions import with_article
from ddclip_cli.sample.objects import CATEGORIES, COLOURS, PAIRS

# Pretraining never saw a caption without a colour: a class is the mean over the colours.
TEMPLATES = tuple(f"{with_article(colour)} {{}}" for colour in COLOURS)


@torch.no_grad()
def measure(model: MultiViewCLIP, pictures: np.ndarray, num_views: Sequence[int] = (1, 3, 6, 12)) -> dict[str, float]:
    """Figures over pictures (objects a pair, pairs, F, 3, S, S) uint8, in percent.

    `top1_N`: category accuracy with N views. `query_hits`: "a <colour> <category>" queries, one a pair, that have an
    object right in both among their first five answers at 12 views.
    """
    category = torch.tensor([CATEGORIES.index(category) for category, _ in PAIRS]).repeat(len(pictures))
    classes = F.normalize(make_class_features(model, CATEGORIES, TEMPLATES), dim=1)
    figures: dict[str, float] = {"objects": float(len(category))}
    shapes = torch.empty(0)
    for count in num_views:
        shapes = embed(model, pictures, count)
        hits = top_k_hits(true_class_ranks(shapes @ classes.T, category), (1,))
        figures[f"top1_{count}"] = percent(hits[0], len(category))
    queries = model.encode_text([f"{with_article(colour)} {category}" for category, colour in PAIRS])
    answers = (queries @ shapes.T).topk(5).indices % len(PAIRS)  # an object's pair
    right = (answers == torch.arange(len(PAIRS))[:, None]).any(dim=1)
    figures["query_hits"] = percent(int(right.sum()), len(PAIRS))
    return figures


def embed(model: MultiViewCLIP, pictures: np.ndarray, num_views: int) -> Tensor:
    """Shape embeddings (objects, E) from the first views of pictures (objects a pair, pairs, F, 3, S, S)."""
    parts = (np.ascontiguousarray(part[:, :num_views].transpose(0, 1, 3, 4, 2)) for part in pictures)
    return torch.cat([model.encode_views(part, crop="none") for part in parts])
