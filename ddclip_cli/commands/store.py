"""`ddclip store`: what a view store is, and the same store kept another way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.options import CodecName, ForceOption, JobsOption, JsonOption

command = typer.Typer(no_args_is_help=True, help="Describe, check and convert view stores.")
StoreArgument = Annotated[Path, typer.Argument(metavar="STORE.h5", help="A view store.", show_default=False)]
IdsOption = Annotated[
    Path | None, typer.Option("--ids", metavar="JSON", help="Rows of the store (object_id: row), if it lacks them.")
]


@command.command("info")
def info(
    store: StoreArgument,
    ids: IdsOption = None,
    check: Annotated[bool, typer.Option("--check", help="Read every view; exit 1 if any is damaged or empty.")] = False,
    jobs: JobsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Tell what a view store holds: objects, views, codec, size, and whether it is whole.

    Examples:
    \b
      ddclip store info store.h5
      ddclip store info store.h5 --check --jobs 4
    """
    from dataclasses import asdict

    from ddclip_cli import console
    from ddclip_cli.data.catalogue import readable
    from ddclip_cli.data.store_info import damaged_objects, store_info
    from ddclip_cli.errors import UserError, some

    found = store_info(store, ids)
    damaged = dict(damaged_objects(store, ids, jobs=jobs)) if check else {}
    record = {"store": str(store), **asdict(found)} | ({"damaged": damaged} if check else {})
    if as_json:
        console.print_json(record)
    else:
        record |= {"bytes": readable(found.bytes), "share": f"{found.share:.1%} of its pixels"}
        record |= {"damaged": f"{len(damaged)} objects" if check else "not looked for (--check)"}
        record["made_by"] = (found.made_by or {}).get("layout") or "not said"
        console.print_table(["", "value"], record.items())
    for object_id, reason in damaged.items():
        console.warn(f"{object_id}: {reason}")
    if damaged:
        raise UserError(f"{len(damaged)} of {found.objects} objects of {store} are damaged: {some(list(damaged))}")


@command.command("convert")
def convert(
    store: StoreArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT.h5", help="The view store to write.", show_default=False)],
    codec: Annotated[CodecName, typer.Option(help="How its views are kept.")] = CodecName.raw,
    ids: IdsOption = None,
    jobs: JobsOption = 1,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the same views kept another way: raw, as the reference reads them, jpeg, or lossless.

    The same command again goes on where it was.

    Examples:
    \b
      ddclip store convert store.h5 small.h5 --codec jpeg --jobs 4
      ddclip store convert small.h5 raw.h5 --codec raw
    """
    from ddclip_cli import console
    from ddclip_cli.data.catalogue import readable
    from ddclip_cli.data.convert import convert_store

    written = convert_store(store, out, ids=ids, codec=codec.value, jobs=jobs, force=force)
    before, after = store.stat().st_size, out.stat().st_size
    result: dict[str, object] = {"store": str(out), "objects": len(written), "codec": written.codec}
    if as_json:
        console.print_json(result | {"bytes": after, "bytes_before": before})
    else:
        result |= {"size": readable(after), "before": readable(before)}
        console.print_table(list(result), [list(result.values())])
