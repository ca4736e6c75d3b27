"""What neighbouring stages say to each other, and its bytes.

Two messages travel over an edge, in opposite directions. Drafts are hints, verdicts are state:

    DraftBlock   downstream: "beyond position `base` I would say `tokens`". Wrong, stale, lost, repeated or forged, it
    can
                 waste a pass and never change an answer.
    Verdict      upstream: "from `base` on I stand by `tokens`". Cumulative: base reaches back to what was last
                 acknowledged, so a lost verdict is healed by the next. Ordered by `seq`, never by length.

Example: light has drafted "red car" on top of "a" and knows of verdict 3; mid keeps "red", corrects "car" to "truck":

    DraftBlock(request=7, epoch=0, base=1, tokens=(17, 4), stages=(1, 1), ack=3)
    Verdict(request=7, epoch=0, seq=4, base=1, tokens=(17, 9), stages=(3, 2))

`stages` holds, per token, the set of stages that stand by it as a bit mask: bit 0 is the lightest stage. The lowest set
bit produced the token, the others accepted it (light proposed 17 and mid accepted it: 0b011; mid produced 9: 0b010).

Bytes: one fixed little-endian header, then int32 tokens, then one byte per token. Nothing is unpickled; every length is
checked before it is used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from cascade_runtime.errors import ChannelError

MAX_BLOCK_TOKENS = 8192
MAX_STAGES = 8

_HEADER = struct.Struct("<BBHIQIII")  # kind, flags, reserved, epoch, request, seq or ack, base, count
_DRAFT, _VERDICT = 1, 2
_FINISHED = 1

MAX_FRAME_BYTES = _HEADER.size + 5 * MAX_BLOCK_TOKENS


@dataclass(frozen=True)
class DraftBlock:
    """Tokens a stage would say beyond absolute answer position `base`; `ack` is the last verdict it has taken in.

    `finished`: the drafter ends the answer with the last token, or may go no further: do not wait for more.
    """

    request: int
    epoch: int
    base: int
    tokens: tuple[int, ...]
    stages: tuple[int, ...]
    ack: int
    finished: bool = False


@dataclass(frozen=True)
class Verdict:
    """The prefix a stage stands by, from absolute answer position `base` on.

    `finished`: this is the end of the answer; the receiver may forget the request.
    """

    request: int
    epoch: int
    seq: int
    base: int
    tokens: tuple[int, ...]
    stages: tuple[int, ...]
    finished: bool = False


def encode(message: DraftBlock | Verdict) -> bytes:
    """A message as one frame."""
    kind, number = (_DRAFT, message.ack) if isinstance(message, DraftBlock) else (_VERDICT, message.seq)
    flags = _FINISHED if message.finished else 0
    count = len(message.tokens)
    head = _HEADER.pack(kind, flags, 0, message.epoch, message.request, number, message.base, count)
    return head + np.array(message.tokens, "<i4").tobytes() + bytes(message.stages)


def decode(frame: bytes) -> DraftBlock | Verdict:
    """The message in a frame. Raises `ChannelError` on anything that `encode` would not have written."""
    if not _HEADER.size <= len(frame) <= MAX_FRAME_BYTES:
        raise ChannelError(f"frame of {len(frame)} bytes; allowed: {_HEADER.size} to {MAX_FRAME_BYTES}")
    kind, flags, reserved, epoch, request, number, base, count = _HEADER.unpack_from(frame)
    if kind not in (_DRAFT, _VERDICT) or flags & ~_FINISHED or reserved:
        raise ChannelError(
            f"frame of kind {kind}, flags {flags}, reserved {reserved}; allowed: kinds 1 and 2, flag 1, 0"
        )
    if len(frame) != _HEADER.size + 5 * count:
        raise ChannelError(f"frame of {len(frame)} bytes for {count} tokens; allowed: {_HEADER.size + 5 * count}")
    tokens = np.frombuffer(frame, "<i4", count, _HEADER.size)
    stages = tuple(frame[_HEADER.size + 4 * count :])
    if count and (int(tokens.min()) < 0 or 0 in stages):
        raise ChannelError("frame with a negative token id or a token nobody stands by")
    body = (request, epoch, tuple(tokens.tolist()), stages, bool(flags & _FINISHED))
    if kind == _DRAFT:
        return DraftBlock(body[0], body[1], base, body[2], body[3], number, body[4])
    return Verdict(body[0], body[1], number, base, body[2], body[3], body[4])


def producer(stages: int) -> int:
    """The stage that first proposed a token, from its mask."""
    return (stages & -stages).bit_length() - 1


def acceptors(stages: int) -> tuple[int, ...]:
    """The stages that accepted a token they had not produced, lightest first."""
    return tuple(stage for stage in range(producer(stages) + 1, MAX_STAGES) if stages >> stage & 1)
