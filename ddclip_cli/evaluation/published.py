"""Published accuracies, to be shown beside ours: the paper's Duoduo CLIP, by what it was trained on."""

from __future__ import annotations

Row = tuple[float, float, float]
"""top-1, top-3, top-5 in percent"""

# (labels, list of training objects) by their file names -> number of views -> row. Random crops, mean of three runs.
PUBLISHED: dict[tuple[str, str], dict[int, Row]] = {
    ("lvis.csv", "four_model_ids.txt"): {5: (54.1, 76.0, 82.4), 12: (55.2, 77.1, 83.4)},
    ("lvis.csv", "four_no_lvis_model_ids.txt"): {5: (51.3, 73.1, 79.9), 12: (52.7, 74.5, 81.3)},
    ("scanobjectnn.csv", "four_model_ids.txt"): {12: (66.3, 85.5, 90.2)},
}
ZERO_SHOT: dict[str, dict[int, Row]] = {"lvis.csv": {12: (35.7, 54.8, 62.1)}}
"""The stock ViT-B-32, its features of the views averaged; by labels."""

RECALL: dict[tuple[str, str], dict[str, dict[int, float]]] = {
    ("text2shape_captions.json", "four_model_ids.txt"): {"text_to_shape": {12: 15.9}}
}
"""(captions, training list) -> way of retrieval -> number of views -> recall at 1 in percent."""


def published(labels: str, trained_on: str | None) -> dict[str, dict[int, Row]]:
    """{"views": ..., "baseline": ...} of what there is for these labels and this training list; {} if nothing."""
    own, stock = PUBLISHED.get((labels, trained_on or "")), ZERO_SHOT.get(labels)
    return ({"views": own} | ({"baseline": stock} if stock else {})) if own else {}


def published_recall(captions: str, trained_on: str | None) -> dict[str, dict[int, float]]:
    """{way of retrieval: {number of views: recall at 1}}; {} if nothing is published for these captions."""
    return RECALL.get((captions, trained_on or ""), {})
