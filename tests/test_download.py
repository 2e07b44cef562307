"""`ddclip download` against a Hub on loopback that cuts, lies, refuses and changes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Fault, Hub, etag, serving

from ddclip_cli.data.catalogue import (
    DATA_REPO,
    DEFAULT_ITEMS,
    ITEMS,
    MODEL_REPO,
    RemoteFile,
    Source,
    find_items,
    readable,
)
from ddclip_cli.data.download import download
from ddclip_cli.data.remote import TransferError, describe
from ddclip_cli.data.transfer import fetch
from ddclip_cli.errors import UsageError, UserError

H5, IDS = "shape_emb_objaverse.h5", "shape_emb_objaverse_model_to_idx.json"
FOLDER = "Four_1to6F_bs1600_LT6"
CHECKPOINT = f"{MODEL_REPO}/{FOLDER}.ckpt"
CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub with the embeddings and the checkpoint, and huggingface_hub turned to it."""
    from huggingface_hub import constants

    with serving() as hub:
        hub.files = {
            f"datasets/{DATA_REPO}/model_embeddings/{FOLDER}/{H5}": CONTENT,
            f"datasets/{DATA_REPO}/model_embeddings/{FOLDER}/{IDS}": b'{"white-couch": 0}',
            CHECKPOINT: CONTENT[::-1],
        }
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("DDCLIP_RETRY_WAIT", "0")
        yield hub


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def h5(data: Path) -> Path:
    return data / "objaverse_embeddings" / FOLDER / H5


def run(hub: Hub, tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command itself, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ddclip_cli", "download", *arguments],
        env=environment(hub, tmp_path, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def environment(hub: Hub, tmp_path: Path, **variables: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "DDCLIP_"))}
    ours = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "DDCLIP_DATA": str(tmp_path / "data"),
        "DDCLIP_RETRY_WAIT": "0",
    }
    return {**clean, **ours, **variables}


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if ".part" in path.name]


# --- the good way


def test_files_come_with_the_layout_of_the_reference(hub: Hub, data: Path) -> None:
    paths = download(["embeddings"], data)
    assert paths == [h5(data), h5(data).with_name(IDS)]
    assert h5(data).read_bytes() == CONTENT
    assert not leftovers(data)


def test_a_second_run_asks_nothing(hub: Hub, data: Path) -> None:
    first = download(DEFAULT_ITEMS, data)
    hub.requests.clear()
    assert download(DEFAULT_ITEMS, data) == first
    assert hub.requests == []


