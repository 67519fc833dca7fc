"""The benchmark of attention has a line for every shape, with times of what can be had on the machine."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import attention
from langevin.nn import measured


def test_a_table_of_small_shapes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(attention, "SHAPES", [(1, 2, 5, 5, 8), (2, 1, 4, 3, 8)])
    monkeypatch.setattr(sys, "argv", ["attention", "--dtype", "float32"])
    attention.main()
    head, _, columns, rule, *rows = capsys.readouterr().out.splitlines()
    assert torch.__version__ in head
    assert columns == "| ms | sdpa | tiled | amx |" and rule.count("|") == columns.count("|")
    assert [row.split("|")[1].strip() for row in rows] == ["1 x 2 x 5 x 8, 5 keys", "2 x 1 x 4 x 8, 3 keys"]
    assert all(float(row.split("|")[2]) > 0 for row in rows)


def test_what_computes_something_else_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.measured.backends.BACKENDS, "tiled", lambda q, *rest: q * 0)
    monkeypatch.setitem(measured.CANDIDATES, "cpu", ("tiled",))
    (row,) = attention.rows([(1, 2, 5, 5, 8)], "cpu", torch.float32)
    assert row.split("|")[3].strip() == ""
