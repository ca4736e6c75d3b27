"""OpenAI's Python SDK, unchanged: argv is the server's address and a file of messages; one JSON object comes out."""

from __future__ import annotations

import asyncio
import json
import sys

import openai

url, path = sys.argv[1:]
with open(path) as file:
    messages = json.load(file)
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
answer = client.chat.completions.create(model="cascade", messages=messages, max_tokens=60)
pieces, usage, finish = [], None, None
stream = client.chat.completions.create(
    model="cascade", messages=messages, max_tokens=60, stream=True, stream_options={"include_usage": True}
)
for chunk in stream:
    usage = chunk.usage or usage
    for choice in chunk.choices:
        pieces.append(choice.delta.content or "")
        finish = choice.finish_reason or finish
errors = {}
for name, wrong in {
    "model": {"model": "gpt-4", "messages": messages},
    "messages": {"model": "cascade", "messages": [{"role": "user", "content": "no recording"}]},
    "temperature": {"model": "cascade", "messages": messages, "temperature": -1},
}.items():
    try:
        client.chat.completions.create(**wrong)
    except openai.APIStatusError as error:
        errors[name] = [type(error).__name__, error.status_code, error.code, error.param]


async def together() -> list[str]:
    """Four at a time, with the asynchronous client."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as asynchronous:
        asked = (
            asynchronous.chat.completions.create(model="cascade", messages=messages, max_tokens=60) for _ in range(4)
        )
        return [each.choices[0].message.content for each in await asyncio.gather(*asked)]


print(
    json.dumps(
        {
            "client": f"openai {openai.__version__}",
            "text": answer.choices[0].message.content,
            "streamed": "".join(pieces),
            "finish": [answer.choices[0].finish_reason, finish],
            "usage": [answer.usage.completion_tokens, usage.completion_tokens],
            "accepted": answer.usage.completion_tokens_details.accepted_prediction_tokens,
            "models": [model.id for model in client.models.list()],
            "model": client.models.retrieve("cascade").id,
            "errors": errors,
            "together": asyncio.run(together()),
            "target_passes": answer.model_extra["cascade"]["target_passes"],
        }
    )
)
