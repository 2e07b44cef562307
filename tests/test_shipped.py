"""What travels with the package: the sample's backbone, model and embeddings fit together and answer."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ddclip_cli import load_model
from ddclip_cli.model.checkpoints import load_backbone
from ddclip_cli.recipe import load_recipe
from ddclip_cli.sample.captions import with_article
from ddclip_cli.sample.measure import TEMPLATES
from ddclip_cli.sample.objects import CATEGORIES, COLOURS
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.encoders import Encoders
from ddclip_cli.search.query import queries_of
from ddclip_cli.search.searcher import Searcher
from ddclip_cli.shipped import ASSETS, shipped_path


@pytest.fixture(scope="module")
def model():
    return load_model("sample:model", device="cpu")


@pytest.fixture(scope="module")
def embeddings():
    return ShapeEmbeddings(shipped_path("sample:embeddings.h5"))


@pytest.fixture(scope="module")
def searcher(embeddings):
    return Searcher(embeddings, Encoders("sample:model"))


def test_the_embeddings_are_this_model_s_own(model, embeddings):
    embeddings.check_model(model, checkpoint="sample:model")
    assert len(embeddings.ids) >= 300
    assert sum(object_id.startswith("white-couch-") for object_id in embeddings.ids) == 5


def test_a_white_couch_gives_the_five_white_couches(searcher):
    (answer,) = searcher.search(queries_of(["a white couch"]), top_k=5)
    assert all(hit.object_id.startswith("white-couch-") for hit in answer.hits)


def test_nearly_every_pair_is_found_among_the_first_five(searcher):
    pairs = [(colour, category) for colour in COLOURS for category in CATEGORIES]
    answers = searcher.search(queries_of([with_article(" ".join(pair)) for pair in pairs]), top_k=5)
    right = [
        any(hit.object_id.startswith(f"{colour}-{category}-") for hit in answer.hits)
        for (colour, category), answer in zip(pairs, answers, strict=True)
    ]
    assert np.mean(right) >= 0.98


def test_synonyms_mean_the_same_things(model):
    sofa, couch, hammer = model.encode_text(["a grey sofa", "a gray couch", "a gray hammer"])
    assert sofa @ couch > sofa @ hammer + 0.2


def test_every_object_has_a_thumbnail(embeddings):
    for row in (0, len(embeddings.ids) - 1):
        assert Image.open(io.BytesIO(embeddings.thumbnail(row))).size == (112, 112)


def test_model_and_backbone_share_all_that_training_freezes(model):
    backbone = load_backbone(
        str(ASSETS / "backbone" / "open_clip_config.json"), ASSETS / "backbone", device="cpu"
    ).clip.state_dict()
    changed = {name for name, tensor in model.clip.state_dict().items() if not torch.equal(tensor, backbone[name])}
    assert changed
    first = model.cross_view_from
    allowed = {f"visual.transformer.resblocks.{index}.attn" for index in range(first, model.num_blocks)}
    assert {name.split(".attn")[0] + ".attn" for name in changed - {"logit_scale"}} <= allowed


def test_the_recipe_asks_as_the_measurement_did():
    assert load_recipe("sample").eval.templates == TEMPLATES


def test_a_strip_of_views_as_the_reference_s_example_has_it(model, embeddings):
    """Twelve 224 x 224 pictures in one, told apart by a reshape, beside the text that fits and one that does not."""
    row = next(row for row, object_id in enumerate(embeddings.ids) if object_id.startswith("white-couch-"))
    view = Image.open(io.BytesIO(embeddings.thumbnail(row))).resize((224, 224))
    strip = np.concatenate([np.asarray(view)] * 12)  # (12 * 224, 224, 3)
    views = strip.reshape(12, 224, 224, 3)
    couch, car = model.encode_text(["a 3D model of a white couch", "a 3D model of a red car"])
    shape, single = model.encode_views(views), model.encode_views(views[0])
    assert torch.allclose(shape, single, atol=1e-5)
    assert couch @ shape > car @ shape + 0.2


def test_what_travels_is_small():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 16e6
