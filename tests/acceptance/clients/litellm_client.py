"""litellm, unchanged: argv is the server's address and a file of messages; one JSON object comes out."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import litellm

url, path = sys.argv[1:]
with open(path) as file:
    messages = json.load(file)
known = {"model": "openai/cascade", "api_base": f"{url}/v1", "api_key": "none", "max_tokens": 60, "num_retries": 0}
answer = litellm.completion(messages=messages, **known)
pieces, usage, finish = [], None, None
for chunk in litellm.completion(messages=messages, stream=True, stream_options={"include_usage": True}, **known):
    usage = getattr(chunk, "usage", None) or usage
    for choice in chunk.choices:
        pieces.append(choice.delta.content or "")
        finish = choice.finish_reason or finish
errors = {}
for name, wrong in {
    "model": {"messages": messages, **known, "model": "openai/gpt-4"},
    "messages": {"messages": [{"role": "user", "content": "no recording"}], **known},
}.items():
    try:
        litellm.completion(**wrong)
    except Exception as error:  # noqa: BLE001  which kind is what is asked
        errors[name] = [type(error).__name__, getattr(error, "status_code", None)]
print(
    json.dumps(
        {
            "client": f"litellm {version('litellm')}",
            "text": answer.choices[0].message.content,
            "streamed": "".join(pieces),
            "finish": [answer.choices[0].finish_reason, finish],
            "usage": [answer.usage.completion_tokens, usage.completion_tokens],
            "errors": errors,
        }
    )
)
