"""The sample library: the same seed gives the same bytes, and what it says of an object is true of it."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ddclip_cli.errors import UserError
from ddclip_cli.sample.captions import all_captions
from ddclip_cli.sample.library import HELDOUT_FIRST, numbered_object, write_library
from ddclip_cli.sample.objects import CATEGORIES, COLOURS, FINISHES, PAIRS, make_object
from ddclip_cli.sample.shapes import REGISTRY, STRETCH, build_parts
from ddclip_cli.sample.solids import box, cylinder, extrusion, lathe, pyramids, sphere, torus, tube
from ddclip_cli.sample.surfaces import PALETTE

trimesh = pytest.importorskip("trimesh")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ddclip_cli", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("solid", "volume"),
    [
        (box(2, 3, 4), 24),
        (box(2, 3, 4).scaled(-1).turned("y", 30), 24),
        (extrusion([(0, 0), (4, 0), (4, 1), (1, 1), (1, 3), (0, 3)], 2), 12),
        (extrusion([(0, 0), (0, 3), (1, 3), (1, 1), (4, 1), (4, 0)], 2), 12),
        (pyramids([(1, 0), (0, 1), (-1, 0), (0, -1)], 3), 2),
        (cylinder(1, 2, segments=200), 2 * np.pi),
        (cylinder(1, 3, top=0.0, segments=200), np.pi),
        (sphere(1, 120), 4 / 3 * np.pi),
        (torus(2, 0.5, 120, 60), 2 * np.pi**2 * 2 * 0.25),
        (tube([(0, 0, 0), (0, 2, 0), (0, 5, 0)], 1, 200), 5 * np.pi),
        (tube([(5, 0, 0), (0, 0, 0)], 1, 200), 5 * np.pi),
        (lathe([(0, 0), (1, 0), (1, 1), (0.5, 1), (0.5, 0.5), (0, 0.5)], 200), np.pi * (1 - 0.125)),
    ],
)
def test_solids_are_closed_face_outward_and_have_their_volume(solid, volume):
    mesh = trimesh.Trimesh(solid.vertices, solid.faces, process=False)
    mesh.merge_vertices()
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(volume, rel=0.005)


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_part_of_every_category_is_closed_and_mostly_of_the_main_colour(category):
    for number, trait in enumerate([None, *REGISTRY[category].traits]):
        parts = build_parts(category, np.random.default_rng(number), {trait} if trait else set())
        area = Counter()
        for material, solid in parts:
            mesh = trimesh.Trimesh(solid.vertices, solid.faces, process=False)
            mesh.merge_vertices()
            assert mesh.is_watertight, material
            assert mesh.volume > 0, material
            area[material] += mesh.area
        assert (area["main"] + area["shade"]) / area.total() > 0.5
        assert sum(len(solid.faces) for _, solid in parts) < 1600


@pytest.mark.parametrize("category", CATEGORIES)
def test_files_load_with_their_extent_and_unit_normals(category):
    finishes = set()
    for number in range(6):
        thing = make_object(3, category, COLOURS[number], number)
        finishes.add(thing.finish)
        scene = trimesh.load_scene(io.BytesIO(thing.glb()), file_type="glb", process=False)
        low = np.min([solid.vertices.min(axis=0) for _, solid in thing.parts], axis=0)
        high = np.max([solid.vertices.max(axis=0) for _, solid in thing.parts], axis=0)
        np.testing.assert_allclose(scene.bounds, [low, high], atol=2e-5)
        assert (high - low > 0.05).all()
        for mesh in scene.geometry.values():
            np.testing.assert_allclose(np.linalg.norm(mesh.vertex_normals, axis=1), 1, atol=1e-4)
            assert np.einsum("ij,ij->i", mesh.vertex_normals[mesh.faces[:, 0]], mesh.face_normals).min() > 0
    assert len(finishes) > 1


def test_colours_are_linear_in_the_file_and_srgb_in_textures():
    plain = next(thing for thing in (make_object(0, "star", "red", k) for k in range(99)) if thing.finish == "plain")
    painted = next(
        thing for thing in (make_object(0, "star", "red", k) for k in range(99)) if thing.finish == "grained"
    )
    wanted = np.array(PALETTE["red"].srgb)

    def material(thing):
        scene = trimesh.load_scene(io.BytesIO(thing.glb()), file_type="glb", process=False)
        return next(iter(scene.geometry.values())).visual.material

    linear = np.asarray(material(plain).baseColorFactor)[:3] / 255
    srgb = np.where(linear < 0.0031, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    np.testing.assert_allclose(srgb, wanted, atol=14)
    picture = np.asarray(material(painted).baseColorTexture.convert("RGB"), float)
    np.testing.assert_allclose(picture.mean(axis=(0, 1)), wanted, atol=25)


def test_objects_are_functions_of_seed_number_category_and_colour():
    for number in (0, 77, HELDOUT_FIRST + 5):
        first, again = numbered_object(4, number), numbered_object(4, number)
        assert first == again
        assert first.glb() == again.glb()
    base = make_object(4, "couch", "white", 9).glb()
    others = [(5, "couch", "white", 9), (4, "chair", "white", 9), (4, "couch", "gray", 9), (4, "couch", "white", 10)]
    assert base not in [make_object(*key).glb() for key in others]


def test_every_pair_occurs_once_in_each_run_and_held_out_objects_are_others():
    for first in (0, len(PAIRS), HELDOUT_FIRST):
        run_of_pairs = [numbered_object(1, first + k) for k in range(len(PAIRS))]
        assert {(thing.category, thing.colour) for thing in run_of_pairs} == set(PAIRS)
    heldout = [numbered_object(1, HELDOUT_FIRST + k) for k in range(2 * len(PAIRS) + 4)]
    counts = Counter((thing.category, thing.colour) for thing in heldout)
    assert counts.pop(("couch", "white")) == 6
    assert set(counts.values()) == {2}
    assert sum(thing.object_id.startswith("white-couch-") for thing in heldout[:300]) == 5
    train = {numbered_object(1, k).object_id for k in range(300)}
    assert train.isdisjoint(thing.object_id for thing in heldout)


def test_five_white_couches_are_held_out_whatever_the_seed():
    for seed in (*range(19), 3000):
        things = [numbered_object(seed, HELDOUT_FIRST + k) for k in range(575)]
        for heldout in (292, 575):  # and so for all between
            assert sum(thing.object_id.startswith("white-couch-") for thing in things[:heldout]) == 5, seed


def test_captions_tell_colour_and_category_and_no_attribute_that_is_not_there():
    assert len(CATEGORIES) == 24
    assert len(COLOURS) == 12
    finishes, mentioned = Counter(), Counter()
    for number in range(1500):
        thing = numbered_object(2, number)
        finishes[thing.finish] += 1
        assert set(thing.captions) >= {"text", "blip", "retrieval"}
        for caption in all_captions(thing.captions):
            padded = f" {caption.replace(',', '')} "
            assert any(f" {word} " in padded for word in PALETTE[thing.colour].words), caption
            assert any(f" {word} " in padded for word in REGISTRY[thing.category].words), caption
            for attribute in (*STRETCH, "striped", "two-tone", "long legs"):
                if f" {attribute} " in padded:
                    mentioned[attribute] += 1
                    assert attribute in thing.attributes, caption
            assert " a o" not in f" {caption}"
            assert " an r" not in f" {caption}"
            assert len(caption.split()) <= 12
    assert set(finishes) == set(FINISHES)
    assert min(mentioned[name] for name in (*STRETCH, "striped", "two-tone", "long legs")) > 20


def test_captions_are_short_for_the_tokenizer():
    open_clip = pytest.importorskip("open_clip")
    captions = [text for k in range(300) for text in all_captions(numbered_object(0, k).captions)]
    tokens = (open_clip.SimpleTokenizer()(captions) != 0).sum(dim=1)  # with the start and end marks
    assert tokens.max() <= 16


def test_a_library_is_whole_and_an_interrupted_one_ends_with_the_same_bytes(tmp_path):
    once, again = tmp_path / "once", tmp_path / "again"
    write_library(once, seed=7, train=5, heldout=6)
    before = contents(once)
    ids = (once / "train.txt").read_text().split() + (once / "heldout.txt").read_text().split()
    assert len(set(ids)) == 11
    assert {f"meshes/{object_id}.glb" for object_id in ids} == {name for name in before if name.startswith("meshes/")}
    assert list(json.loads(before["captions.json"])) == ids
    classes = (once / "classes.txt").read_text().split("\n")[:-1]
    assert tuple(classes) == CATEGORIES
    rows = list(csv.reader(io.StringIO(before["heldout.csv"].decode())))
    assert [row[2] for row in rows] == ids[5:]
    assert all(classes[int(index)] == name and f"-{name}-" in object_id for index, name, object_id in rows)

    write_library(again, seed=7, train=5, heldout=6)
    kept = again / "meshes" / f"{ids[0]}.glb"
    for name in ("heldout.csv", "captions.json", f"meshes/{ids[3]}.glb"):
        (again / name).unlink()
    stamp = kept.stat().st_mtime_ns
    write_library(again, seed=7, train=5, heldout=6)
    assert contents(again) == before
    assert kept.stat().st_mtime_ns == stamp


def test_a_run_killed_before_its_first_file_is_continued(tmp_path):
    for number in (1, os.getpid()):  # of a process that runs, and of one that does no more
        out = tmp_path / str(number)
        out.mkdir()
        (out / f".library.json.{number}.partial").write_text("{")
        write_library(out, seed=0, train=1, heldout=0)
        (out / "heldout.csv").unlink()
        (out / "meshes" / f".lamp.glb.{os.getpid()}.partial").write_text("half")
        write_library(out, seed=0, train=1, heldout=0)
        assert len(os.listdir(out / "meshes")) == 1
    assert [path.name for path in tmp_path.rglob(".*")] == [".library.json.1.partial"]


def test_an_output_that_exists_is_refused_and_replaced_with_force(tmp_path):
    out = tmp_path / "library"
    write_library(out, seed=0, train=2, heldout=0)
    before = contents(out)
    with pytest.raises(UserError, match="--force"):
        write_library(out, seed=0, train=2, heldout=0)
    (out / "heldout.csv").unlink()
    with pytest.raises(UserError, match="unfinished"):
        write_library(out, seed=1, train=2, heldout=0)
    write_library(out, seed=1, train=1, heldout=1, force=True)
    assert contents(out).keys() != before.keys()
    assert len(list((out / "meshes").iterdir())) == 2

    elsewhere = tmp_path / "letters"
    elsewhere.mkdir()
    (elsewhere / "dear.txt").write_text("keep me")
    with pytest.raises(UserError, match="letters"):
        write_library(elsewhere, seed=0, train=1, heldout=0, force=True)
    assert contents(elsewhere) == {"dear.txt": b"keep me"}
    with pytest.raises(UserError, match="at least one"):
        write_library(tmp_path / "none", seed=0, train=0, heldout=0)
    assert not (tmp_path / "none").exists()


def test_the_command_writes_a_library_and_names_mistakes_in_one_sentence(tmp_path):
    out = tmp_path / "library"
    done = run("sample", "--out", str(out), "--train", "2", "--heldout", "3", "--seed", "5")
    assert done.returncode == 0, done.stderr
    assert len(list((out / "meshes").glob("*.glb"))) == 5
    refused = run("sample", "--out", str(out), "--train", "2", "--heldout", "3", "--seed", "5")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "--force" in refused.stderr
    wrong = run("sample", "--out", str(tmp_path / "other"), "--train", "-1")
    assert wrong.returncode == 2
    assert os.listdir(tmp_path) == ["library"]
