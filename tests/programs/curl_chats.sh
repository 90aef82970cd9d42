#!/usr/bin/env bash
# curl alone: questions that are answered at once, as openai_chats.py has them for Python. PYTHON reads JSON.
set -euo pipefail
trap 'echo "line $LINENO: $BASH_COMMAND" >&2' ERR

call() { curl -sS --max-time 60 -H "Authorization: Bearer $OPENAI_API_KEY" -H 'Content-Type: application/json' "$@"; }
of() { "$PYTHON" -c 'import json, sys; found = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"; }
is() { [ "$1" = "$2" ] || { echo "$1 is not $2" >&2; return 1; }; }
asked() { # more fields
  printf '{"model": "%s", "temperature": 0, "seed": 1, "max_tokens": 20, "messages": [{"role": "user", "content": "Why is the sky blue?"}]%s}' \
    "$MODEL" "$1"
}

# Whole, and in pieces.
call "$OPENAI_BASE_URL/chat/completions" -d "$(asked '')" > whole.json
call -N -D head "$OPENAI_BASE_URL/chat/completions" -d "$(asked ', "stream": true')" > stream
grep -qi '^content-type: text/event-stream' head
is "$(tail -n 2 stream)" 'data: [DONE]'
is "$(grep -vc '^\(data: .*\|\)$' stream || true)" 0 # events, with an empty line after each, and nothing else
sed -n 's/^data: \({.*\)/\1/p' stream | "$PYTHON" -c '
import json, sys
chunks = [json.loads(line) for line in sys.stdin]
choice = json.load(open("whole.json"))["choices"][0]
text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
assert text == choice["message"]["content"] != "" and len(chunks) > 2, (text, choice)
assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]'
call -N "$OPENAI_BASE_URL/chat/completions" -d "$(asked ', "stream": true, "stream_options": {"include_usage": true}')" > stream
is "$(grep '^data: {' stream | tail -n 1 | cut -c7- | of 'found["choices"], found["usage"]')" "([], $(of 'found["usage"]' < whole.json))"
# Pieces come as they are made: the first one while the last is not there yet.
{ call -N "$OPENAI_BASE_URL/chat/completions" -d "$(asked ', "stream": true')" | head -n 1 | cut -c1-6; } > first || true
is "$(cat first)" 'data: '

# Vectors.
call "$OPENAI_BASE_URL/embeddings" -d "{\"model\": \"$VECTORS\", \"input\": [\"a text\", \"another\"]}" > vectors.json
is "$(of '[one["index"] for one in found["data"]], len(found["data"][0]["embedding"]) > 4' < vectors.json)" '([0, 1], True)'

# Refusals.
is "$(call "$OPENAI_BASE_URL/chat/completions" -d '{"model": "nope", "messages": []}' -o answer.json -w '%{http_code}') $(of 'found["error"]["code"]' < answer.json)" \
  '404 model_not_found'
is "$(curl -sS "$OPENAI_BASE_URL/chat/completions" -d "$(asked '')" -o answer.json -w '%{http_code}') $(of 'found["error"]["code"]' < answer.json)" \
  '401 invalid_api_key'
echo good
