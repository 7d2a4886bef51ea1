"""Evaluate the little of expr-lang that a retry strategy's expression uses.

Argo compiles `retryStrategy.expression` with github.com/expr-lang/expr (argo-workflows v4.0.5,
util/expr/argoexpr/eval.go:9). Of that language: strings, members, `== != contains && || !` and parentheses, with the
precedences of expr-lang's language definition: `!` before comparisons before `&&` before `||`.
"""

import re
from collections.abc import Mapping
from typing import Any

TOKEN = re.compile(r"""\s*(?:("[^"\\]*"|'[^'\\]*')|(==|!=|&&|\|\||[!()])|([\w.]+))""")


def evaluate(expression: str, scope: Mapping[str, Any]) -> bool:
    """Return what an expression gives.

    Raises:
        ValueError: it uses what is not known here.
    """
    tokens, end = list[str](), 0
    while end < len(expression.rstrip()):
        if not (match := TOKEN.match(expression, end)):
            raise ValueError(f"{expression!r}: cannot read {expression[end:]!r}")
        tokens.append(match[0].strip())
        end = match.end()
    value = _either(tokens, scope)
    if tokens or not isinstance(value, bool):
        raise ValueError(f"{expression!r}: no condition, or more than one")
    return value


def _either(tokens: list[str], scope: Mapping[str, Any]) -> Any:
    value = _both(tokens, scope)
    while tokens[:1] == ["||"]:
        tokens.pop(0)
        value = _both(tokens, scope) or value
    return value


def _both(tokens: list[str], scope: Mapping[str, Any]) -> Any:
    value = _compared(tokens, scope)
    while tokens[:1] == ["&&"]:
        tokens.pop(0)
        value = _compared(tokens, scope) and value
    return value


def _compared(tokens: list[str], scope: Mapping[str, Any]) -> Any:
    left = _value(tokens, scope)
    if tokens[:1] in (["=="], ["!="], ["contains"]):
        operator, right = tokens.pop(0), _value(tokens, scope)
        return right in left if operator == "contains" else (left == right) == (operator == "==")
    return left


def _value(tokens: list[str], scope: Mapping[str, Any]) -> Any:
    if not tokens:
        raise ValueError("the expression ends too early")
    token = tokens.pop(0)
    if token == "!":
        return not _value(tokens, scope)
    if token == "(":
        value = _either(tokens, scope)
        if not tokens or tokens.pop(0) != ")":
            raise ValueError("a parenthesis is not closed")
        return value
    if token[0] in "\"'":
        return token[1:-1]
    member: Any = scope
    for part in token.split("."):
        if not isinstance(member, Mapping) or part not in member:
            raise ValueError(f"{token} is not known")
        member = member[part]
    return member
