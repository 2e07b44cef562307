"""What `ddclip download` can bring in, as data: items, their files, where each comes from and where it goes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ddclip_cli.errors import UsageError
from ddclip_cli.hub import DATA_REPO, MODEL_REPO, OFFICIAL_CHECKPOINTS

BACKBONE_REPO = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
# The object lists are not on the Hub: they come from the authors' repository, as it was at this commit.
LISTS_URL = "https://raw.githubusercontent.com/3dlg-hcvc/DuoduoCLIP/3111a77041fc82e656fe589bd7737b41ea34c10d"
FEATURES = "ViT-B-32_laion2b_s34b_b79k"
EMBEDDINGS = "Four_1to6F_bs1600_LT6"
MB, GB = 10**6, 10**9


@dataclass(frozen=True)
class Source:
    """A file on the Hub (`repo`, `path`) or at a plain `url`."""

    repo: str = ""
    path: str = ""
    repo_type: Literal["model", "dataset"] = "model"
    url: str | None = None
    digest: str | None = None
    """Of its content, used where the server itself names none: 64 hex digits are a sha256, 40 a git blob id."""

    @property
    def name(self) -> str:
        return self.url or f"{self.repo}/{self.path}"


@dataclass(frozen=True)
class RemoteFile:
    """A file of an item: the sources whose bytes follow each other in it (one, unless it was published in parts)."""

    sources: tuple[Source, ...]
    destination: str | None
    """Under the data directory; None: the Hugging Face cache."""
    size: int
    """Bytes, roughly: good for a message. What the server says counts."""

    @property
    def name(self) -> str:
        return self.destination or self.sources[0].path


@dataclass(frozen=True)
class Item:
    name: str
    purpose: str
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def _data(
    path: str, destination: str, size: int, *, suffixes: Sequence[str] = ("",), digest: str | None = None
) -> RemoteFile:
    sources = tuple(Source(DATA_REPO, path + suffix, "dataset", digest=digest) for suffix in suffixes)
    return RemoteFile(sources, destination, size)


def _list(path: str, destination: str, size: int, digest: str) -> RemoteFile:
    return RemoteFile((Source(url=f"{LISTS_URL}/{path}", digest=digest),), destination, size)


def _checkpoint(name: str, file: str) -> Item:
    return Item(f"checkpoint:{name}", "official model", (RemoteFile((Source(MODEL_REPO, file),), None, 600 * MB),))


_CLASS_FEATURES = _data("lvis_split/lvis_class_label_embeddings.npy", "lvis_class_label_embeddings.npy", 1_183_872)
_LVIS_LIST = _list(
    "dataset/csv_list/lvis.csv",
    "lvis.csv",
    2_199_471,
    "ddff5a3575fed2c8742f34639ffffc322a1c2dc4fd679dd0ead8da2d12068e40",
)

_ITEMS = (
    *(_checkpoint(name, file) for name, file in OFFICIAL_CHECKPOINTS.items()),
    Item(
        "backbone",
        "stock CLIP weights: targets, training, zero-shot baseline",
        (RemoteFile((Source(BACKBONE_REPO, "open_clip_model.safetensors"),), None, 605 * MB),),
    ),
    Item(
        "embeddings",
        "shape embeddings of all Objaverse objects, for retrieve",
        tuple(
            _data(f"model_embeddings/{EMBEDDINGS}/{name}", f"objaverse_embeddings/{EMBEDDINGS}/{name}", size)
            for name, size in (("shape_emb_objaverse.h5", 800 * MB), ("shape_emb_objaverse_model_to_idx.json", 36 * MB))
        ),
    ),
    Item(
        "lvis",
        "Objaverse-LVIS views, labels and class features, for eval-lvis",
        (
            _data("lvis_split/lvis_model_to_idx.json", "lvis_model_to_idx.json", 2 * MB),
            _CLASS_FEATURES,
            _LVIS_LIST,
            _data("lvis_split/lvis_images.h5_part_", "lvis_images.h5", 83_462_400_000, suffixes=("aa", "ab")),
        ),
    ),
    Item(
        "four",
        "training set without Zero123's renders: supplement views, targets, lists",
        (
            _data("training/four/model_to_idx.json", "model_to_idx.json", 40 * MB),
            _data("training/four/supplement_model_to_idx.json", "supplement_model_to_idx.json", 4 * MB),
            _list(
                "dataset/csv_list/four_model_ids.txt",
                "four_model_ids.txt",
                30 * MB,
                "315195476eac15e7d6c84893b0738156c6f014a5",
            ),
            _list(
                "dataset/csv_list/four_no_lvis_model_ids.txt",
                "four_no_lvis_model_ids.txt",
                28 * MB,
                "f6bdd187521edccb726aa31d794550bbbb923ded",
            ),
            _LVIS_LIST,
            _CLASS_FEATURES,
            _data(
                f"training/four/{FEATURES}/image_embeddings.h5",
                f"{FEATURES}/image_embeddings.h5",
                10_774_943_744,
                digest="bbc451a33f7310825082c4bbe5b3d33ee8df9ccaf514d3bb8a49db057f994d7a",
            ),
            _data(
                f"training/four/{FEATURES}/text_embeddings.npy",
                f"{FEATURES}/text_embeddings.npy",
                15_717_073_475,
                digest="b10637e8ce72fbe03aeb765e5925af074214c25c6206b12b28d7239478e2fa3f",
            ),
            _data(
                "training/four/supplement_mv_images_part_",
                "supplement_mv_images.h5",
                160 * GB,
                suffixes=("aa", "ab", "ac"),
            ),
        ),
    ),
    Item(
        "zero123",
        "Zero123's renders of Objaverse, for pack-h5",
        (
            RemoteFile(
                (Source(url="https://tri-ml-public.s3.amazonaws.com/datasets/views_release.tar.gz"),),
                "views_release.tar.gz",
                1500 * GB,
            ),
        ),
    ),
    Item(
        "mvpnet-lists",
        "MVPNet's object list and labels",
        (
            _list(
                "dataset/csv_list/mvpnet_train_model_ids.txt",
                "mvpnet_train_model_ids.txt",
                830_995,
                "cdb5469cab76e2329fc879c981b1dab29bf14c5e413bb50dadb9f1d57f9bd2ea",
            ),
            _list(
                "dataset/csv_list/mvpnet_val.csv",
                "mvpnet_val.csv",
                427_384,
                "7b230931b6c07b4389d1f9ed9c23206ae604c9f6d62668e710fcd13852232afe",
            ),
        ),
    ),
    Item(
        "mvimgnet-lists",
        "MVImgNet's object list, categories and captions",
        (
            _list(
                "dataset/csv_list/mvimgnet_model_ids.txt",
                "mvimgnet_model_ids.txt",
                2_414_392,
                "1cf6648843d98f6bf9dcdda855a00ff54962354483608653de762f12c82a65ee",
            ),
            _list(
                "preprocess/MVImgNetPreprocess/captions/mvimgnet_category.txt",
                "mvimgnet/mvimgnet_category.txt",
                3_228,
                "2fa48a9f68795a2fac561c63a2f67078b7468ce68fe20ae8ee7a9dd8cfab19e5",
            ),
            _list(
                "preprocess/MVImgNetPreprocess/captions/packed.json.gz",
                "mvimgnet/packed.json.gz",
                50 * MB,
                "4b632d56293ac24d32d07d2e5c00347e1197810f",
            ),
        ),
    ),
)
ITEMS = {item.name: item for item in _ITEMS}
DEFAULT_ITEMS = ("checkpoint", "embeddings")
_SHORT = {"checkpoint": f"checkpoint:{next(iter(OFFICIAL_CHECKPOINTS))}"}


def find_items(names: Sequence[str]) -> list[Item]:
    """The items of these names, each once; `checkpoint` is the first official one, `all` is every item.

    Raises UsageError naming the nearest item for a name that is none.
    """
    wanted: dict[str, Item] = {}
    for name in names:
        for full in list(ITEMS) if name == "all" else [_SHORT.get(name, name)]:
            if full not in ITEMS:
                near = difflib.get_close_matches(name, [*_SHORT, *ITEMS, "all"], n=1, cutoff=0.5)
                hint = f"did you mean '{near[0]}'?" if near else "see `ddclip download --list`"
                raise UsageError(f"nothing to download is called '{name}': {hint}")
            wanted[full] = ITEMS[full]
    return list(wanted.values())


def about(size: int) -> str:
    """`about 600 MB`, from bytes."""
    return f"about {readable(size)}"


def readable(size: float) -> str:
    """`605 MB`, from bytes; decimal units, as disks and the Hub have them."""
    if size < 1000:
        return f"{size:.0f} bytes"
    power = min(int(math.log10(size)) // 3, 4)
    size /= 1000**power
    return f"{size:.{0 if size >= 10 else 1}f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
