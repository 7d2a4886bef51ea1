"""IAM's decision, as far as our policies need it: an explicit deny, else an allow, else no.

moto's own evaluator knows no conditions, and a prefix of a listing is one. What is not known here is an error, never
a no.
Rules: AWS's "Policy evaluation logic" and "IAM JSON policy elements: Condition operators".
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

Policy = Mapping[str, Any]


def allowed(policies: Iterable[Policy], action: str, resource: str, **context: str) -> bool:
    """Whether identity policies let `action` on `resource`; keys of the context with `__` for `:`."""
    there = {key.replace("__", ":").lower(): value for key, value in context.items()}
    verdicts = {
        statement["Effect"]
        for policy in policies
        for statement in many(policy["Statement"])
        if any(fits(pattern, action, case=False) for pattern in many(statement["Action"]))
        and any(fits(pattern, resource) for pattern in many(statement["Resource"]))
        and all(
            met(operator, there.get(key.lower()), many(values))
            for operator, keys in statement.get("Condition", {}).items()
            for key, values in keys.items()
        )
    }
    return verdicts == {"Allow"}


def met(operator: str, value: str | None, wanted: list[str]) -> bool:
    """Whether one condition holds, of a key with that value; None where the request has no such key."""
    if operator == "Null":
        return wanted == [str(value is None).lower()]
    if operator == "StringNotEquals":
        return value not in wanted
    if operator == "ForAllValues:StringEquals":
        return value is None or all(part in wanted for part in value.split(","))
    if operator in ("StringEquals", "ArnEquals", "Bool"):
        return value in wanted
    if operator in ("StringLike", "ArnLike"):
        return value is not None and any(fits(pattern, value) for pattern in wanted)
    raise AssertionError(f"{operator} is not known here: add it")


def fits(pattern: str, value: str, *, case: bool = True) -> bool:
    parts = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(parts, value, 0 if case else re.IGNORECASE) is not None


def many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
