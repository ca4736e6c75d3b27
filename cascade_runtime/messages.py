"""What neighbouring stages say to each other, and its bytes.

Two messages travel over an edge, in opposite directions. Drafts are hints, verdicts are state:

    DraftBlock   downstream: "beyond position `base` I would say `tokens`". Wrong, stale, lost, repeated or forged, it
                 can waste a pass and never change an answer. With `parents` the tokens are a tree that hangs on `base`.
    Verdict      upstream: "from `base` on I stand by `tokens`". Cumulative: base reaches back to what was last
                 acknowledged, so a lost verdict is healed by the next. Ordered by `seq`, never by length.

Example: light has drafted "red car" on top of "a" and knows of verdict 3; mid keeps "red", corrects "car" to "truck":

    DraftBlock(request=7, epoch=0, base=1, tokens=(17, 4), stages=(1, 1), ack=3)
    Verdict(request=7, epoch=0, seq=4, base=1, tokens=(17, 9), stages=(3, 2))

A drafter of trees that has "a" and sees "red car", "red bus" and "blue" says all three paths at once:

    DraftBlock(request=7, epoch=0, base=1, tokens=(17, 4, 5, 21), stages=(1,) * 4, ack=3, parents=(-1, 0, 0, -1))

A verdict also carries a `Grant`: how far the drafter may run ahead, how much makes a block worth sending, and whether
to pass drafts on unverified. It steers speed only; a drafter that ignored it would waste passes and change nothing.

`stages` holds, per token, the set of stages that stand by it as a bit mask: bit 0 is the lightest stage. The lowest set
bit produced the token, the others accepted it (light proposed 17 and mid accepted it: 0b011; mid produced 9: 0b010).

Bytes: one fixed little-endian header, then int32 tokens, then one byte per token; of a tree, which its flags tell, one
more byte per token, its parent + 1. A frame is one message after the other, all that a stage has to say at once: a pass
over many rows costs its neighbours one wake-up. Nothing is unpickled; every length is checked before it is used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cascade_runtime.errors import ChannelError

MAX_BLOCK_TOKENS = 8192
MAX_STAGES = 8
MAX_TREE_NODES, MAX_TREE_DEPTH = 63, 32  # what a [tree] may ask for; a node knows its path by a mask of 64 bits

# kind, flags, window of the grant, epoch, request, seq or ack, base, count, pace or block of the grant, work
_HEADER = struct.Struct("<BBHIQIIIII")
_DRAFT, _VERDICT = 1, 2
_FINISHED, _RELAY, _TREE = 1, 2, 4
MAX_WINDOW = 2**16 - 1

MAX_MESSAGE_BYTES = _HEADER.size + 5 * MAX_BLOCK_TOKENS


@dataclass(frozen=True)
class Grant:
    """What a verifier lets its drafter do for one request.

    window: tokens it may run ahead of the verdict, 0 for none: do not draft. block: news of fewer tokens are not worth
    a message, unless no more can follow. relay: pass on what you are sent, unverified.
    """

    window: int = MAX_WINDOW
    block: int = 1
    relay: bool = False


UNLIMITED = Grant()


@dataclass(frozen=True)
class DraftBlock:
    """Tokens a stage would say beyond absolute answer position `base`; `ack` is the last verdict it has taken in.

    `finished`: the drafter ends the answer with the last token, or may go no further: do not wait for more. pace_us:
    what one token of a row has lately cost the drafter, in microseconds of wall time; 0 where it does not know.
    work_us: what it has cost in time of cores that neighbours use as well, all levels below included; 0 where they
    share none. parents: per token the earlier one that it follows, -1: what stands before `base`; None: a chain.
    """

    request: int
    epoch: int
    base: int
    tokens: tuple[int, ...]
    stages: tuple[int, ...]
    ack: int
    finished: bool = False
    pace_us: int = 0
    work_us: int = 0
    parents: tuple[int, ...] | None = None


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
    grant: Grant = UNLIMITED


def encode(message: DraftBlock | Verdict) -> bytes:
    """A message as bytes; several in a row are a frame."""
    flags, count, work, tail = _FINISHED if message.finished else 0, len(message.tokens), 0, bytes(message.stages)
    if isinstance(message, DraftBlock):
        kind, number, window, last, work = _DRAFT, message.ack, 0, message.pace_us, message.work_us
        if message.parents is not None:
            flags |= _TREE
            tail += bytes(parent + 1 for parent in message.parents)
    else:
        grant = message.grant
        kind, number, window, last = _VERDICT, message.seq, grant.window, grant.block
        flags |= _RELAY if grant.relay else 0
    head = _HEADER.pack(kind, flags, window, message.epoch, message.request, number, message.base, count, last, work)
    return head + struct.pack(f"<{count}i", *message.tokens) + tail


def decode(frame: bytes) -> list[DraftBlock | Verdict]:
    """The messages in a frame. Raises `ChannelError` on anything that `encode` would not have written."""
    messages: list[DraftBlock | Verdict] = []
    at = 0
    while at < len(frame) or not frame:
        if len(frame) - at < _HEADER.size:
            raise ChannelError(f"frame that ends within a header; allowed: {_HEADER.size} bytes and more per message")
        header = _HEADER.unpack_from(frame, at)
        most, each = (MAX_TREE_NODES, 6) if header[1] & _TREE else (MAX_BLOCK_TOKENS, 5)
        tokens, at = at + _HEADER.size, at + _HEADER.size + each * header[7]
        if header[7] > most or at > len(frame):
            raise ChannelError(
                f"message of {header[7]} tokens in a frame of {len(frame)} bytes; "
                f"allowed: {most} and {each} bytes for each"
            )
        messages.append(_message(header, frame[tokens:at]))
    return messages


def _message(header: tuple[int, ...], body: bytes) -> DraftBlock | Verdict:
    kind, flags, window, epoch, request, number, base, count, last, work = header
    if kind not in (_DRAFT, _VERDICT) or flags & ~(_FINISHED | _RELAY | _TREE):
        raise ChannelError(f"message of kind {kind}, flags {flags}; allowed: kinds 1 and 2, flags 1, 2 and 4")
    if request >= 1 << 63:
        raise ChannelError(f"message about request {request}; allowed: below 2^63")
    if kind == _DRAFT and (window or flags & _RELAY):
        raise ChannelError("a draft block with a grant; allowed: in a verdict only")
    if kind == _VERDICT and (not last or work or flags & _TREE):
        raise ChannelError("a verdict that branches, has a draft's cost, or grants blocks of 0 tokens; allowed: none")
    said, stages = struct.unpack_from(f"<{count}i", body), tuple(body[4 * count : 5 * count])
    if count and (min(said) < 0 or 0 in stages):
        raise ChannelError("message with a negative token id or a token nobody stands by")
    finished = bool(flags & _FINISHED)
    if kind == _DRAFT:
        parents = _parents(body[5 * count :]) if flags & _TREE else None
        return DraftBlock(request, epoch, base, said, stages, number, finished, last, work, parents)
    return Verdict(request, epoch, number, base, said, stages, finished, Grant(window, last, bool(flags & _RELAY)))


def _parents(body: bytes) -> tuple[int, ...]:
    """What a tree's last bytes say. Raises `ChannelError` for what is no tree, or a deeper one than any recipe's."""
    parents, depths = tuple(byte - 1 for byte in body), list[int]()
    for node, parent in enumerate(parents):
        if parent >= node:
            raise ChannelError(f"token {node} of a tree follows token {parent}; allowed: an earlier one, or -1")
        depths.append(1 + (depths[parent] if parent >= 0 else 0))
    if max(depths, default=0) > MAX_TREE_DEPTH:
        raise ChannelError(f"a tree of {max(depths)} tokens one after the other; allowed: {MAX_TREE_DEPTH}")
    return parents


def producer(stages: int) -> int:
    """The stage that first proposed a token, from its mask."""
    return (stages & -stages).bit_length() - 1


def acceptors(stages: int) -> tuple[int, ...]:
    """The stages that accepted a token they had not produced, lightest first."""
    return tuple(stage for stage in range(producer(stages) + 1, MAX_STAGES) if stages >> stage & 1)
