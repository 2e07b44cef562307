"""Many meshes to views on disk, in Zero123's layout: `<object_id>/000.png` RGBA and `000.npy` (3, 4) camera."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from PIL import Image

from ddclip_cli import console, files
from ddclip_cli.errors import UsageError, UserError
from ddclip_cli.ordered_pool import in_order
from ddclip_cli.render.camera import Camera
from ddclip_cli.render.load import MESH_SUFFIXES, Up
from ddclip_cli.render.renderer import poses_of, render_file

ObjectIds = Literal["name", "path"]


@dataclass(frozen=True)
class Rendered:
    """What a run of `render_folder` did, by object id."""

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Finished by an earlier run."""
    failed: dict[str, str] = field(default_factory=dict)
    """Object id -> why."""


@dataclass(frozen=True)
class _Task:
    mesh: Path
    folder: Path
    num_views: int
    image_size: int
    seed: int
    camera: Camera
    up: Up
    device: str

    def poses(self) -> np.ndarray:
        return poses_of(self.folder.name, num_views=self.num_views, seed=self.seed, camera=self.camera)


def render_folder(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    num_views: int = 12,
    image_size: int = 512,
    seed: int = 0,
    camera: Camera = "zero123",
    up: Up = "auto",
    object_ids: ObjectIds = "name",
    jobs: int = 1,
    device: str = "cpu",
    recipe: dict[str, Any] | None = None,
    force: bool = False,
) -> Rendered:
    """Render mesh files, and all those in folders, to `out`; a folder of an object appears when it is complete.

    Objects that `out` has already are kept, unless `force`. A mesh that cannot be rendered is reported, not raised,
    even if it ends the process that draws it. `recipe`, the section that the options came from, is kept beside them
    in `recipe.yaml`.
    Raises UserError if there is no mesh at all, if two files have one object id, or if `out` has other views.
    """
    meshes = find_meshes(sources, object_ids=object_ids)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a folder as --out")
    tasks = {
        object_id: _Task(mesh, out / object_id, num_views, image_size, seed, camera, up, device)
        for object_id, mesh in meshes.items()
    }
    files.remove_leftovers(out, tasks.keys() | {"recipe.yaml"})
    result = Rendered(kept=[] if force else [object_id for object_id, task in tasks.items() if task.folder.is_dir()])
    for object_id in result.kept:
        _check_same(tasks.pop(object_id))
    if recipe is not None:
        _keep_recipe(out / "recipe.yaml", recipe, refuse_other=bool(result.kept))
    reasons = in_order(
        _render_one, tasks.values(), jobs=min(jobs, max(1, len(tasks))), died=_died if len(tasks) > 1 else None
    )
    for object_id, reason in zip(tasks, console.progress(reasons, total=len(tasks), label="render"), strict=True):
        if reason is None:
            result.done.append(object_id)
        else:
            result.failed[object_id] = reason
    return result


def find_meshes(sources: Iterable[str | Path], *, object_ids: ObjectIds = "name") -> dict[str, Path]:
    """Object id -> mesh file, of files and of all in folders, in order of ids.

    An id is the file's name without its suffix, or with `path` the parts of its path below the folder, joined by `_`.
    """
    meshes: dict[str, Path] = {}
    for source in map(Path, sources):
        if not source.exists():
            raise UserError(f"{source}: no such file or folder")
        found = [source]
        if source.is_dir():  # hidden files are what other programs left there
            found = [p for p in source.rglob("[!.]*") if p.suffix.lower() in MESH_SUFFIXES and p.is_file()]
        if not found:
            raise UserError(f"{source}: holds no mesh ({', '.join(MESH_SUFFIXES)})")
        for mesh in sorted(found):
            below = mesh.relative_to(source).parts if source.is_dir() else (mesh.name,)
            object_id = mesh.stem if object_ids == "name" else "_".join(below)
            other = meshes.setdefault(object_id, mesh)
            if other.resolve() != mesh.resolve():
                hint = "rename one of them" + (", or say --object-ids path" if object_ids == "name" else "")
                raise UsageError(f"{other} and {mesh} would both be object {object_id!r}: {hint}")
    return dict(sorted(meshes.items()))


def _check_same(task: _Task) -> None:
    """Raise UserError if the folder that is there holds views of another number, size or camera."""
    other = _other_views(task.folder)
    poses = task.poses()
    try:
        with Image.open(task.folder / "000.png") as first:
            same = first.size == (task.image_size, task.image_size)
        same &= np.allclose(np.load(task.folder / f"{len(poses) - 1:03d}.npy"), poses[-1], rtol=0, atol=1e-9)
    except (OSError, ValueError):
        raise other from None
    if not same or (task.folder / f"{len(poses):03d}.png").exists():
        raise other


def _keep_recipe(path: Path, recipe: dict[str, Any], *, refuse_other: bool) -> None:
    """Write the settings, unless the folder has views by other ones that are kept."""
    if refuse_other and path.exists():
        try:
            same = yaml.safe_load(path.read_text(encoding="utf-8")) == recipe
        except (yaml.YAMLError, UnicodeDecodeError):
            same = False
        if not same:
            raise _other_views(path.parent)
    files.write_yaml(path, recipe)


def _other_views(folder: Path) -> UserError:
    return UserError(f"{folder} holds other views than asked for now: choose another --out, or --force")


def _render_one(task: _Task) -> str | None:
    """Render one mesh; the reason why not, if it cannot be."""
    torch.set_num_threads(1)  # the other cores have objects of their own
    try:
        poses = task.poses()
        views = render_file(task.mesh, poses, image_size=task.image_size, up=task.up, device=task.device)
    except UserError as error:
        return str(error)
    with files.writing(task.folder, durable=False) as partial:
        partial.mkdir()
        for number, (view, pose) in enumerate(zip(views, poses, strict=True)):
            Image.fromarray(view).save(partial / f"{number:03d}.png", compress_level=3)
            np.save(partial / f"{number:03d}.npy", pose)
    return None


def _died(task: _Task) -> str:
    return f"{task.mesh}: the process that drew it ended (out of memory, or a fault in a library that reads it)"
