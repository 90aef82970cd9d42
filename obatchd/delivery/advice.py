"""The advice to users beside each kind of failure in ``summary.json``, by its code.

Faults of attempts have theirs where they are classified, in ``ollama.faults``; the table here has the failures of
requests that never got to a server, or that were ended from outside.
"""

from __future__ import annotations

from obatchd.ollama import faults

# Codes without a line here or there are explained by their own message.
_ADVICE = faults.ADVICE | {
    "bad_file": "mend the file the message names, and drop it again",
    "bad_image": "give images as base64, or put the files into the dropped folder",
    "bad_json": "mend the line and drop it again",
    "bad_row": "mend the row and drop it again",
    "cancelled": "nothing: the job was cancelled",
    "duplicate_id": "give every request of a drop its own id",
    "expired": "drop it again with a later deadline, or with priority high",
    "input_changed": "move whole files into the inbox with mv, do not write into them there",
    "invalid_json_line": "mend the line and drop it again",
    "invalid_request": "mend the request as the message says, and drop it again",
    "fetch_failed": "look at the source the message names, then retry the job",
    "fetch_timeout": "raise timeout_s in [context], then retry the job",
    "file_forbidden": "drop a folder that holds the file, and name it without a path",
    "file_unreadable": "put the file into the folder, and drop it again",
    "parse_failed": "leave the source out, or use another form of it",
    "parse_memory": "raise parse_memory_bytes in [context], or leave the source out",
    "parse_timeout": "raise parse_timeout_s in [context], or leave the source out",
    "preparer_lost": "look at its sources; do not retry it unchanged",
    "redirects": "name the URL where the source is",
    "source_empty": "look at the source: no text was found in it",
    "source_too_large": "raise max_bytes in [context], or leave the source out",
    "source_unsupported": "use HTML, text, Markdown or PDF",
    "too_many_sources": "name fewer sources, or raise max_sources in [context]",
    "url_forbidden": "use a public address, or ask an administrator to open this one with allow in [context]",
    "url_invalid": "mend the URL and drop the request again",
    "invalid_utf8": "save the file as UTF-8, or say what it is with --encoding (encoding in job.toml)",
    "job_defect": "mend the job's settings as the message says, and submit it again; please report it",
    "line_too_long": "shorten the prompt, or raise max_line_bytes in [inbox]",
    "missing_field": "give every record the fields that the template names",
    "missing_required_parameter": "give the line what the message names",
    "missing_prompt": 'give the request a "prompt"',
    "format_crashes": "this JSON Schema crashes servers: simplify it, and drop it again; do not retry it unchanged",
    "settings_crash": "a setting that these requests share crashes servers: try other options or another model; do not "
    "retry them unchanged",
    "model_forbidden": "ask an administrator to pull the model or to allow its name in [models]",
    "model_mismatch": "drop the lines of each model as a file of their own",
    "no_model": "name a model in the request, in job.toml or in the configuration",
    "poison": "this request crashes or hangs servers: look at the prompt; do not retry it unchanged",
    "pull_failed": "do what the message says and have the model pulled (obatchctl models pull NAME, or ollama pull "
    "NAME on the host of a server that others keep), then retry the job",
    "too_many_requests": "split the drop, or raise max_requests in [inbox]",
    "unpacked_too_large": "split the drop, or raise max_unpacked_bytes in [inbox]",
    "unsupported_parameter": "leave out what the message names",
    "unreadable": "the file was cut off or damaged on its way: drop what is missing again",
    "url_mismatch": "use one of the endpoints that the message names",
    "wrong_type": "mend the request as the message says, and drop it again",
}
# Of failures; what was cancelled or has expired has outcomes of its own.
CODES = tuple(code for code in sorted(_ADVICE) if code not in ("cancelled", "expired"))


def advice(code: str) -> str:
    """The advice to the owner of a request that failed with ``code``."""
    return _ADVICE.get(code, faults.RETRY)
