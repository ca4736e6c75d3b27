"""Bodies of chat completions for tests."""

from __future__ import annotations

import base64
from typing import Any

from toy_family import toy_events

from cascade_runtime.events import Events

ARROW = "application/vnd.apache.arrow.stream"
FORM = "multipart/form-data; boundary=x"


def data_url(data: bytes, media_type: str = ARROW) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def chat_body(events: Events | str | None = None, text: str = "What moves?", **fields: Any) -> dict[str, Any]:
    """A body about a recording (or a URL); `fields` are added, `source` beside the URL."""
    url = events if isinstance(events, str) else data_url((events or toy_events()).to_ipc_bytes())
    source = {"url": url, **fields.pop("source", {})}
    kind = fields.pop("kind", "events_url")
    content = [{"type": kind, kind: source}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}], **fields}


def body_about(file_id: str, **fields: Any) -> dict[str, Any]:
    """A body about a recording that was uploaded."""
    content = [{"type": "file", "file": {"file_id": file_id}}, {"type": "text", "text": "What moves?"}]
    return {"messages": [{"role": "user", "content": content}], **fields}


def upload_form(content: bytes, name: str, purpose: str) -> bytes:
    """The body of an upload, of content type FORM."""
    head = f'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n--x\r\n'
    head += f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--x--\r\n"
