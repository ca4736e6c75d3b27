"""`library_class`: a class of transformers by name, imported when it is asked for.

Its modelling code takes two seconds of a core to import. Processes that load no model or tower of its (controller,
encoder, emulated stages) go without, and so do families that are not loaded.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any


def library_class(name: str) -> Any:
    """ "qwen2.modeling_qwen2:Qwen2Model" is that class of `transformers.models`."""
    return resolve_name(f"transformers.models.{name}")
