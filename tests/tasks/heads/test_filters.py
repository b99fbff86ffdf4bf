"""Filters: what they choose against plain Python, and what they refuse."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest

from tasks.heads.filters import FilterError, parse_filter

SCORES = [0.2, 0.5, None, 0.9]
NAMES = ["ann", "bob", "ann", None]
POSES = [[0.0, -1.0], [0.3, 2.0], [0.4, 0.0], [-0.5, 1.0]]
TABLE = pa.table(
    {
        "row": np.arange(4),
        "score": SCORES,
        "name": NAMES,
        "pose": pa.array(POSES, pa.list_(pa.float32(), 2)),
        "seen": [True, False, True, False],
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("score > 0.4", [1, 3]),
        ("0.4 < score <= 0.5", [1]),
        ("score >= 0.5 and name == 'bob'", [1]),
        ("name == 'ann' or score > 0.8", [0, 2, 3]),
        ("not name == 'ann'", [1]),
        ("name in ['bob', 'eve']", [1]),
        ("name is None", [3]),
        ("score is not None and not (score < 0.5)", [1, 3]),
        ("pose[0] > -0.1 and pose[1] >= 0", [1, 2]),
        ("pose[1] == -1", [0]),
        ("seen", [0, 2]),
        (" score\t!= 0.2 ", [1, 3]),
    ],
)
def test_rows(text, rows):
    assert TABLE.filter(parse_filter(text).expression)["row"].to_pylist() == rows


def test_the_columns_it_needs_are_named_once():
    assert parse_filter("a > 1 and (b == 'x' or a < 0) and pose[3] > 2").columns == ("a", "b", "pose")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("__import__('os').system('true')", "__import__"),
        ("score.real > 1", "score.real"),
        ("score + 1 > 2", "score + 1"),
        ("[x for x in name]", "for x in"),
        ("pose[-1] > 0", "pose"),
        ("name == b'ann'", "b'ann'"),
        ("name is 'ann'", "'ann'"),
        ("score >", "invalid syntax"),
        ("", "invalid syntax"),
        ("'ann'", "ann"),
        ("(" * 500 + "score" + ")" * 500, "too many nested"),
        ("x" * 20_000, "20000 characters"),
    ],
)
def test_what_is_no_filter_is_refused_by_name(text, named):
    with pytest.raises(FilterError, match=re.escape(named)):
        parse_filter(text)
