#!/usr/bin/env bash
# curl alone: files and batches, as openai_batches.py has them for Python. PYTHON reads JSON.
set -euo pipefail
trap 'echo "line $LINENO: $BASH_COMMAND" >&2' ERR
CHAT=/v1/chat/completions

call() { curl -sS --max-time 60 -H "Authorization: Bearer $OPENAI_API_KEY" "$@"; }
of() { "$PYTHON" -c 'import json, sys; found = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"; }
is() { [ "$1" = "$2" ] || { echo "$1 is not $2" >&2; return 1; }; }
content() {
  for ((number = 0; number < $1; number++)); do
    printf '{"custom_id":"c-%d","method":"POST","url":"%s","body":{"model":"%s","max_tokens":4,"messages":[{"role":"user","content":"What is %d?"}]}}\n' \
      "$number" "$CHAT" "$MODEL" "$number"
  done
}
upload() { call "$OPENAI_BASE_URL/files" -F "file=@$1" -F purpose=batch; } # the file comes before its purpose
begin() {
  call "$OPENAI_BASE_URL/batches" -H 'Content-Type: application/json' \
    -d "{\"input_file_id\": \"$1\", \"endpoint\": \"$CHAT\", \"completion_window\": \"24h\"}"
}
status_of() { call "$OPENAI_BASE_URL/batches/$1" | of 'found["status"]'; }
until_over() {
  for ((tries = 0; tries < 2400; tries++)); do
    case $(status_of "$1") in completed | failed | expired | cancelled) return ;; esac
    sleep 0.1
  done
  return 1
}
cancel() { call -X POST "$OPENAI_BASE_URL/batches/$1/cancel" -o "${2:-answer.json}" -w '%{http_code}'; }

# A batch from its file to its answers.
content "$LINES" > lines.jsonl
file=$(upload lines.jsonl | of 'found["id"]')
is "$(call "$OPENAI_BASE_URL/files/$file" | of 'found["status"]')" processed
call "$OPENAI_BASE_URL/files/$file/content" | cmp - lines.jsonl
batch=$(begin "$file" | of 'found["id"]')
until_over "$batch"
call "$OPENAI_BASE_URL/batches/$batch" > done.json
is "$(of 'found["status"], found["request_counts"]["completed"], found["error_file_id"]' < done.json)" "('completed', $LINES, None)"
output=$(of 'found["output_file_id"]' < done.json)
call -N "$OPENAI_BASE_URL/files/$output/content" | "$PYTHON" -c 'import json, sys; [print(json.loads(line)["custom_id"]) for line in sys.stdin]' > ids
seq -f 'c-%.0f' 0 $((LINES - 1)) | cmp - ids
# A download that was cut off goes on where it was.
call "$OPENAI_BASE_URL/files/$output/content" -o whole.jsonl
head -c 1000 whole.jsonl > part.jsonl
call -C - "$OPENAI_BASE_URL/files/$output/content" -o part.jsonl
cmp whole.jsonl part.jsonl

# A list in three pages.
content 1 > one.jsonl
one=$(upload one.jsonl | of 'found["id"]')
made=
for _ in 1 2 3 4 5 6; do made="$(begin "$one" | of 'found["id"]') $made"; done
made="$made$batch" after= found=
for page in 1 2 3; do
  call "$OPENAI_BASE_URL/batches?limit=3$after" > page.json
  found="$found $(of '" ".join(one["id"] for one in found["data"])' < page.json)"
  is "$(of 'found["has_more"]' < page.json)" "$([ "$page" = 3 ] && echo False || echo True)"
  after="&after=$(of 'found["last_id"]' < page.json)"
done
is "${found# }" "$made"

# Cancelling in every state that a client meets.
content 20000 > large.jsonl
large=$(begin "$(upload large.jsonl | of 'found["id"]')" | of 'found["id"]')
is "$(cancel "$large") $(of 'found["status"]' < answer.json)" "200 cancelling" # it was validating
until_over "$large"
is "$(cancel "$large") $(of 'found["status"]' < answer.json)" "200 cancelled"
is "$(cancel "$batch") $(of 'found["error"]["code"]' < answer.json)" "409 invalid_batch_state"
printf '[]\n' > bad.jsonl
failed=$(begin "$(upload bad.jsonl | of 'found["id"]')" | of 'found["id"]')
until_over "$failed"
is "$(status_of "$failed") $(cancel "$failed")" "failed 409"

# The end of files.
is "$(call -X DELETE "$OPENAI_BASE_URL/files/$file" | of 'found["deleted"]')" True
is "$(call "$OPENAI_BASE_URL/files/$file" -o answer.json -w '%{http_code}') $(of 'found["error"]["code"]' < answer.json)" "404 not_found"
is "$(curl -sS "$OPENAI_BASE_URL/files" -o answer.json -w '%{http_code}') $(of 'found["error"]["code"]' < answer.json)" "401 invalid_api_key"
echo good