def test_a_checkpoint_is_where_huggingface_hub_finds_it(hub: Hub, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import hf_hub_download

    (path,) = download(["checkpoint"], data)
    assert path.read_bytes() == CONTENT[::-1]
    assert hf_hub_download(MODEL_REPO, f"{FOLDER}.ckpt", local_files_only=True) == str(path)
    assert len(hub.gets(CHECKPOINT)) == 1


def test_bytes_in_the_cache_without_a_name_there_are_not_fetched_again(hub: Hub, data: Path) -> None:
    (path,) = download(["checkpoint"], data)
    path.unlink()
    assert download(["checkpoint"], data) == [path]
    assert len(hub.gets(CHECKPOINT)) == 1


def test_force_fetches_again_and_verify_only_what_is_wrong(hub: Hub, data: Path) -> None:
    download(["embeddings"], data)
    download(["embeddings"], data, force=True)
    assert len(hub.gets(H5)) == len(hub.gets(IDS)) == 2
    h5(data).write_bytes(CONTENT[:-1] + b"x")
    download(["embeddings"], data, verify=True)
    assert (len(hub.gets(H5)), len(hub.gets(IDS))) == (3, 2)
    assert h5(data).read_bytes() == CONTENT


def test_verify_mends_a_checkpoint(hub: Hub, data: Path) -> None:
    (path,) = download(["checkpoint"], data)
    path.resolve().write_bytes(b"rotten")
    assert download(["checkpoint"], data, verify=True) == [path]
    assert path.read_bytes() == CONTENT[::-1]


def test_files_outside_lfs_are_checked_by_their_git_blob_id(hub: Hub, data: Path) -> None:
    hub.linked = False
    hub.faults = [Fault(H5, flip=7)]
    download(["embeddings"], data)
    assert h5(data).read_bytes() == CONTENT
    assert len(hub.gets(H5)) == 2


def test_the_token_goes_to_the_hub_but_not_to_its_cdn(hub: Hub, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.token = "hf_secret"
    download(["embeddings"], data)
    assert h5(data).read_bytes() == CONTENT
    assert all("Authorization" not in headers for headers in hub.gets(H5))


def test_revision(hub: Hub, data: Path) -> None:
    download(["embeddings"], data, revision="v2")
    assert any("/resolve/v2/" in path for _, path, _ in hub.requests)
    with pytest.raises(TransferError, match="has no revision v3"):
        download(["checkpoint"], data, revision="v3")


# --- a bad network


def test_a_cut_connection_continues_at_its_byte(hub: Hub, data: Path) -> None:
    hub.faults = [Fault(H5, cut=100_000), Fault(H5, cut=50_000)]
    download(["embeddings"], data)
    assert h5(data).read_bytes() == CONTENT
    assert [headers.get("Range") for headers in hub.gets(H5)] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_run_continues_where_an_earlier_one_gave_up(hub: Hub, data: Path) -> None:
    hub.faults = [Fault(H5, cut=100_000), Fault(H5, times=5, status=500)]
    with pytest.raises(TransferError, match=r"500.*continues"):
        download(["embeddings"], data)
    assert not h5(data).exists()
    download(["embeddings"], data)
    assert hub.gets(H5)[-1]["Range"] == "bytes=100000-"
    assert h5(data).read_bytes() == CONTENT
    assert not leftovers(data)


def test_a_checkpoint_continues_too(hub: Hub, data: Path) -> None:
    hub.faults = [Fault(CHECKPOINT, cut=100_000), Fault(CHECKPOINT, times=5, status=503)]
    with pytest.raises(TransferError, match="503"):
        download(["checkpoint"], data)
    (path,) = download(["checkpoint"], data)
    assert hub.gets(CHECKPOINT)[-1]["Range"] == "bytes=100000-"
    assert path.read_bytes() == CONTENT[::-1]


def test_any_number_of_cuts_is_survived_while_bytes_come(hub: Hub, data: Path) -> None:
    hub.faults = [Fault(H5, times=20, cut=10_000)]
    download(["embeddings"], data)
    assert h5(data).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(hub: Hub, data: Path) -> None:
    hub.ranges = False
    hub.faults = [Fault(H5, cut=100_000)]
    download(["embeddings"], data)
    assert h5(data).read_bytes() == CONTENT


def test_a_file_that_changed_between_runs_starts_over(hub: Hub, data: Path) -> None:
    hub.faults = [Fault(H5, cut=100_000), Fault(H5, times=5, status=500)]
    with pytest.raises(TransferError):
        download(["embeddings"], data)
    name = next(name for name in hub.files if name.endswith(H5))
    hub.files[name] = CONTENT[::-1]
    download(["embeddings"], data)
    assert "Range" not in hub.gets(H5)[-1]
    assert h5(data).read_bytes() == CONTENT[::-1]


def test_wrong_bytes_are_fetched_once_more(hub: Hub, data: Path) -> None:
    hub.faults = [Fault(H5, flip=123_456)]
    download(["embeddings"], data)
    assert h5(data).read_bytes() == CONTENT


def test_bytes_that_stay_wrong_never_get_the_name(hub: Hub, data: Path) -> None:
    hub.faults = [Fault(H5, times=2, flip=123_456)]
    with pytest.raises(UserError, match="wrong bytes twice"):
        download(["embeddings"], data)
    assert not h5(data).exists()
    assert not leftovers(data)


def test_a_rotten_part_file_is_noticed(hub: Hub, data: Path) -> None:
    hub.faults = [Fault(H5, cut=100_000), Fault(H5, times=5, status=500)]
    with pytest.raises(TransferError):
        download(["embeddings"], data)
    part = h5(data).with_name(H5 + ".part")
    part.write_bytes(b"\0" * part.stat().st_size)
    download(["embeddings"], data)
    assert h5(data).read_bytes() == CONTENT


@pytest.mark.parametrize("note", [None, b"", b"{}", b'[{"etag": 3}]', b"\xff"])
def test_a_part_file_of_unknown_origin_is_not_continued(hub: Hub, data: Path, note: bytes | None) -> None:
    h5(data).parent.mkdir(parents=True)
    h5(data).with_name(H5 + ".part").write_bytes(b"something else")
    if note is not None:
        h5(data).with_name(H5 + ".part.json").write_bytes(note)
    download(["embeddings"], data)
    assert h5(data).read_bytes() == CONTENT


@pytest.mark.parametrize("fault", [{"status": 429, "headers": {"Retry-After": "0"}}, {"status": 500}, {"stall": 0.8}])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_passing_fault_passes(
    hub: Hub, data: Path, method: str, fault: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    hub.faults = [Fault(H5, method, **fault)]
    download(["embeddings"], data)
    assert h5(data).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "headers", "sentence"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, "asks for a login.*hf auth login"),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "does not know your login"),
        (403, {"X-Error-Code": "GatedRepo"}, "ask for access.*hf auth login"),
        (404, {}, f"({H5} does not exist|has no .*{H5}).*404"),
        (404, {"X-Error-Code": "RepoNotFound"}, r"does not exist \(404\)"),
        (418, {}, "418"),
        (429, {"Retry-After": "0"}, "fewer requests.*continues"),
        (502, {}, "in trouble"),
    ],
)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_refusal_is_one_sentence(
    hub: Hub, data: Path, method: str, status: int, headers: dict[str, str], sentence: str
) -> None:
    hub.faults = [Fault(H5, method, times=9, status=status, headers=headers)]
    with pytest.raises(TransferError, match=sentence) as raised:
        download(["embeddings"], data)
    assert "\n" not in str(raised.value)
    assert not leftovers(data)


