"""Files that travel with the package: `sample:NAME` is NAME of the sample's models, embeddings and pictures."""

from __future__ import annotations

from pathlib import Path

from ddclip_cli.errors import UserError

SAMPLE = "sample:"
ASSETS = Path(__file__).resolve().parent / "sample" / "assets"


def shipped_path(value: str) -> Path | None:
    """The file that a `sample:NAME` stands for; None for any other text. Raises UserError if it is not there."""
    if not value.startswith(SAMPLE):
        return None
    path = (ASSETS / value.removeprefix(SAMPLE)).resolve()
    if not path.is_relative_to(ASSETS):
        raise UserError(f"'{value}' leads outside the files shipped with ddclip: give a path of your own")
    if not path.exists():
        there = ", ".join(sorted(f"{SAMPLE}{entry.name}" for entry in ASSETS.glob("[!.]*"))) or "none at all"
        raise UserError(f"'{value}' is not shipped with this ddclip ({there}): correct the name, or reinstall")
    return path
