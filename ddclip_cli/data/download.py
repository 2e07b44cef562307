"""Bring published files in, whole and checked: weights into the Hugging Face cache, data under the data directory."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddclip_cli import console
from ddclip_cli.data.catalogue import Item, RemoteFile, about, find_items, readable
from ddclip_cli.data.disk import free_bytes, nearest_folder
from ddclip_cli.data.remote import Remote, describe
from ddclip_cli.data.transfer import bytes_here, fetch, matches
from ddclip_cli.errors import UserError


@dataclass(frozen=True)
class Local:
    """A file of an item on this machine."""

    item: Item
    file: RemoteFile
    path: Path | None
    """Where it is or will be; None: a file of the Hugging Face cache that is not there yet."""
    present: bool

    @property
    def here(self) -> str:
        """`yes`, `no`, or the share that an unfinished download left."""
        part = bytes_here(self.path) if self.path and not self.present else 0
        return "yes" if self.present else f"{part / max(self.file.size, part):.0%}" if part else "no"


@dataclass(frozen=True)
class Fetch:
    """A file that has to be fetched."""

    local: Local
    remotes: tuple[Remote, ...]
    destination: Path
    whole: bool = False
    """Every byte is in the cache, only its name there is missing."""

    @property
    def size(self) -> int:
        return sum(remote.size for remote in self.remotes)

    @property
    def missing(self) -> int:
        """Bytes that are not here yet."""
        return 0 if self.whole else max(self.size - bytes_here(self.destination), 0)


def download(
    items: Sequence[str],
    data_dir: str | Path,
    *,
    revision: str = "main",
    force: bool = False,
    verify: bool = False,
    offline: bool = False,
) -> list[Path]:
    """Bring the items in (names as in `ddclip download`) and return where their files are, in the catalogue's order.

    What is here is left alone, unless `force` fetches it anew or `verify` finds that it is not what the server has.
    Raises UsageError for an unknown name, UserError for a lack of space, TransferError for whatever the network does.
    """
    wanted = survey(items, data_dir, revision=revision)
    jobs = plan(wanted, data_dir, revision=revision, force=force, verify=verify, offline=offline)
    announce(jobs, data_dir)
    fetches = {job.local: job for job in jobs}
    paths = []
    for local in wanted:
        job = fetches.get(local)
        path = _bring(job, revision) if job else local.path
        assert path is not None
        paths.append(path)
    return paths


def survey(items: Sequence[str], data_dir: str | Path, *, revision: str = "main") -> list[Local]:
    """What of the items is on this machine; needs no network."""
    found: dict[object, Local] = {}
    for item in find_items(items):
        for file in item.files:
            path = Path(data_dir) / file.destination if file.destination else _cached(file, revision)
            present = path is not None and path.is_file()
            found.setdefault(file, Local(item, file, path, present))  # two items may share a file
    return list(found.values())


def plan(
    wanted: Iterable[Local],
    data_dir: str | Path,
    *,
    revision: str = "main",
    force: bool = False,
    verify: bool = False,
    offline: bool = False,
) -> list[Fetch]:
    """What has to be fetched, as the servers describe it now. UserError if `offline` or HF_HUB_OFFLINE forbids it."""
    from huggingface_hub import constants

    fetches = []
    for local in wanted:
        if local.present and not (force or verify):
            continue
        if offline or constants.HF_HUB_OFFLINE:
            if local.present and not force:
                raise UserError(f"{local.path} cannot be verified offline: unset HF_HUB_OFFLINE, leave out --offline")
            raise UserError(
                f"{local.file.name} ({about(local.file.size)}) is not here and cannot be fetched offline:"
                f" run `ddclip download {local.item.name}` with a network, without --offline and HF_HUB_OFFLINE"
            )
        described = tuple(describe(source, revision) for source in local.file.sources)
        if local.present and not force and _intact(local, described):
            continue
        destination = _destination(local, described, Path(data_dir))
        whole = destination.is_file() and not local.present and not force
        fetches.append(Fetch(local, described, destination, whole))
    return fetches


def announce(fetches: Iterable[Fetch], data_dir: str | Path) -> None:
    """Say what will come and how much room there is for it. Raises UserError if it does not fit."""
    needed: dict[int, list[Fetch]] = defaultdict(list)  # by file system
    for job in fetches:
        needed[nearest_folder(job.destination).stat().st_dev].append(job)
    if not needed:
        console.log(f"everything is here already; free disk at {data_dir}: {readable(free_bytes(Path(data_dir)))}")
    for jobs in needed.values():
        folder = jobs[0].destination.parent
        missing, free = sum(job.missing for job in jobs), free_bytes(folder)
        for job in jobs:
            kept = f", {readable(job.size - job.missing)} of it here" if job.missing < job.size else ""
            console.log(f"{job.local.item.name}: {job.local.file.name}, {readable(job.size)}{kept}")
        console.log(f"to fetch: {readable(missing)}; free disk: {readable(free)}")
        if missing > free:
            raise UserError(
                f"{readable(missing)} have to come to {folder}, where {readable(free)} are free: make room,"
                " or choose another place with --data-dir (data) or HF_HOME (weights)"
            )


def _bring(job: Fetch, revision: str) -> Path:
    """Fetch one file; return its path, in the cache by the name that other programs find it under."""
    if not job.whole:
        with _byte_bar(job.size, job.local.file.name) as advance:
            fetch(job.remotes, job.destination, advance=advance)
    if job.local.file.destination is not None:
        return job.destination
    from huggingface_hub import hf_hub_download

    source = job.local.file.sources[0]
    try:  # the bytes are in the cache: this gives them their name there
        return Path(hf_hub_download(source.repo, source.path, repo_type=source.repo_type, revision=revision))
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{source.name} has come, but has no entry in the cache ({reason}): run this again") from error


def _cached(file: RemoteFile, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    source = file.sources[0]
    path = try_to_load_from_cache(source.repo, source.path, revision=revision, repo_type=source.repo_type)
    return Path(path) if isinstance(path, str) else None


def _destination(local: Local, described: tuple[Remote, ...], data_dir: Path) -> Path:
    if local.file.destination is not None:
        return data_dir / local.file.destination
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    source, etag = local.file.sources[0], described[0].etag
    assert etag is not None  # a Hub without one is refused
    folder = repo_folder_name(repo_id=source.repo, repo_type=source.repo_type or "model")
    return Path(constants.HF_HUB_CACHE) / folder / "blobs" / etag


def _intact(local: Local, described: tuple[Remote, ...]) -> bool:
    assert local.path is not None
    with _byte_bar(local.path.stat().st_size, f"checking {local.file.name}") as advance:
        intact = matches(described, local.path, advance=advance)
    if not intact:
        console.warn(f"{local.path} is not what the server has, fetching it anew")
    return intact


@contextmanager
def _byte_bar(size: int, label: str) -> Iterator[Any]:
    """A bar of bytes; yields the function to tell of n more bytes. What it is told first does not count as speed."""
    with console.progress_bar(total=size, label=os.path.basename(label)) as bar:
        bar.unit, bar.unit_scale = "B", True
        told = False

        def advance(count: int) -> None:
            nonlocal told
            bar.update(count)
            if not told:
                bar.initial, told = count, True

        yield advance
