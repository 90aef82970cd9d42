"""OpenAI's own client, of any version since 1.0: questions that are answered at once, whole, in pieces, and as vectors.

Runs without this project. The environment says where; the last line that it prints is "good".
"""

import asyncio
import json
import os

import openai

MODEL, VECTORS = os.environ["MODEL"], os.environ["VECTORS"]
VERSION = tuple(int(part) for part in openai.__version__.split(".")[:2])
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
ASKED = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 20, "extra_body": {"seed": 1}}
URL = os.environ["OPENAI_BASE_URL"]  # the oldest ones do not look there
client = openai.OpenAI(base_url=URL)


def refused(kind, code, call, **given):
    try:
        call(**given)
    except kind as error:
        assert error.response.json()["error"]["code"] == code, error
        assert VERSION < (1, 1) or error.code == code, error  # 1.0 looks for it in the wrong place
        return
    raise AssertionError(f"{given} was not refused")


def text_of(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# Whole, and in pieces.
whole = client.chat.completions.create(**ASKED)
chunks = list(client.chat.completions.create(**ASKED, stream=True))
assert whole.choices[0].message.content == text_of(chunks) != "", (whole, chunks)
assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason in ("stop", "length")
assert chunks[0].choices[0].delta.role == "assistant" and {chunk.id for chunk in chunks} == {chunks[0].id}
assert whole.usage.completion_tokens > 0 and len(chunks) > 2
with_usage = {**ASKED, "extra_body": {"seed": 1, "stream_options": {"include_usage": True}}}
counted = list(client.chat.completions.create(**with_usage, stream=True))
assert text_of(counted) == text_of(chunks) and counted[-1].choices == []
assert VERSION < (1, 26) or counted[-1].usage == whole.usage
raw = client.chat.completions.with_raw_response.create(**ASKED)
assert raw.headers["x-request-id"].startswith("req_") and raw.parse().choices[0].message == whole.choices[0].message
# Left in the middle, the client goes on.
left = client.chat.completions.create(**{**ASKED, "max_tokens": 128}, stream=True)
next(iter(left))
left.response.close()
assert client.models.list().data


async def at_once():
    async with openai.AsyncOpenAI(base_url=URL) as them:
        several = [them.chat.completions.create(**{**ASKED, "max_tokens": 4}) for _ in range(8)]
        assert all(answer.choices for answer in await asyncio.gather(*several))
        stream = await them.chat.completions.create(**ASKED, stream=True)
        assert text_of([chunk async for chunk in stream]) == text_of(chunks)


asyncio.run(at_once())

# Objects as JSON, and vectors.
form = {"type": "object", "properties": {"blue": {"type": "boolean"}}, "required": ["blue"]}
response_format = {"type": "json_schema", "json_schema": {"name": "sky", "schema": form}}
said = client.chat.completions.create(**{**ASKED, "max_tokens": 40, "extra_body": {"response_format": response_format}})
assert isinstance(json.loads(said.choices[0].message.content)["blue"], bool), said
floats = client.embeddings.create(model=VECTORS, input=["a text", "another"], encoding_format="float")
assert [one.index for one in floats.data] == [0, 1] and len(floats.data[0].embedding) > 4
usual = client.embeddings.create(model=VECTORS, input="a text").data[0].embedding  # newer ones ask for base64
assert all(abs(one - other) < 1e-4 for one, other in zip(usual, floats.data[0].embedding, strict=True))

# Refusals.
create = client.chat.completions.create
refused(openai.NotFoundError, "model_not_found", create, model="nope", messages=QUESTION)
refused(openai.NotFoundError, "model_not_found", create, model="nope", messages=QUESTION, stream=True)
refused(openai.BadRequestError, "unsupported_parameter", create, **{**ASKED, "logit_bias": {"50256": -100}})
wrong = openai.OpenAI(base_url=URL, api_key="wrong")
refused(openai.AuthenticationError, "invalid_api_key", wrong.chat.completions.create, **ASKED)
print("good")