def test_a_server_that_is_no_hub(hub: Hub, data: Path) -> None:
    hub.faults = [Fault(H5, "HEAD", status=200)]
    with pytest.raises(TransferError, match="does not answer like a Hugging Face Hub"):
        download(["embeddings"], data)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_out_of_http_is_refused(hub: Hub, data: Path, target: str) -> None:
    hub.faults = [Fault(H5, status=302, headers={"Location": target})]
    with pytest.raises(TransferError, match="redirects to"):
        download(["embeddings"], data)


def test_endless_redirects(hub: Hub, data: Path) -> None:
    hub.faults = [Fault(H5, times=99, status=302, headers={"Location": f"/cdn/{H5}"})]
    with pytest.raises(TransferError, match="redirects without end"):
        download(["embeddings"], data)


def test_nobody_answers(hub: Hub, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    with pytest.raises(TransferError, match=r"cannot reach 127\.0\.0\.1:9: Connection refused"):
        download(["embeddings"], data)


# --- what is said before the first byte


def test_too_little_disk_is_said_before_the_first_byte(hub: Hub, data: Path) -> None:
    hub.claimed_size = 10**18
    with pytest.raises(UserError, match=r"\d+ TB have to come to .* are free: make room"):
        download(["embeddings"], data)
    assert not hub.gets(H5)
    assert not data.exists()


def test_offline(hub: Hub, data: Path) -> None:
    with pytest.raises(UserError, match=r"about 800 MB.*cannot be fetched offline.*ddclip download embeddings"):
        download(["embeddings"], data, offline=True)
    assert hub.requests == []
    download(DEFAULT_ITEMS, data)
    assert len(download(DEFAULT_ITEMS, data, offline=True)) == 3


def test_unknown_item_names_the_nearest(data: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'embeddings'"):
        download(["embedings"], data)
    with pytest.raises(UsageError, match="did you mean 'checkpoint:Four_MVPNet_1to6F_bs1600_LT6'"):
        download(["checkpoint:Four_MVPNet"], data)
    with pytest.raises(UsageError, match="--list"):
        download(["zzz"], data)


def test_two_runs_do_not_write_into_one_file(hub: Hub, data: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    h5(data).parent.mkdir(parents=True)
    with open(h5(data).with_name(H5 + ".part"), "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="written by another run"):
            download(["embeddings"], data)


# --- files in parts, and files that are not on the Hub


def in_parts(hub: Hub) -> tuple[list[Source], bytes]:
    sources = []
    for number, suffix in enumerate(("aa", "ab", "ac")):
        hub.files[f"lists/x_{suffix}"] = CONTENT[number * 100_000 : (number + 1) * 100_000]
        digest = etag(hub.files[f"lists/x_{suffix}"], linked=number != 1)
        sources.append(Source(url=f"{hub.url}/lists/x_{suffix}", digest=digest))
    return sources, CONTENT


def test_only_the_wrong_part_is_fetched_again(hub: Hub, data: Path) -> None:
    sources, whole = in_parts(hub)
    hub.faults = [Fault("x_ab", flip=5)]
    fetch([describe(source, "main") for source in sources], data / "x.h5")
    assert (data / "x.h5").read_bytes() == whole
    assert [len(hub.gets(f"x_{suffix}")) for suffix in ("aa", "ab", "ac")] == [1, 2, 1]


@pytest.mark.parametrize("cut", [0, 1, 99_999, 100_000, 100_001, 250_000, 299_999, 300_000])
def test_parts_continue_from_any_length(hub: Hub, data: Path, cut: int) -> None:
    sources, whole = in_parts(hub)
    remotes = [describe(source, "main") for source in sources]
    hub.faults = [Fault("x_ac", times=9, status=403)]
    with pytest.raises(TransferError):
        fetch(remotes, data / "x.h5")
    (data / "x.h5.part").write_bytes(whole[:cut])
    hub.faults = []
    hub.requests.clear()
    told: list[int] = []
    fetch(remotes, data / "x.h5", advance=told.append)
    assert (data / "x.h5").read_bytes() == whole
    assert sum(told) == len(whole)
    assert len([r for r in hub.requests if r[0] == "GET"]) == 3 - cut // 100_000
    assert not leftovers(data)


def test_a_changed_part_keeps_those_before_it(hub: Hub, data: Path) -> None:
    sources, whole = in_parts(hub)
    hub.faults = [Fault("x_ac", cut=10_000), Fault("x_ac", times=9, status=403)]
    with pytest.raises(TransferError):
        fetch([describe(source, "main") for source in sources], data / "x.h5")
    hub.faults = []
    hub.files["lists/x_ac"] = b"new"
    sources[2] = Source(url=sources[2].url, digest=etag(b"new"))
    fetch([describe(source, "main") for source in sources], data / "x.h5")
    assert (data / "x.h5").read_bytes() == whole[:200_000] + b"new"
    assert len(hub.gets("x_aa")) == len(hub.gets("x_ab")) == 1


def test_an_empty_file(hub: Hub, data: Path) -> None:
    hub.files["lists/empty"] = b""
    fetch([describe(Source(url=f"{hub.url}/lists/empty", digest=etag(b"", linked=False)), "main")], data / "empty")
    assert (data / "empty").read_bytes() == b""


# --- the catalogue


def test_the_catalogue_is_sound() -> None:
    destinations: dict[str, RemoteFile] = {}
    for file in {file for item in ITEMS.values() for file in item.files}:
        assert file.size > 0
        if file.destination is None:
            assert len(file.sources) == 1
            continue
        assert not Path(file.destination).is_absolute()
        assert ".." not in file.destination
        assert file.destination not in destinations
        destinations[file.destination] = file
    assert len(find_items(["all", "checkpoint"])) == len(ITEMS)
    assert find_items(["checkpoint"])[0].name == f"checkpoint:{FOLDER}"


def test_sizes_for_people() -> None:
    assert [readable(n) for n in (0, 999, 1000, 605_000_000, 1_500_000_000, 10**15)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "605 MB",
        "1.5 GB",
        "1000 TB",
    ]


def test_the_catalogue_needs_nothing_heavy() -> None:
    code = "import sys, ddclip_cli.data.catalogue; print({'torch', 'huggingface_hub', 'h5py'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# --- the command


def test_the_command_names_sizes_and_free_disk_and_fetches_both(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "300 kB" in done.stderr
    assert "free disk" in done.stderr
    checkpoint, *embeddings = map(Path, done.stdout.splitlines())
    assert embeddings == [h5(tmp_path / "data"), h5(tmp_path / "data").with_name(IDS)]
    assert checkpoint.read_bytes() == CONTENT[::-1]
    assert h5(tmp_path / "data").read_bytes() == CONTENT
    again = run(hub, tmp_path, "--json", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert [record["size"] for record in json.loads(again.stdout)] == [300_000, 300_000, 18]


def test_the_command_lists_and_plans_without_fetching(hub: Hub, tmp_path: Path) -> None:
    part = h5(tmp_path / "data").with_name(H5 + ".part")
    part.parent.mkdir(parents=True)
    part.touch()
    os.truncate(part, 400_000_000)
    listed = run(hub, tmp_path, "--list", "--json")
    assert listed.returncode == 0, listed.stderr
    here = {record["file"]: record["here"] for record in json.loads(listed.stdout)}
    assert here[f"objaverse_embeddings/{FOLDER}/{H5}"] == "50%"
    assert here[f"{FOLDER}.ckpt"] == "no"
    assert hub.requests == []
    part.unlink()
    planned = run(hub, tmp_path, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "300 kB" in planned.stdout
    assert "free disk" in planned.stderr
    assert not hub.gets(H5)


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "sentence"),
    [
        (["embedings"], {}, 2, "did you mean 'embeddings'"),
        (["embeddings"], {"DDCLIP_RETRY_WAIT": "soon"}, 2, "DDCLIP_RETRY_WAIT is not a number"),
        (["embeddings"], {"HF_HUB_OFFLINE": "1"}, 1, "cannot be fetched offline"),
        (["embeddings"], {"HF_ENDPOINT": "http://127.0.0.1:9"}, 1, "cannot reach 127.0.0.1:9: Connection refused"),
        (["backbone"], {}, 1, "has no open_clip_model.safetensors at revision main (404)"),
    ],
)
def test_the_command_fails_in_one_sentence(
    hub: Hub, tmp_path: Path, arguments: list[str], variables: dict[str, str], code: int, sentence: str
) -> None:
    done = run(hub, tmp_path, *arguments, **variables)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "data").exists()


def test_ctrl_c_keeps_what_has_come(hub: Hub, tmp_path: Path) -> None:
    process = interrupted(hub, tmp_path, signal.SIGINT, after=0.1)
    assert process.returncode == 130
    part = h5(tmp_path / "data").with_name(H5 + ".part")
    assert CONTENT.startswith(part.read_bytes())
    assert part.stat().st_size > 0


def interrupted(hub: Hub, tmp_path: Path, with_signal: signal.Signals, *, after: float) -> subprocess.Popen[bytes]:
    """Start the command and signal it `after` seconds of bytes coming."""
    hub.pace = 0.02  # 300 kB in 0.4 s
    hub.requests.clear()
    process = subprocess.Popen(
        [sys.executable, "-m", "ddclip_cli", "download", "embeddings"],
        env=environment(hub, tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not hub.gets(H5):
        time.sleep(0.005)
    time.sleep(after)
    process.send_signal(with_signal)
    process.wait()
    return process


def killed_and_finished(hub: Hub, tmp_path: Path, kills: int, seed: int) -> None:
    """Kill -9 the command `kills` times while bytes come, then let it finish."""
    rng = random.Random(seed)
    for _ in range(kills):
        interrupted(hub, tmp_path, signal.SIGKILL, after=rng.uniform(0, 0.15))
        assert not h5(tmp_path / "data").exists() or h5(tmp_path / "data").read_bytes() == CONTENT
    hub.pace = 0.0
    done = run(hub, tmp_path, "embeddings")
    assert done.returncode == 0, done.stderr
    assert h5(tmp_path / "data").read_bytes() == CONTENT
    assert not [name for name in leftovers(tmp_path / "data") if name.endswith(".part")]


def test_kill_and_finish(hub: Hub, tmp_path: Path) -> None:
    killed_and_finished(hub, tmp_path, kills=3, seed=1)
    assert hub.gets(H5)[-1].get("Range"), "the last run continued what the killed ones left"


@pytest.mark.slow
def test_kill_at_fifty_moments(hub: Hub, tmp_path: Path) -> None:
    for seed in range(10):
        killed_and_finished(hub, tmp_path / str(seed), kills=5, seed=seed)
