"""Parse filters over the columns of a dataset: `det_score > 0.9 and identity_id == "ann"`.

The text is parsed, never evaluated: comparisons of a column (or one number of it, `pose[3]`) with constants, `in` and
`not in` over lists of constants, `is None`, joined by `and`, `or`, `not` and parentheses. Rows where a compared value
is null are left out, as in SQL.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from deca_core.errors import DecaError

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
LONGEST = 10_000  # characters: a filter is written by hand, and the parser recurses
EXAMPLE = "write it as in: det_score > 0.9 and identity_id == 'ann'"


class FilterError(DecaError):
    """A filter that cannot be read."""


@dataclass(frozen=True)
class Filter:
    """A parsed filter and the columns that it reads."""

    text: str
    expression: pc.Expression
    columns: tuple[str, ...]


def parse_filter(text: str) -> Filter:
    """Parse a filter. Raises FilterError naming what was not understood.

    >>> parse_filter("det_score > 0.9 and face_index == 0").columns
    ('det_score', 'face_index')
    """
    if len(text) > LONGEST:
        raise FilterError(f"the filter has {len(text)} characters, {LONGEST} are the most")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        names = dict.fromkeys(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        return Filter(text, _condition(tree.body), tuple(names))
    except (SyntaxError, RecursionError, ValueError) as error:
        raise FilterError(f"filter {text!r} cannot be read ({error}); {EXAMPLE}") from error


def _condition(node: ast.expr) -> Any:
    if isinstance(node, ast.BoolOp):
        join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        found = [_condition(value) for value in node.values]
        whole = found[0]
        for part in found[1:]:
            whole = join(whole, part)
        return whole
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_condition(node.operand)
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        steps = [_compare(left, op, right) for left, op, right in zip(sides, node.ops, sides[1:], strict=False)]
        whole = steps[0]
        for step in steps[1:]:  # 0.5 < det_score < 0.9
            whole = whole & step
        return whole
    if isinstance(node, ast.Name):  # a boolean column
        return pc.field(node.id)
    raise _refused(node)


def _compare(left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
    if isinstance(op, (ast.In, ast.NotIn)):
        inside = _column(left).isin(_constants(right))
        return inside if isinstance(op, ast.In) else ~inside
    if isinstance(op, (ast.Is, ast.IsNot)):
        if not (isinstance(right, ast.Constant) and right.value is None):
            raise _refused(right)
        return _column(left).is_null() if isinstance(op, ast.Is) else _column(left).is_valid()
    return COMPARISONS[type(op)](_side(left), _side(right))


def _side(node: ast.expr) -> Any:
    return _column(node) if isinstance(node, (ast.Name, ast.Subscript)) else pc.scalar(_constant(node))


def _column(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return pc.field(node.id)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        place = _constant(node.slice)
        if isinstance(place, int) and not isinstance(place, bool) and place >= 0:
            return pc.list_element(pc.field(node.value.id), place)
    raise _refused(node)


def _constants(node: ast.expr) -> list[Any]:
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [_constant(value) for value in node.elts]
    raise _refused(node)


def _constant(node: ast.expr) -> Any:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _constant(node.operand)
        if isinstance(value, (int, float)):
            return -value
    elif isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, bool)):
        return node.value
    raise _refused(node)


def _refused(node: ast.expr) -> ValueError:
    return ValueError(f"{ast.unparse(node)!r} is not understood here")
