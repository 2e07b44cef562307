"""Worker processes: results in order, and what each prepares for itself."""

from __future__ import annotations

import os

import pytest

from ddclip_cli.errors import UserError
from ddclip_cli.ordered_pool import in_order


def _prepared_by(number: int) -> tuple[int, int]:
    return number, os.getpid()


def _what_is_prepared(prepared: tuple[int, int], task: int) -> tuple[int, int, bool]:
    return task, prepared[0], prepared[1] == os.getpid()


@pytest.mark.parametrize("jobs", [1, 2])
def test_workers_prepare_themselves_once_each_by_their_number(jobs):
    done = list(in_order(_what_is_prepared, range(20), jobs=jobs, prepare=_prepared_by))
    assert [task for task, _, _ in done] == list(range(20))
    assert {number for _, number, _ in done} <= set(range(jobs))
    assert all(own for _, _, own in done)


def _fails_to_prepare(number: int) -> int:
    raise UserError("no model")


def test_what_goes_wrong_in_preparing_is_told():
    with pytest.raises(UserError, match="no model"):
        list(in_order(_what_is_prepared, range(3), jobs=2, prepare=_fails_to_prepare))
