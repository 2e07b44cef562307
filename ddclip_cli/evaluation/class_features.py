"""Class features: one text feature a class, read from a file or made from the names of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddclip_cli.errors import UserError
from ddclip_cli.model.multiview import MultiViewCLIP


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
        raise UserError(f"{path} is missing: name the class features in eval.class_features") from None
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


def make_class_features(model: MultiViewCLIP, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Mean, over the templates, of the unit text features of every class name put into them.

    Args:
        class_names: C names; underscores, as in LVIS's `bat_(animal)`, are read as spaces.
        templates: texts with one `{}` for the name.

    Returns:
        (C, E) float32 on the CPU, not normalised.
    """
    if not templates or any(template.count("{}") != 1 for template in templates):
        raise UserError(f"every class template needs one {{}} for the name of the class: {list(templates)}")
    if "" in class_names:  # a gap in the numbers of the classes
        number = list(class_names).index("")
        raise UserError(f"class {number} has no name in the labels: name a file of features in eval.class_features")
    features = []
    for name in class_names:
        readable = name.replace("_", " ").strip()
        texts = [template.replace("{}", readable) for template in templates]
        features.append(model.encode_text(texts).float().mean(dim=0).cpu())  # (T, E) -> (E,)
    return torch.stack(features)
