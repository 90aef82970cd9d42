"""litellm: the first examples of its README, by OpenAI's API and by Ollama's own, and a batch."""

import json
import os
import time

import litellm

model, door = os.environ["MODEL"], {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
native = {"api_base": os.environ["OLLAMA_HOST"], "api_key": os.environ["OPENAI_API_KEY"]}
messages = [{"role": "user", "content": "Hello, how are you?"}]
for name, where in ((f"openai/{model}", door), (f"ollama/{model}", native), (f"ollama_chat/{model}", native)):
    answer = litellm.completion(model=name, messages=messages, **where)
    assert answer.choices[0].message.content.strip() and answer.usage.completion_tokens > 0, (name, answer)
    pieces = litellm.completion(model=name, messages=messages, stream=True, **where)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces).strip(), name
for name, where in ((f"openai/{model}", door), (f"ollama/{model}", native)):
    assert len(litellm.embedding(model=name, input=["a text"], **where).data[0]["embedding"]) > 8, name

with open("lines.jsonl", "w") as file:
    for number in range(3):
        body = {"model": model, "messages": messages}
        line = {"custom_id": f"c{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        file.write(json.dumps(line) + "\n")
with open("lines.jsonl", "rb") as file:
    uploaded = litellm.create_file(file=file, purpose="batch", custom_llm_provider="openai", **door)
batch = litellm.create_batch(
    completion_window="24h", endpoint="/v1/chat/completions", input_file_id=uploaded.id,
    custom_llm_provider="openai", **door,
)  # fmt: skip
until_s = time.monotonic() + 60
while batch.status not in ("completed", "failed") and time.monotonic() < until_s:
    time.sleep(0.2)
    batch = litellm.retrieve_batch(batch_id=batch.id, custom_llm_provider="openai", **door)
assert batch.status == "completed" and batch.request_counts.completed == 3, batch
content = litellm.file_content(file_id=batch.output_file_id, custom_llm_provider="openai", **door)
assert sorted(json.loads(line)["custom_id"] for line in content.text.splitlines()) == ["c0", "c1", "c2"]
print("good")
