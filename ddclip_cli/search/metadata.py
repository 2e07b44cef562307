"""What is known of the objects beside their pictures: a table (CSV or Parquet) by object id, and filters over it."""

from __future__ import annotations

import csv
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ddclip_cli.data.object_ids import read_id_list
from ddclip_cli.errors import UsageError, UserError, some

ID_COLUMNS = ("id", "object_id", "uid", "model_id")
CONDITION = re.compile(r"\s*([^=!<>~]+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
NUMBERS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Metadata:
    """The rows of a CSV or Parquet file, by the column `id` (or object_id, uid, model_id).

    Attributes:
        columns: names of all columns, the ids' included.

    Raises:
        UserError: the file is missing, no table, or without a column of ids, or an id stands there twice.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path} does not exist: give a CSV or Parquet file with a column 'id'")
        is_parquet = self.path.suffix.lower() in (".parquet", ".pq")
        self._table = _read_parquet(self.path) if is_parquet else _read_csv(self.path)
        self.columns = list(self._table)
        by = next((name for name in ID_COLUMNS if name in self._table), None)
        if by is None:
            found = ", ".join(map(repr, self.columns[:5])) or "nothing"
            raise UserError(f"{path} has no column of ids (id, object_id, uid or model_id); its columns are {found}")
        self.ids = self._table[by]
        self._place = {object_id: place for place, object_id in enumerate(self.ids)}
        if len(self._place) < len(self.ids):
            twice = next(object_id for place, object_id in enumerate(self.ids) if self._place[object_id] != place)
            raise UserError(f"{path} names object {twice!r} twice: keep one of its rows")

    def of(self, object_id: str) -> dict[str, str]:
        """Column -> value of one object; empty for an unknown one."""
        place = self._place.get(object_id)
        return {} if place is None else {name: values[place] for name, values in self._table.items()}

    def column(self, name: str, object_ids: Sequence[str]) -> list[str | None]:
        """The values of one column for these objects; None where there is none."""
        values = self._table[name]
        return [values[self._place[i]] if i in self._place else None for i in object_ids]

    def matching(self, condition: str) -> set[str]:
        """The ids of the objects for which `column=value`, `!=`, `<`, `<=`, `>`, `>=` or `~` (contains) holds.

        Text is compared without regard to case. Raises UsageError for a condition that cannot be read.
        """
        match = CONDITION.fullmatch(condition)
        if match is None or match[1] not in self._table:
            known = ", ".join(self.columns[:8])
            what = "is no condition" if match is None else f"asks for a column {match[1]!r} that is not there"
            raise UsageError(f"--filter {condition!r} {what}: it is COLUMN=VALUE, with one of {known}")
        column, sign, wanted = self._table[match[1]], match[2], match[3]
        if sign in NUMBERS:
            try:
                limit = float(wanted)
            except ValueError:
                raise UsageError(f"--filter {condition!r} compares with {wanted!r}, which is no number") from None
            return {i for i, value in zip(self.ids, column, strict=True) if _compares(value, NUMBERS[sign], limit)}
        lower = wanted.lower()
        tests: dict[str, Callable[[str], bool]] = {
            "=": lambda value: value == lower,
            "!=": lambda value: value != lower,
            "~": lambda value: lower in value,
        }
        return {i for i, value in zip(self.ids, column, strict=True) if tests[sign](value.lower())}


def allowed_rows(object_ids: Sequence[str], filters: Sequence[str], metadata: Metadata | None) -> np.ndarray:
    """(N,) bool: the objects that pass every filter, a file of ids (see `read_id_list`) or a condition on `metadata`.

    Raises:
        UsageError: a condition cannot be read, or there is no metadata for it.
        UserError: a file names objects that are not there, or nothing passes.
    """
    allowed = np.ones(len(object_ids), dtype=bool)
    for text in filters:
        if Path(text).is_file():
            wanted = set(read_id_list(text))
            unknown = sorted(wanted.difference(object_ids))
            if unknown:
                raise UserError(f"{text} names {len(unknown)} objects that are not in the index: {some(unknown)}")
        elif metadata is None:
            hint = "is neither a file of ids nor can it be asked without --metadata FILE"
            raise UsageError(f"--filter {text!r} {hint}")
        else:
            wanted = metadata.matching(text)
        allowed &= np.fromiter((object_id in wanted for object_id in object_ids), dtype=bool, count=len(object_ids))
    if not allowed.any():
        raise UserError(f"no object passes --filter {' and '.join(map(repr, filters))}: nothing can be found")
    return allowed


def _compares(value: str, holds: Callable[[float, float], bool], limit: float) -> bool:
    try:
        return holds(float(value), limit)
    except ValueError:
        return False


def _read_csv(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = next(reader, [])
            rows = [row for row in reader if row]
            uneven = next((row for row in rows if len(row) != len(names)), None)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: save the table as CSV in UTF-8, or as Parquet") from None
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error})") from None
    if uneven is not None:
        raise UserError(f"{path}: a row has {len(uneven)} cells where the header has {len(names)}: {uneven[0]!r}")
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _read_parquet(path: Path) -> dict[str, list[str]]:
    """Every column that has one plain value a row, as text; vectors and other lists are left where they are."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        plain = [field.name for field in file.schema_arrow if not pyarrow.types.is_nested(field.type)]
        table = file.read(columns=plain)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet file, or a damaged one ({str(error).splitlines()[0]})") from None
    return {
        name: ["" if value is None else str(value) for value in table[name].to_pylist()] for name in table.column_names
    }
