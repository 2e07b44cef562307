"""The paths of a recipe, made into paths of this machine."""

from __future__ import annotations

from pathlib import Path

from ddclip_cli.errors import UserError

SAMPLE = "sample:"
ASSETS = Path(__file__).resolve().parents[1] / "sample" / "assets"


def data_path(value: str, data_dir: Path) -> Path:
    """An absolute path as it is, `sample:NAME` as the file that is shipped with the package, else a path in `data_dir`.

    Raises UserError for a `sample:` file that is not there; whether other files exist is their reader's to find out.
    """
    if value.startswith(SAMPLE):
        return _sample_path(value.removeprefix(SAMPLE))
    return data_dir / Path(value).expanduser()


def _sample_path(name: str) -> Path:
    path = (ASSETS / name).resolve()
    if not path.is_relative_to(ASSETS):
        raise UserError(f"'{SAMPLE}{name}' leads outside the files shipped with ddclip: give a path of your own")
    if not path.exists():
        there = ", ".join(sorted(f"{SAMPLE}{entry.name}" for entry in ASSETS.glob("[!.]*"))) or "none at all"
        raise UserError(f"'{SAMPLE}{name}' is not shipped with this ddclip ({there}): correct the name, or reinstall")
    return path
