"""Class features: one text feature a class, read from a file or made from the names of the classes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize as to_unit_length

from ddclip_cli.console import progress_bar, warn
from ddclip_cli.data.labels import Labels, read_labels
from ddclip_cli.errors import UserError
from ddclip_cli.model.multiview import TEXTS_AT_ONCE, MultiViewCLIP


def class_features(
    path: Path | None, labels: Labels, model: MultiViewCLIP, templates: Sequence[str]
) -> tuple[Tensor, list[str]]:
    """The features (C, E) float32 of the classes of `labels`, and the C names.

    Args:
        path: an `.npy` of features; or a file of all class names, for features by `templates`; None takes the names
            that the labels give.

    Raises:
        UserError: the file cannot be read, or there is no name for a class.
    """
    if path is not None and path.suffix == ".npy":
        features = read_class_features(path)
        unnamed = [""] * (len(features) - len(labels.class_names))
        return features, [*labels.class_names, *unnamed]
    names = labels.class_names
    if path is not None:
        names = read_class_names(path)
        differ = [
            f"class {number} is {theirs!r} there and {ours!r} here"
            for number, (theirs, ours) in enumerate(zip(labels.class_names, names, strict=False))
            if theirs and clean_name(theirs) != clean_name(ours)
        ]
        if differ:
            warn(f"{path} names {len(differ)} classes unlike the labels: {differ[0]}; do their numbers fit?")
    return make_class_features(model, names, templates), names


def read_class_features(path: str | Path) -> Tensor:
    """Read an `.npy` of (C, E) floats, such as the reference's `lvis_class_label_embeddings.npy`, as float32.

    Raises:
        UserError: the file is missing, is not such an array (a pickled one is not opened), or holds NaN, infinite or
            all-zero rows.
    """
    path = Path(path)
    try:
        # A map, not a read: a header that promises more than the file holds is refused before memory is taken.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: name a file of class features (ddclip encode-classes)") from None
    except (ValueError, OSError, EOFError):
        raise UserError(f"{path} is not a plain .npy array: class features are (classes, width) floats") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        found = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else "several arrays"
        raise UserError(f"{path} holds {found}: class features are one array (classes, width) of floats")
    features = torch.from_numpy(np.array(array, dtype=np.float32))
    bad = torch.nonzero(~features.isfinite().all(dim=1) | (features == 0).all(dim=1)).flatten().tolist()
    if bad:
        raise UserError(f"{path} has no usable feature for class {bad[0]} ({len(bad)} such rows): make the file again")
    return features


def read_class_names(path: str | Path) -> list[str]:
    """Class names by number: a text file with one a line, or a CSV of labels (see `read_labels`).

    Where every line is `number,name`, as in MVImgNet's list, whose numbers have gaps, the names are numbered anew.

    Raises:
        UserError: the file is missing, empty or not UTF-8, or a class has no name or that of another.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        return read_labels(path).class_names
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a file of class names, one a line") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: give a file of class names, one a line") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: give a file of class names, one a line") from None
    fields = list(csv.reader(lines)) if all(line.partition(",")[0].isdigit() for line in lines) else []
    names = [",".join(of_line[1:]).strip() for of_line in fields] or [line.strip() for line in lines]
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{path}:{number}: the class has no name: give one class a line, without empty lines")
        if name in first:
            raise UserError(f"{path}:{number}: class {name!r} is in line {first[name]} already: keep one of them")
        first[name] = number
    if not names:
        raise UserError(f"{path} names no class: give one class a line")
    return names


def clean_name(name: str) -> str:
    """A name as one would say it: `bat_(animal)` -> `bat (animal)`."""
    return " ".join(name.replace("_", " ").split())


def make_class_features(
    model: MultiViewCLIP,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    normalise: bool = True,
    clean: bool = True,
) -> Tensor:
    """Mean, over the templates, of the text features of every class name put into them.

    Args:
        class_names: C names.
        templates: texts with one `{}` for the name.
        normalise: bring the feature of every text to unit length before the mean; LVIS's and CLIP's own way.
        clean: say the names as in `clean_name`, instead of as they are written.

    Returns:
        (C, E) float32 on the CPU, not normalised.
    """
    if not templates or any(template.count("{}") != 1 for template in templates):
        raise UserError(f"every class template needs one {{}} for the name of the class: {list(templates)}")
    if "" in class_names:  # a gap in the numbers of the classes
        number = list(class_names).index("")
        raise UserError(
            f"class {number} has no name in the labels: name a file of features, or of all class names, as "
            "class_features"
        )
    said = [clean_name(name) if clean else name for name in class_names]
    at_once = max(1, TEXTS_AT_ONCE // len(templates))
    features = []
    with progress_bar(total=len(said), label="encode classes", unit="classes") as bar:
        for start in range(0, len(said), at_once):
            names = said[start : start + at_once]
            of_texts = model.text_features([text.replace("{}", name) for name in names for text in templates])
            of_texts = to_unit_length(of_texts, dim=1) if normalise else of_texts
            features.append(of_texts.unflatten(0, (len(names), -1)).mean(dim=1).cpu())  # (n*T, E) -> (n, E)
            bar.update(len(names))
    return torch.cat(features)
