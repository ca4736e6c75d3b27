"""What an API server checks by a resource definition and JSON schema has no word for: keys of lists, and formats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
from jsonschema.validators import extend

KEYS = "x-kubernetes-list-map-keys"
_FORMATS = jsonschema.FormatChecker(formats=())


@_FORMATS.checks("int32")
def _int32(value: Any) -> bool:
    return not isinstance(value, int) or -(2**31) <= value < 2**31


@_FORMATS.checks("int64")
def _int64(value: Any) -> bool:
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _distinct(_: Any, keys: list[str], items: Any, schema: dict[str, Any]) -> Iterator[jsonschema.ValidationError]:
    fields = schema.get("items", {}).get("properties", {})
    seen: list[list[Any]] = []
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        key = [item.get(name, fields.get(name, {}).get("default")) for name in keys]
        if key in seen:
            yield jsonschema.ValidationError(f"two have {dict(zip(keys, key, strict=True))}")
        seen.append(key)


_Validator = extend(jsonschema.Draft202012Validator, {KEYS: _distinct})


def validator(schema: dict[str, Any]) -> Any:
    return _Validator(schema, format_checker=_FORMATS)
