"""OpenAI's own client, of any version since they can be listed (1.22): every call about files, batches and models.

Runs without this project. The environment says where and how many lines; the last line that it prints is "good".
"""

import json
import os
import time
from pathlib import Path

import openai

LINES, MODEL, CHAT = int(os.environ["LINES"]), os.environ["MODEL"], "/v1/chat/completions"
NEW = int(openai.__version__.split(".")[0]) >= 2  # lists of files have pages, files may say when they expire
client = openai.OpenAI()


def content(count, name="c"):
    for number in range(count):
        body = {"model": MODEL, "messages": [{"role": "user", "content": f"What is {number}?"}], "max_tokens": 4}
        line = {"custom_id": f"{name}-{number}", "method": "POST", "url": CHAT, "body": body}
        yield json.dumps(line).encode() + b"\n"


def begun(count, name):
    file = client.files.create(file=(f"{name}.jsonl", b"".join(content(count, name))), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"name": name})


def until(batch, wanted):
    end_s = time.monotonic() + 240
    while not wanted(batch):
        assert time.monotonic() < end_s, batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return batch


def is_over(batch):
    return batch.status in ("completed", "failed", "expired", "cancelled")


def lines_of(file):
    """As they come: nothing has the whole file in memory."""
    if not file:
        return []
    with client.files.with_streaming_response.content(file) as answer:
        return [json.loads(line) for line in answer.iter_lines()]


def refused(status, code, call, *given):
    try:
        call(*given)
    except openai.APIStatusError as error:
        assert (error.status_code, error.code) == (status, code), error
        assert status != 409 or error.response.headers["x-should-retry"] == "false"
        return
    raise AssertionError(f"{given} was not refused")


# A batch from its file to its answers.
Path("lines.jsonl").write_bytes(b"".join(content(LINES)))
with open("lines.jsonl", "rb") as opened:
    file = client.files.create(file=opened, purpose="batch")
assert (file.filename, file.bytes, file.status) == ("lines.jsonl", Path("lines.jsonl").stat().st_size, "processed")
assert client.files.wait_for_processing(file.id) == client.files.retrieve(file.id) == file
assert client.files.content(file.id).read() == Path("lines.jsonl").read_bytes()
batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"who": "me"})
done = until(batch, is_over)
counts = done.request_counts
assert (done.status, counts.total, counts.completed, counts.failed) == ("completed", LINES, LINES, 0), done
assert done.metadata == {"who": "me"} and done.error_file_id is None
assert [line["custom_id"] for line in lines_of(done.output_file_id)] == [f"c-{number}" for number in range(LINES)]

# Lists, in three pages.
made = [begun(1, f"p{number}") for number in range(7)]
listed = [one.id for one in client.batches.list(limit=3)]
assert listed[:8] == [one.id for one in reversed(made)] + [batch.id] and len(listed) == len(set(listed))
ids = [one.input_file_id for one in reversed(made)]
page = client.files.list(limit=3, purpose="batch") if NEW else client.files.list(purpose="batch")
assert len(page.data) == 3 if NEW else len(page.data) >= 8
assert [one.id for one in page if one.id in ids] == ids
for model in client.models.list():
    assert client.models.retrieve(model.id) == model
if NEW:
    short = client.files.create(file=b"{}\n", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
    assert short.expires_at == short.created_at + 3600

# Cancelling in every state that a client meets.
large = begun(20_000, "large")
assert client.batches.cancel(large.id).status == "cancelling"  # it was validating
half = until(begun(LINES, "half"), lambda one: one.status == "in_progress" and one.request_counts.completed >= 5)
assert client.batches.cancel(half.id).status in ("cancelling", "cancelled")
assert client.batches.cancel(half.id).status in ("cancelling", "cancelled")
for one, total in ((half, LINES), (large, 20_000)):
    over = until(one, is_over)
    good, bad = lines_of(over.output_file_id), lines_of(over.error_file_id)
    assert over.status == "cancelled" and len(good) + len(bad) == over.request_counts.total == total, over
    assert len(good) == over.request_counts.completed and over.request_counts.failed == 0
    assert {line["error"]["code"] for line in bad} == {"batch_cancelled"}
    assert client.batches.cancel(one.id) == over
failed = client.files.create(file=("bad.jsonl", b"[]\n"), purpose="batch")
failed = until(client.batches.create(input_file_id=failed.id, endpoint=CHAT, completion_window="24h"), is_over)
assert failed.status == "failed" and failed.errors.data[0].code == "invalid_json_line"
for one in (done, failed):
    refused(409, "invalid_batch_state", client.batches.cancel, one.id)

# The end of files.
assert client.files.delete(file.id).deleted is True
for call in (client.files.retrieve, client.files.content, client.files.delete):
    refused(404, "not_found", call, file.id)
refused(404, "not_found", client.batches.retrieve, "batch_20260101-000000-aaaa")
assert client.batches.retrieve(batch.id).output_file_id == done.output_file_id
print("good")
