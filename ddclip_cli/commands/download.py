"""`ddclip download`: official models, embeddings and data, brought in whole."""

from __future__ import annotations

from typing import Annotated

import typer

from ddclip_cli.commands.options import DATA_DIR, DataDirOption, JsonOption, RecipeOption, SetOption
from ddclip_cli.errors import UsageError


def command(
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="WHAT", help="Items of --list, or all; default: checkpoint and embeddings."),
    ] = None,
    recipe: RecipeOption = "four",
    set_: SetOption = None,
    list_items: Annotated[bool, typer.Option("--list", help="Show the items, their files and what is here.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be fetched, and the free disk.")] = False,
    data_dir: DataDirOption = DATA_DIR,
    revision: Annotated[str, typer.Option("--revision", help="Branch, tag or commit on the Hub.")] = "main",
    verify: Annotated[bool, typer.Option("--verify", help="Check what is here, fetch anew what is wrong.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch what is here already, too.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use no network: fail if anything is missing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring in the official models, embeddings and data.

    Weights go to the Hugging Face cache, data to the data directory. Run the
    same command again after an interruption: it continues where it stopped.
    A file has its name only once its size and digest are checked.

    Examples:

    \b
      ddclip download
      ddclip download --list
    """
    from ddclip_cli import console
    from ddclip_cli.data import download as downloads
    from ddclip_cli.data.catalogue import DEFAULT_ITEMS

    names = what or (["all"] if list_items else list(DEFAULT_ITEMS))
    names = [_checkpoint_of(recipe, set_) if name == "checkpoint" else name for name in names]
    found = downloads.survey(names, data_dir, revision=revision)
    if list_items:
        records = [
            {"item": f.item.name, "file": f.file.name, "size": f.file.size, "here": f.here, "for": f.item.purpose}
            for f in found
        ]
    elif dry_run:
        jobs = downloads.plan(found, data_dir, revision=revision, force=force, verify=verify, offline=offline)
        downloads.announce(jobs, data_dir)
        records = [
            {"item": j.local.item.name, "file": str(j.destination), "size": j.size, "to fetch": j.missing} for j in jobs
        ]
    else:
        paths = downloads.download(names, data_dir, revision=revision, force=force, verify=verify, offline=offline)
        records = [
            {"item": f.item.name, "file": str(path), "size": path.stat().st_size}
            for f, path in zip(found, paths, strict=True)
        ]
    if as_json:
        console.print_json(records)
    elif list_items or dry_run:
        _print_table(records)
    else:
        for record in records:  # one a line, so that `$(ddclip download checkpoint)` is of use
            print(record["file"])


def _checkpoint_of(recipe: str, overrides: list[str] | None) -> str:
    """`checkpoint` without a name is the recipe's."""
    from ddclip_cli.hub import OFFICIAL_CHECKPOINTS
    from ddclip_cli.recipe import load_recipe

    name = load_recipe(recipe, overrides or []).model.checkpoint
    if name not in OFFICIAL_CHECKPOINTS:
        raise UsageError(f"recipe {recipe} has no official checkpoint to download: its model.checkpoint is {name}")
    return f"checkpoint:{name}"


def _print_table(records: list[dict[str, object]]) -> None:
    """Sizes in words; what an item is for only beside its first file."""
    from ddclip_cli import console
    from ddclip_cli.data.catalogue import readable

    rows, before = [], None
    for record in records:
        cells = [readable(cell) if isinstance(cell, int) else cell for cell in record.values()]
        if "for" in record and record["item"] == before:
            cells[-1] = ""
        rows.append(cells)
        before = record["item"]
    if rows:
        console.print_table(list(records[0]), rows)
