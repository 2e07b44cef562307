"""Class labels of objects, in the form of the reference's `lvis.csv`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddclip_cli.errors import UserError

MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class Labels:
    """Labelled objects and their classes."""

    object_ids: list[str]
    class_index: np.ndarray
    """(N,) int64"""
    class_names: list[str]
    """By class index; "" for an index below the highest that no object has."""


def read_labels(path: str | Path) -> Labels:
    """Read lines `class_index,class_name,object_id` without a header; a name may hold commas, quoted or not.

    Raises:
        UserError: the file is missing or empty, or a line is of another form, repeats an object or renames a class.
    """
    class_of: dict[str, int] = {}
    names: dict[int, str] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for fields in reader:
                if fields:
                    _add(fields, f"{path}:{reader.line_num}", class_of, names)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a CSV of class_index,class_name,object_id") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: give a CSV of class_index,class_name,object_id") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: give a CSV of class_index,class_name,object_id") from None
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error})") from None
    if not class_of:
        raise UserError(f"{path} labels no object: give lines of class_index,class_name,object_id")
    class_names = [names.get(index, "") for index in range(max(names) + 1)]
    return Labels(list(class_of), np.array(list(class_of.values()), dtype=np.int64), class_names)


def _add(fields: list[str], where: str, class_of: dict[str, int], names: dict[int, str]) -> None:
    if len(fields) < 3:
        raise UserError(f"{where}: {len(fields)} of the three fields class_index,class_name,object_id")
    index_text, name, object_id = fields[0].strip(), ",".join(fields[1:-1]).strip(), fields[-1].strip()
    if not (index_text.isascii() and index_text.isdigit()) or len(index_text) > 7 or int(index_text) >= MOST_CLASSES:
        raise UserError(
            f"{where}: class index {index_text[:20]!r} is not a whole number from 0 below {MOST_CLASSES:,} "
            "(the file has no header)"
        )
    index = int(index_text)
    if not name or not object_id:
        raise UserError(f"{where}: the {'object id' if name else 'class name'} is empty")
    if object_id in class_of:
        raise UserError(f"{where}: object {object_id!r} is labelled twice: keep one of its lines")
    if names.setdefault(index, name) != name:
        raise UserError(f"{where}: class {index} is {name!r} here, but {names[index]!r} before: give it one name")
    class_of[object_id] = index
