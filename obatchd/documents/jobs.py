"""Jobs: as the API and ``status.json`` show them, and their ``summary.json``."""

from __future__ import annotations

from typing import Any

import msgspec

from obatchd.documents import Document


class Failure(msgspec.Struct):
    """The failures of one code."""

    requests: int
    example: str  # the message of the first
    advice: str  # what to do


class SettingsUsed(msgspec.Struct):
    """The settings that the requests of a job shared, for a methods section."""

    model: str | None
    context_length: list[int]  # every one that was used, in tokens
    options: dict[str, Any]  # of Ollama
    max_response_tokens: int | None
    context_sha256: str  # equal where jobs may share answers
    format: str | dict[str, Any]  # "" (text), "json" or a JSON Schema
    in_source: list[str]
    think: bool | str  # auto: the model's own way
    system_message_sha256: str | None
    system_message: str | None = None
    template: str | None = None  # these five: how records of the drop became prompts
    text_column: str | None = None
    id_column: str | None = None
    encoding: str | None = None
    lines: bool | None = None
    sample: int | None = None  # so many requests of the drop, chosen at random
    repeat: int | msgspec.UnsetType = msgspec.UNSET  # answers to each prompt, which are requests of their own


class JobTotals(msgspec.Struct):
    """The sums of a job that is over."""

    wall_s: float  # from acceptance to the last answer
    requests_per_s: float | None  # those that succeeded or failed, over that time
    tokens_per_s: float | None  # of answers, over that time
    prompt_tokens: int
    response_tokens: int
    gpu_s: float
    truncated: int  # as in the summary, these three
    ungrounded: int
    copied: int
    energy_j: float | None = None  # as in the summary, these four
    energy_percent: float = 0.0
    energy_note: str = ""
    tokens_per_j: float | None = None


class CostSoFar(msgspec.Struct):
    """What a job in work has cost: what was durable when the daemon ended last is in it."""

    prompt_tokens: int
    response_tokens: int
    gpu_s: float
    tokens_per_j: float | None  # of answers, for the tokens whose energy is known; null where it is of none


class JobDetails(msgspec.Struct):
    """What a list of many jobs has no room for."""

    settings: SettingsUsed  # the length of the context is the one that the job asks for
    failures: dict[str, Failure]  # by code, as far as they are known


class JobDocument(Document):
    """A job, in work or over; also ``status.json``. A default is the value of a job that is over."""

    job: str  # its id
    name: str  # of the drop
    owner: int  # uid
    state: str  # a JobState; "cancelling" while a cancelled one is brought to its end
    model: str | None  # of requests that name none
    priority: str  # low, normal, high
    accepted_at: str | None
    finished_at: str | None
    notes: list[str]  # for people; why it was refused, too
    retry_of: str | None  # the job whose failures it tries again
    sample_of: int | None  # requests of the drop that it is a sample of
    paused: bool
    requests: int | None  # null until the drop is wholly read
    indexed: int  # read so far
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    in_flight: int = 0
    requests_per_s: float | None = None  # over the last 30 s
    tokens_per_s: float | None = None  # of answers, over the last 30 s
    eta_s: float | None = None
    position: int | None = None  # in the queue, from 1; null once it has begun
    expected_start_at: str | None = None
    expires_at: str | None = None  # its deadline
    outbox: str | None = None  # directory of the results; a refused job has none
    refused_to: str | None = None  # where a refused drop lies, with the reason
    # Jobs that try again what failed in it or in them, the oldest first. Of one job that is done; absent without any.
    retries: list[str] | msgspec.UnsetType = msgspec.UNSET
    label: str | msgspec.UnsetType = msgspec.UNSET  # only where its owner gave it one
    held_up: str | msgspec.UnsetType = msgspec.UNSET  # why its requests wait for servers; absent where they do not
    cost: CostSoFar | msgspec.UnsetType = msgspec.UNSET  # absent where nothing was answered yet, or the job is over
    energy_j: float | msgspec.UnsetType = msgspec.UNSET  # of GPUs, so far; absent where nothing is known yet
    totals: JobTotals | None = None  # of a job that is over, unless an earlier version finished it
    details: JobDetails | None = None  # null in lists


class OwnerUsage(msgspec.Struct):
    """The work for one owner in one month; nothing of it says of which job."""

    owner: int  # uid
    name: str  # of that user; the uid as text where there is none any more
    month: str  # in which the jobs ended, in UTC: 2026-11
    requests: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    prompt_tokens: int
    response_tokens: int
    gpu_s: float  # seconds of GPUs: of each answer, the share of its server's GPUs that its slot had
    energy_j: float  # of GPUs, as far as they tell it


class Usage(msgspec.Struct):
    """``GET /v1/usage``: the latest month first. A caller who is no administrator sees only their own."""

    usage: list[OwnerUsage]


class Jobs(msgspec.Struct):
    """``GET /v1/jobs``: newest first."""

    jobs: list[JobDocument]
    next: str | None = None  # the id to ask for as ``after``; null: there are no older ones


class Cause(msgspec.Struct):
    """The requests of a job that have no answer for one cause."""

    code: str
    requests: int
    line: int | None  # of the first in the drop, from 1; null: not kept any more
    example: str  # the message of that
    advice: str  # what to do


