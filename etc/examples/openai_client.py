"""A batch on your own GPUs with OpenAI's own client: OPENAI_BASE_URL=http://127.0.0.1:8434/v1, OPENAI_API_KEY=obk_…"""

import sys
import time

from openai import OpenAI

with OpenAI() as client, open(sys.argv[1], "rb") as lines:
    file = client.files.create(file=lines, purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(1)
        batch = client.batches.retrieve(batch.id)
    for part in filter(None, (batch.output_file_id, batch.error_file_id)):  # lines with and without an answer
        print(client.files.content(part).text, end="")
