"""The paths of a recipe, made into paths of this machine."""

from __future__ import annotations

from pathlib import Path

from ddclip_cli.shipped import shipped_path


def data_path(value: str, data_dir: Path) -> Path:
    """An absolute path as it is, `sample:NAME` as the file that is shipped with the package, else a path in `data_dir`.

    Raises UserError for a `sample:` file that is not there; whether other files exist is their reader's to find out.
    """
    return shipped_path(value) or data_dir / Path(value).expanduser()