class JobFailures(msgspec.Struct):
    """``GET /v1/jobs/JOB/failures``: why requests have no answer, of a job in work too; the most frequent first."""

    job: str
    state: str  # as of the job
    requests: int | None
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    failures: list[Cause]


class ShownAnswer(msgspec.Struct):
    """One result, beside its prompt."""

    at: int  # its place, for ``after``
    line: int  # of the drop, from 1
    id: str
    outcome: str
    prompt: str | None  # as it was sent; null: not kept any more
    record: dict[str, Any]  # as in results.jsonl and errors.jsonl
    repeat: int | msgspec.UnsetType = msgspec.UNSET  # of several answers to the prompt, which
    raw: bool | msgspec.UnsetType = msgspec.UNSET  # the prompt is the line of the drop, which could not be read
    advice: str | msgspec.UnsetType = msgspec.UNSET  # what to do about a failure


class JobAnswers(msgspec.Struct):
    """``GET /v1/jobs/JOB/results``: a part of those there are by now, in the order of the drop."""

    job: str
    state: str  # as of the job
    results: list[ShownAnswer]
    next: int | None  # the place to go on after; null: there are no more
    settled: int | msgspec.UnsetType = msgspec.UNSET  # up to this place every request has its result; where it is asked


class Submitted(msgspec.Struct):
    """The last frame of ``submit.sock``: the job is durably accepted."""

    job: JobDocument


class ServerWork(msgspec.Struct):
    """The work of one server for a job."""

    requests: int
    response_tokens: int
    busy_s: float  # of all its slots together
    tokens_per_s: float | None  # over all slots, from the first start to the last end
    ollama_version: str | None


class ModelFacts(msgspec.Struct):
    """A model that answered."""

    digest: str | None = None
    quantization: str | None = None
    parameter_size: str | None = None
    digests: dict[str, str] | msgspec.UnsetType = msgspec.UNSET  # by id of the server, only where they differ
    context_length: int | None = None  # tokens it was trained for


class DropFacts(msgspec.Struct, frozen=True):
    """The drop as it was read."""

    sha256: str | None = None
    size_bytes: int = 0


class Summary(Document):
    """``summary.json``: counts, failures, time, speed, and the facts for a methods section."""

    job: str
    name: str
    owner: int  # uid
    state: str
    cancelled_by_user: bool
    requests: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    truncated: int  # answers that ended at their token limit
    copied: int  # answers of earlier jobs; they count for no server, time or token, and for the other counts
    ungrounded: int  # answers with a value that does not occur in their prompt
    failures: dict[str, Failure]  # by code
    accepted_at: str | None
    finished_at: str | None
    wall_s: float  # from acceptance to the last answer
    serial_s: float  # the sum of all durations
    speedup: float  # how many times shorter the wall time was
    prompt_tokens: int
    response_tokens: int
    tokens_per_s: float  # of responses, over the wall time
    servers: dict[str, ServerWork]  # by id
    models: dict[str, ModelFacts]  # by name
    drop: DropFacts
    settings: SettingsUsed
    notes: list[str]
    retry_of: str | None
    obatchd_version: str
    label: str | msgspec.UnsetType = msgspec.UNSET
    gpu_s: float = 0.0  # seconds of GPUs: of each answer, the share of its server's GPUs that its slot had
    # Of ``prompt_tokens``, those that servers had in a slot already, of requests that share a long beginning; by time.
    prompt_tokens_reused_estimate: int = 0
    energy_j: float | None = None  # of GPUs, for the tokens whose energy is known; null where it is of none
    energy_percent: float = 0.0  # the share of those tokens, an answer's counting ten times a prompt's
    energy_note: str = ""  # why it is not known, or not of all
    tokens_per_j: float | None = None  # of answers


class EarlierStatus(msgspec.Struct):
    """The fields of a ``status.json`` that the daemon reads again; another version may have written it."""

    name: str = ""
    owner: int | None = None
    accepted_at: str | None = None
    finished_at: str | None = None
    notes: list[str] = []
    retry_of: str | None = None
    label: str | None = None
    drop: DropFacts = DropFacts()


class EarlierSummary(EarlierStatus):
    """The fields of a ``summary.json`` that the daemon reads again."""

    requests: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    wall_s: float = 0.0
    prompt_tokens: int = 0
    response_tokens: int = 0
    gpu_s: float = 0.0
    energy_j: float | None = None
    energy_percent: float = 0.0
    energy_note: str = ""
    tokens_per_j: float | None = None
    truncated: int = 0
    ungrounded: int = 0
    copied: int = 0
    failures: dict[str, Failure] = {}
    models: dict[str, ModelFacts] = {}
    settings: dict[str, Any] = {}


class Counts(msgspec.Struct, frozen=True):
    """The fields of a summary that the index keeps."""

    requests: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    wall_s: float
    prompt_tokens: int = 0
    response_tokens: int = 0
    gpu_s: float = 0.0
    energy_j: float | None = None
    energy_percent: float = 0.0
    energy_note: str = ""
    tokens_per_j: float | None = None
    truncated: int = 0
    ungrounded: int = 0
    copied: int = 0
    failures: dict[str, Failure] = {}
    model: str = ""  # the one that answered; empty: several or none
