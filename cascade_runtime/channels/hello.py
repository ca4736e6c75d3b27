"""How the two ends of a link prove to each other that they belong together.

    listener -> connector   Challenge: a fresh nonce
    connector -> listener   Hello: version, epoch, limits, link, a nonce of its own, and an HMAC over all of it
    listener -> connector   Welcome: an HMAC over both nonces

The secret itself never travels, a recorded hello is worthless against another challenge, and the connector knows that
the listener holds the secret too. All sizes are fixed, all integers little-endian. The HMAC is checked before anything
else that a stranger wrote is believed; only then are link, epoch and limits compared. What follows the handshake is
neither signed nor encrypted: put it on a network that is trusted for that.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from secrets import token_bytes

from cascade_runtime.channels.base import ChannelSpec

_MAGIC = b"cascade\x02"  # 2: draft blocks may be trees
_HEADER = struct.Struct("<8sIII16s16s")  # magic, epoch, capacity, max frame bytes, link hash, nonce
_PROOF_BYTES = 32
_NONCE_BYTES = 16

CHALLENGE_BYTES = len(_MAGIC) + _NONCE_BYTES
HELLO_BYTES = _HEADER.size + _PROOF_BYTES
WELCOME_BYTES = _PROOF_BYTES


def challenge() -> bytes:
    """A fresh challenge: magic, then a nonce."""
    return _MAGIC + token_bytes(_NONCE_BYTES)


def hello(spec: ChannelSpec, challenged: bytes) -> bytes | None:
    """The answer to a challenge; None when it is not one of this protocol and version."""
    if len(challenged) != CHALLENGE_BYTES or not challenged.startswith(_MAGIC):
        return None
    nonce = token_bytes(_NONCE_BYTES)
    header = _HEADER.pack(_MAGIC, spec.epoch, spec.capacity, spec.max_frame_bytes, _link_hash(spec), nonce)
    return header + _proof(spec, b"hello", challenged, header)


def refusal(spec: ChannelSpec, challenged: bytes, said: bytes) -> str | None:
    """Why a hello is refused ("magic", "secret", "epoch", "link", "limits"), or None when it is good."""
    if len(said) != HELLO_BYTES or not said.startswith(_MAGIC):
        return "magic"
    header, proof = said[: _HEADER.size], said[_HEADER.size :]
    if not hmac.compare_digest(proof, _proof(spec, b"hello", challenged, header)):
        return "secret"
    _, epoch, capacity, max_frame_bytes, link, _ = _HEADER.unpack(header)
    if link != _link_hash(spec):
        return "link"
    if epoch != spec.epoch:
        return "epoch"
    if (capacity, max_frame_bytes) != (spec.capacity, spec.max_frame_bytes):
        return "limits"
    return None


def welcome(spec: ChannelSpec, challenged: bytes, said: bytes) -> bytes:
    """The listener's own proof."""
    return _proof(spec, b"welcome", challenged, said)


def welcomed(spec: ChannelSpec, challenged: bytes, said: bytes, answer: bytes) -> bool:
    """Whether `answer` shows that the listener holds the secret."""
    return hmac.compare_digest(answer, welcome(spec, challenged, said))


def _link_hash(spec: ChannelSpec) -> bytes:
    return hashlib.blake2b(spec.link.encode(), digest_size=16).digest()


def _proof(spec: ChannelSpec, label: bytes, *parts: bytes) -> bytes:
    return hmac.new(spec.secret, label + b"".join(parts), hashlib.sha256).digest()
