"""OpenAI's own SDK, unchanged: a recording uploaded, asked about by its id, and asked about in a batch.

Skipped where it is not installed: pip install openai.
"""

from __future__ import annotations

import io
import json
import time
from typing import Any

import pytest
from client.http_servers import cascade_server

from cascade_runtime.config import load_recipe
from cascade_runtime.training.scenes import simulate_scene

openai = pytest.importorskip("openai", reason="pip install openai")
URL = "/v1/chat/completions"
PATIENCE_S = 120.0


def test_upload_ask_and_batch() -> None:
    with cascade_server(load_recipe("light_heavy")) as (address, _):
        client: Any = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        scene = ("scene.arrow", simulate_scene(seed=9).events.to_ipc_bytes())
        kept = client.files.create(file=scene, purpose="user_data")
        content = [{"type": "file", "file": {"file_id": kept.id}}, {"type": "text", "text": "What is moving?"}]
        body = {"model": "cascade", "messages": [{"role": "user", "content": content}], "max_tokens": 12}
        want = client.chat.completions.create(**body).choices[0].message.content
        assert want and client.files.retrieve(kept.id).bytes == len(scene[1])

        lines = [{"custom_id": f"q{n}", "method": "POST", "url": URL, "body": body} for n in range(5)]
        lines.append({"custom_id": "bad", "method": "POST", "url": URL, "body": body | {"model": "gpt-4"}})
        source = client.files.create(file=io.BytesIO("\n".join(map(json.dumps, lines)).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=source.id, endpoint=URL, completion_window="24h")
        end = time.monotonic() + PATIENCE_S
        while (batch := client.batches.retrieve(batch.id)).status != "completed":
            assert batch.status in ("validating", "in_progress", "finalizing") and time.monotonic() < end
            time.sleep(0.1)
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (6, 5, 1)
        answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
        assert {answer["custom_id"] for answer in answers} == {f"q{n}" for n in range(5)}
        told = {answer["response"]["body"]["choices"][0]["message"]["content"] for answer in answers}
        assert told == {want}
        assert '"model_not_found"' in client.files.content(batch.error_file_id).text
        assert [each.id for each in client.batches.list()] == [batch.id]
        assert client.files.delete(kept.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(kept.id)
