"""What a PromQL expression reads, from its syntax tree."""

from collections.abc import Iterator
from dataclasses import dataclass

import promql_parser
from promql_parser import (
    AggModifierType,
    AggregateExpr,
    BinaryExpr,
    Call,
    Expr,
    MatrixSelector,
    ParenExpr,
    SubqueryExpr,
    UnaryExpr,
    VectorSelector,
)


@dataclass(frozen=True, slots=True)
class Use:
    """A series that an expression selects: its name, and the labels that matchers and aggregations around it name."""

    metric: str
    labels: frozenset[str]


def find_uses(expression: str) -> list[Use]:
    """Return every selection of an expression; raises ValueError when it is no PromQL."""
    return list(walk(promql_parser.parse(expression), frozenset()))


def walk(node: Expr, labels: frozenset[str]) -> Iterator[Use]:
    """Yield the selections below a node; `labels` are those that the nodes above keep."""
    if isinstance(node, VectorSelector):
        yield Use(node.name or "", labels | {matcher.name for matcher in node.matchers.matchers})
    elif isinstance(node, MatrixSelector):
        yield from walk(node.vector_selector, labels)
    elif isinstance(node, AggregateExpr):
        modifier = node.modifier
        by = modifier is not None and modifier.type == AggModifierType.By
        yield from walk(node.expr, frozenset(modifier.labels) if modifier and by else labels)
    elif isinstance(node, BinaryExpr):
        yield from walk(node.lhs, labels)
        yield from walk(node.rhs, labels)
    elif isinstance(node, Call):
        for argument in node.args:
            yield from walk(argument, labels)
    elif isinstance(node, ParenExpr | UnaryExpr | SubqueryExpr):
        yield from walk(node.expr, labels)
