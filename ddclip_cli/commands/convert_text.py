"""`ddclip convert-text`: the reference's pickle of text features into a file that is read where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.options import ForceOption, JsonOption


def command(
    features: Annotated[
        Path, typer.Argument(metavar="FILE.npy", help="The reference's text_embeddings.npy.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.h5", help="Default: FILE.h5 beside it.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert the reference's pickled text features, once, for training.

    The pickle is read from its beginning to its end, whatever its size, and
    nothing in it is run. Training reads FILE.h5 where it lies, in no memory.

    Examples:
    \b
      ddclip convert-text data/ViT-B-32_laion2b_s34b_b79k/text_embeddings.npy
      ddclip convert-text text_embeddings.npy --out text_embeddings.h5
    """
    from ddclip_cli import console
    from ddclip_cli.data.convert_text import convert_text

    out = features.with_suffix(".h5") if out is None else out
    objects, texts = convert_text(features, out, force=force)
    result: dict[str, object] = {"file": str(out), "objects": objects, "texts": texts}
    if as_json:
        console.print_json(result)
    else:
        console.print_table(list(result), [list(result.values())])
