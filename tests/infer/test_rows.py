"""rows.py: whole in every format."""

from __future__ import annotations

import csv
import io
import json

import pytest

from densekit.infer.rows import Row, write_csv, write_json, write_text

ROWS: list[Row] = [
    {
        "file": "a,b.png",
        "topk": [
            {"class": 3, "label": 'dog, "big"', "prob": 0.1 + 0.2},
            {"class": 4, "label": "égret", "prob": 1e-20},
        ],
        "error": None,
    },
    {"file": "bad.png", "topk": [], "error": "is empty"},
    {"file": None, "topk": [{"class": 0, "label": "ant", "prob": 1.0}], "error": None},
]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], []])
def test_json_reads_back(rows: list[Row]) -> None:
    out = io.StringIO()
    assert write_json(iter(rows), out) == len(rows[1:2])
    assert json.loads(out.getvalue()) == rows
    assert len(out.getvalue().splitlines()) == (len(rows) + 2 if rows else 1)


def test_csv_reads_back() -> None:
    out = io.StringIO()
    assert write_csv(iter(ROWS), out, topk=2) == 1
    header, *lines = csv.reader(io.StringIO(out.getvalue()))
    assert header == ["file", "class1", "label1", "prob1", "class2", "label2", "prob2", "error"]
    assert lines[0] == [
        "a,b.png", "3", 'dog, "big"', "0.30000000000000004", "4", "égret", "1e-20", "",
    ]  # fmt: skip
    assert lines[1] == ["bad.png", *[""] * 6, "is empty"]
    assert lines[2] == ["", "0", "ant", "1.0", "", "", "", ""]


def test_text_is_a_line_each() -> None:
    out = io.StringIO()
    assert write_text(iter(ROWS[:2]), out) == 1
    assert out.getvalue().splitlines() == [
        'a,b.png  dog, "big" 0.3000  égret 0.0000',
        "bad.png  error: is empty",
    ]
