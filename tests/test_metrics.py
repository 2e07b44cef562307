"""Metrics against scikit-learn, on random scores full of ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, ndcg_score, recall_score, top_k_accuracy_score

from ddclip_cli.evaluation.accuracy import MOST_CONFUSED, Outcomes, accuracies, confused, per_class
from ddclip_cli.evaluation.metrics import mean_ndcg, relevant_ranks, top_k_hits, true_class_ranks

OBJECTS, CLASSES = 300, 12


def scores_with_ties(levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (OBJECTS, CLASSES), generator=generator).float()
    return scores, torch.randint(CLASSES, (OBJECTS,), generator=generator)


def without_ties(scores: torch.Tensor) -> np.ndarray:
    """The same order, the lower number first among equals, with no two scores equal."""
    return scores.double().numpy() - np.arange(scores.shape[1]) / (2 * scores.shape[1])


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_is_scikit_learns(levels, k):
    scores, labels = scores_with_ties(levels)
    (hits,) = top_k_hits(true_class_ranks(scores, labels), [k])
    expected = top_k_accuracy_score(labels, without_ties(scores), k=k, labels=range(CLASSES), normalize=False)
    assert hits == expected


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("k", [1, 5])
def test_ndcg_is_scikit_learns(levels, k):
    scores, _ = scores_with_ties(levels)
    relevant = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    relevant[:, 3] |= ~relevant.any(dim=1)
    found = mean_ndcg(relevant_ranks(scores, relevant), k)
    assert found == pytest.approx(ndcg_score(relevant.numpy(), without_ties(scores), k=k))


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_the_one_right_answer_has_the_rank_of_the_true_class(levels):
    scores, labels = scores_with_ties(levels)
    relevant = torch.nn.functional.one_hot(labels, CLASSES).bool()
    ranks = relevant_ranks(scores, relevant)
    assert [of_query.tolist() for of_query in ranks] == [[rank] for rank in true_class_ranks(scores, labels).tolist()]


def test_answers_without_a_score_have_no_rank():
    with pytest.raises(ValueError, match="NaN"):
        relevant_ranks(torch.tensor([[0.0, float("nan")]]), torch.tensor([[True, False]]))


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """Two runs at one number of views; class 7 has no object."""
    rng = np.random.default_rng(0)
    truth = rng.choice(np.delete(np.arange(CLASSES), 7), OBJECTS)
    ranks, predicted = [], []
    for _ in range(2):
        scores = torch.from_numpy(rng.integers(4, size=(OBJECTS, CLASSES)) + 2 * np.eye(CLASSES)[truth]).float()
        ranks.append(true_class_ranks(scores, torch.from_numpy(truth)).numpy())
        predicted.append(scores.argmax(dim=1).numpy())
    return Outcomes(truth, [6], np.stack(ranks, axis=1)[:, None], np.stack(predicted, axis=1)[:, None])


def test_accuracy_is_the_mean_and_deviation_of_the_runs(outcomes):
    each = [100 * np.mean(outcomes.predicted[:, 0, run] == outcomes.class_index) for run in range(2)]
    (row,) = accuracies(outcomes).values()
    assert row["top1"] == pytest.approx(np.mean(each))
    assert row["std"]["top1"] == pytest.approx(np.std(each, ddof=1))
    assert 0 < row["top1"] < row["top3"] < row["top5"] < 100


def test_accuracy_of_each_class_is_scikit_learns_recall(outcomes):
    found = per_class(outcomes, [f"class {number}" for number in range(CLASSES)])
    truth, predicted = np.repeat(outcomes.class_index, 2), outcomes.predicted[:, 0].reshape(-1)
    expected = recall_score(truth, predicted, average=None, labels=range(CLASSES), zero_division=0)
    assert found[7] == {"class": 7, "name": "class 7", "objects": 0, "top1": {6: None}}
    for number in set(range(CLASSES)) - {7}:
        assert found[number]["top1"][6] == pytest.approx(100 * expected[number])
    assert sum(of_class["objects"] for of_class in found) == OBJECTS


def test_confused_pairs_are_the_greatest_cells_beside_the_diagonal(outcomes):
    names = [f"class {number}" for number in range(CLASSES)]
    found = confused(outcomes, names)[6]
    truth, predicted = np.repeat(outcomes.class_index, 2), outcomes.predicted[:, 0].reshape(-1)
    matrix = confusion_matrix(truth, predicted, labels=range(CLASSES))
    cells = [(-matrix[a, b], a, b) for a in range(CLASSES) for b in range(CLASSES) if a != b and matrix[a, b]]
    expected = [
        {"class": names[a], "taken_for": names[b], "times": -n, "share": pytest.approx(-100 * n / matrix[a].sum())}
        for n, a, b in sorted(cells)[:MOST_CONFUSED]
    ]
    assert found == expected
