"""The choices of training are pure functions of the seed and a position."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from ddclip_cli.data.dataset import ObjectSet, TrainingData, batches
from ddclip_cli.data.view_sampler import batch_of_step, crop_generator, epoch_order, text_rng, views_of_step
from ddclip_cli.errors import UserError


def test_an_epoch_visits_every_object_once_in_its_own_order():
    orders = [epoch_order(1000, seed=3, epoch=epoch) for epoch in range(4)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    assert len({order.tobytes() for order in orders}) == 4
    assert epoch_order(1000, seed=4, epoch=0).tobytes() != orders[0].tobytes()


def test_batches_of_an_epoch_are_disjoint_and_the_rest_is_dropped():
    epoch_0 = [batch_of_step(23, 5, seed=1, step=step) for step in range(4)]
    seen = np.concatenate(epoch_0)
    assert len(seen) == 20
    assert len(set(seen.tolist())) == 20
    assert batch_of_step(23, 5, seed=1, step=4).tolist() == epoch_order(23, seed=1, epoch=1)[:5].tolist()


def test_choices_do_not_depend_on_what_was_drawn_before():
    forwards = [views_of_step((1, 6), 12, seed=5, step=step).tolist() for step in range(50)]
    np.random.seed(0)
    backwards = [views_of_step((1, 6), 12, seed=5, step=step).tolist() for step in reversed(range(50))]
    assert backwards[::-1] == forwards
    assert text_rng(seed=5, step=7).integers(2**40) == text_rng(seed=5, step=7).integers(2**40)
    assert text_rng(seed=5, step=7).integers(2**40) != text_rng(seed=5, step=8).integers(2**40)
    draws = [int(torch.randint(2**40, (), generator=crop_generator(seed=5, step=step))) for step in (7, 7, 8)]
    assert draws[0] == draws[1] != draws[2]


def test_the_number_of_views_and_each_view_are_uniform():
    steps = 6000
    drawn = [views_of_step((1, 6), 12, seed=9, step=step) for step in range(steps)]
    assert all((np.diff(views) > 0).all() and views.min() >= 0 and views.max() < 12 for views in drawn)
    counts = Counter(len(views) for views in drawn)
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    assert all(abs(count - steps / 6) < 5 * (steps / 6) ** 0.5 for count in counts.values())
    single = Counter(int(views[0]) for views in drawn if len(views) == 1)
    assert set(single) == set(range(12))
    assert all(len(views_of_step((3, 3), 3, seed=1, step=step)) == 3 for step in range(20))


class Store:
    """Five views of 7 objects; a picture's pixels say its row and view."""

    ids = tuple(f"object-{i}" for i in range(7))
    num_views = 5

    def rows(self, object_ids):
        return np.array([self.ids.index(i) for i in object_ids])

    def read(self, rows, views):
        code = rows[:, None] * 10 + views[None]
        return np.broadcast_to(code[..., None, None, None], (*code.shape, 3, 4, 4)).astype(np.uint8)


class ImageTargets:
    num_views = 5

    def rows(self, object_ids):
        return Store().rows(object_ids) + 100  # in a file of their own

    def read(self, rows, views):
        return np.stack([rows, np.full(len(rows), views.sum())], axis=1).astype(np.float32)


class TextTargets:
    ids = Store.ids

    def lacking(self, object_ids):
        return [object_id for object_id in object_ids if object_id not in self.ids]

    def draw(self, object_ids, rng):
        return rng.random((len(object_ids), 2), dtype=np.float32)


def tiny_data(**changes) -> TrainingData:
    settings = {"batch_size": 3, "num_views": (1, 4), "seed": 0} | changes
    return TrainingData(ObjectSet(Store(), ImageTargets(), TextTargets()), **settings)


def test_views_and_targets_of_a_batch_belong_together():
    data = tiny_data()
    for step in range(6):
        batch = data[step]
        rows = [Store.ids.index(object_id) for object_id in batch.object_ids]
        assert batch.views.dtype == torch.uint8
        assert batch.views[:, :, 0, 0, 0].tolist() == [[10 * row + v for v in batch.view_numbers] for row in rows]
        assert batch.image_targets.tolist() == [[row + 100, sum(batch.view_numbers)] for row in rows]


@pytest.mark.parametrize("jobs", [0, 2])
def test_batches_come_in_order_and_are_the_same_from_any_step_and_with_any_jobs(jobs):
    expected = [tiny_data()[step] for step in range(3, 9)]
    found = list(batches(tiny_data(), 3, 9, jobs=jobs))
    assert [batch.step for batch in found] == [3, 4, 5, 6, 7, 8]
    for a, b in zip(expected, found, strict=True):
        assert a.object_ids == b.object_ids
        assert torch.equal(a.views, b.views)
        assert torch.equal(a.text_targets, b.text_targets)


def test_an_error_in_reading_ahead_arrives_as_its_sentence():
    class Broken(TextTargets):
        def draw(self, object_ids, rng):
            raise UserError("object 'x' has no text")

    data = TrainingData(ObjectSet(Store(), ImageTargets(), Broken()), batch_size=3, num_views=(1, 1), seed=0)
    with pytest.raises(UserError) as caught:
        list(batches(data, 0, 2, jobs=1))
    assert str(caught.value) == "object 'x' has no text"


def test_reading_ahead_is_bounded_and_stops_with_its_reader():
    read = []

    class Counted(Store):
        def read(self, rows, views):
            read.append(rows)
            return super().read(rows, views)

    data = TrainingData(ObjectSet(Counted(), ImageTargets(), TextTargets()), batch_size=3, num_views=(1, 1), seed=0)
    reading = batches(data, 0, 1000, jobs=2)
    next(reading)
    reading.close()
    assert len(read) <= 3


def test_objects_views_and_targets_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="7 objects do not fill a batch of 8"):
        tiny_data(batch_size=8)
    with pytest.raises(UserError, match=r"up to 6 views but the store has 5 an object: set train.num_views=\[1,5\]"):
        tiny_data(num_views=(1, 6))

    def data(image=None, text=None):
        return TrainingData(
            ObjectSet(Store(), image or ImageTargets(), text or TextTargets()), batch_size=3, num_views=(1, 1), seed=0
        )

    other = type("Other", (ImageTargets,), {"num_views": 12})()
    with pytest.raises(UserError, match="12 views an object and the store 5"):
        data(image=other)
    poorer = type("Poorer", (TextTargets,), {"ids": Store.ids[2:]})()
    with pytest.raises(UserError, match="2 of 7 objects have no text target: object-0, object-1; "):
        data(text=poorer)
