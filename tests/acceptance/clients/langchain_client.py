"""langchain-openai, unchanged: argv is the server's address and a file of messages; one JSON object comes out."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

url, path = sys.argv[1:]
with open(path) as file:
    asked = [HumanMessage(content=json.load(file)[0]["content"])]
known = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0, "max_tokens": 60, "stream_usage": True}
model = ChatOpenAI(model="cascade", **known)
answer = model.invoke(asked)
whole = None
for chunk in model.stream(asked):
    whole = chunk if whole is None else whole + chunk
errors = {}
for name, wrong in {"model": (ChatOpenAI(model="gpt-4", **known), asked), "messages": (model, "no recording")}.items():
    try:
        wrong[0].invoke(wrong[1])
    except Exception as error:  # noqa: BLE001  which kind is what is asked
        errors[name] = [type(error).__name__, getattr(error, "status_code", None)]
print(
    json.dumps(
        {
            "client": f"langchain-openai {version('langchain-openai')}",
            "text": answer.content,
            "streamed": whole.content,
            "finish": [answer.response_metadata["finish_reason"], whole.response_metadata["finish_reason"]],
            "usage": [answer.usage_metadata["output_tokens"], whole.usage_metadata["output_tokens"]],
            "errors": errors,
        }
    )
)
