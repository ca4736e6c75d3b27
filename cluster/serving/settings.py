"""`ServerSettings`: how a server of one pipeline is set up, from a command line, a Serve YAML's `args` or code."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cascade_runtime.config import Recipe, load_recipe
from cascade_runtime.config.checks import integer
from cascade_runtime.errors import ConfigError
from cluster.serving.api_keys import read_key_file
from cluster.serving.chat_request import ChatLimits
from cluster.serving.files.store import FileStore
from cluster.serving.media import MediaLimits

RECIPE_VARIABLE = "CASCADE_RECIPE"
_FILE_AGE_S = 30 * 86_400
_COMMA = re.compile(r",(?![^\[\]]*\])")  # none within brackets: cascade.num_draft_tokens=[4,6]
_MAX_QUEUE = 48  # below what the pipeline's controller lets wait, so that a full queue is refused here


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Everything a replica is told. Raises `ConfigError` naming the field.

    recipe: a built-in name or a TOML file, overrides: "table.key=value" on top. model: the name clients ask for, beside
    the recipe's own. key_digests: SHA-256 of every API key; without any, only this machine may ask. media_dir: `file:`
    URLs are read below it. max_queue: requests that wait for a slot. max_body_bytes: of one HTTP body.
    key_concurrency, key_per_minute: requests of one key at a time and in a minute, 0 is unbounded. replicas: pipelines.
    files_dir: where uploaded files and batches are kept, by replicas of this machine together, over restarts; without
    it one replica keeps them as long as it lives, and several keep none. max_file_bytes, max_files_bytes: of one file
    and of all.
    grpc_port: of the gRPC server, 0 for none; grpc_host: where it listens; grpc_certfile, grpc_keyfile: its TLS, PEM.
    """

    recipe: str = "three_level"
    overrides: tuple[str, ...] = ()
    model: str = "cascade"
    key_digests: tuple[str, ...] = ()
    media_dir: str | None = None
    max_queue: int = 32
    max_body_bytes: int = 64 * 2**20
    max_tokens: int = 1024
    key_concurrency: int = 0
    key_per_minute: int = 0
    replicas: int = 1
    files_dir: str | None = None
    max_file_bytes: int = 256 * 2**20
    max_files_bytes: int = 4 * 2**30
    grpc_port: int = 0
    grpc_host: str = "127.0.0.1"
    grpc_certfile: str | None = None
    grpc_keyfile: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_queue", 0, _MAX_QUEUE),
            ("max_body_bytes", 1024, 2**30),
            ("max_tokens", 1, 4096),
            ("key_concurrency", 0, 10_000),
            ("key_per_minute", 0, 1_000_000),
            ("replicas", 1, 1000),
            ("max_file_bytes", 1024, 2**32),
            ("max_files_bytes", 1024, 2**42),
            ("grpc_port", 0, 65_535),
        ):
            integer(ConfigError, name, getattr(self, name), low, high)
        if not isinstance(self.model, str) or not 1 <= len(self.model) <= 64:
            raise ConfigError("model", self.model, "a name of 1 to 64 characters")
        if self.media_dir is not None and not Path(self.media_dir).is_dir():
            raise ConfigError("media_dir", self.media_dir, "an existing directory")
        if (self.grpc_certfile is None) != (self.grpc_keyfile is None):
            raise ConfigError("grpc_keyfile", self.grpc_keyfile, "a certificate and a key, or neither")

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> ServerSettings:
        """From a Serve application's arguments: the fields above, numbers also as text, `overrides` also as one text
        with commas; `api_key_file` instead of digests. CASCADE_RECIPE names the recipe where the arguments do not.
        """
        given = dict(args)
        given.setdefault("recipe", os.environ.get(RECIPE_VARIABLE, cls.recipe))
        key_file = given.pop("api_key_file", None)
        known = [item.name for item in fields(cls)]
        for name, value in given.items():
            if name not in known:
                raise ConfigError(name, value, f"only the arguments api_key_file, {', '.join(known)}")
            if isinstance(getattr(cls, name), int) and isinstance(value, str) and value.isdecimal():
                given[name] = int(value[:18])
        if isinstance(given.get("overrides"), str):
            given["overrides"] = [part for part in _COMMA.split(given["overrides"]) if part.strip()]
        for name in ("overrides", "key_digests"):
            given[name] = tuple(given.get(name, ()))
        if key_file is not None:
            given["key_digests"] = read_key_file(Path(key_file))
        return cls(**given)

    def load_recipe(self) -> Recipe:
        """The recipe with its overrides."""
        return load_recipe(self.recipe, self.overrides)

    def chat_limits(self, recipe: Recipe) -> ChatLimits:
        """What one request may ask of a server of this recipe."""
        directory = Path(self.media_dir) if self.media_dir is not None else None
        media = MediaLimits(max_bytes=min(MediaLimits.max_bytes, self.max_body_bytes), directory=directory)
        return ChatLimits(
            models=tuple(dict.fromkeys((self.model, recipe.name))),
            max_tokens=self.max_tokens,
            deadline_s=recipe.deadlines.request_s,
            media=media,
        )

    def file_store(self) -> FileStore | None:
        """Where this replica keeps what callers upload. Raises `CascadeError` for a folder that cannot be used."""
        if self.files_dir is None and self.replicas > 1:
            return None
        return FileStore(
            Path(self.files_dir) if self.files_dir is not None else None,
            max_file_bytes=self.max_file_bytes,
            max_bytes=self.max_files_bytes,
            max_age_s=_FILE_AGE_S,
        )

    def check_address(self, host: str | None) -> None:
        """Raises `ConfigError` where others than this machine could ask without an API key."""
        if not self.key_digests and host is not None and not is_loopback(host):
            raise ConfigError("host", host, "127.0.0.1, or any address together with an API key file")


def is_loopback(host: str) -> bool:
    """Whether an address or name can only mean this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
