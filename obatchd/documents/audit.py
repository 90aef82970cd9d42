"""The audit log: who did what to keys, GPUs, servers, models and others' work; lines of a file, and an answer."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

KEY_ADDED, KEY_REMOVED = "key_added", "key_removed"
SESSION_OPENED = "session_opened"  # of the web page
GPU_QUARANTINED, GPU_RELEASED, GPU_LENT = "gpu_quarantined", "gpu_released", "gpu_lent"
GPU_TAKEN_BACK, GPU_SHARED, GPU_UNSHARED = "gpu_taken_back", "gpu_shared", "gpu_unshared"
# Of jobs and files of somebody else.
JOB_CANCELLED, JOB_REMOVED, JOB_RETRIED = "job_cancelled", "job_removed", "job_retried"
JOB_PAUSED, JOB_RESUMED, FILE_REMOVED = "job_paused", "job_resumed", "file_removed"
HOST_PAUSED, HOST_RESUMED, HOST_DRAINED = "host_paused", "host_resumed", "host_drained"
HOST_UNDRAINED, HOST_RELOADED = "host_undrained", "host_reloaded"
SERVER_DRAINED, SERVER_RESUMED, SERVER_RESTARTED = "server_drained", "server_resumed", "server_restarted"
MODEL_PULLED, MODEL_REMOVED = "model_pulled", "model_removed"
# Of another machine, whose name is the target.
HOST_JOINED, HOST_FORGOTTEN, HOST_CODE_MADE = "host_joined", "host_forgotten", "host_code_made"
ENROLMENT_MADE, ENROLMENT_REVOKED = "enrolment_made", "enrolment_revoked"
BURNIN_STARTED, BURNIN_STOPPED = "burnin_started", "burnin_stopped"
RECORDS_LOST = "records_lost"  # the disk refused for so long that not all could be kept until it took them
KINDS = (
    KEY_ADDED, KEY_REMOVED, SESSION_OPENED, GPU_QUARANTINED, GPU_RELEASED, GPU_LENT, GPU_TAKEN_BACK, GPU_SHARED,
    GPU_UNSHARED,
    JOB_CANCELLED, JOB_REMOVED, JOB_RETRIED, JOB_PAUSED, JOB_RESUMED, FILE_REMOVED, HOST_PAUSED, HOST_RESUMED,
    HOST_DRAINED, HOST_UNDRAINED, HOST_RELOADED, SERVER_DRAINED, SERVER_RESUMED, SERVER_RESTARTED, MODEL_PULLED,
    MODEL_REMOVED, HOST_JOINED, HOST_FORGOTTEN, HOST_CODE_MADE,
    ENROLMENT_MADE, ENROLMENT_REVOKED, BURNIN_STARTED, BURNIN_STOPPED, RECORDS_LOST,
)  # fmt: skip
# Where somebody came from: the socket of obatchctl, HTTP over the network, the socket of HTTP, the page in a session of
# its own over either of these, and nowhere.
CONTROL, HTTP, HTTP_SOCKET, PAGE, ITSELF = "control", "http", "http-socket", "page", "obatchd"


class AuditEntry(msgspec.Struct, kw_only=True):
    """One of them. Nothing in it is a prompt, an answer, or the name of a drop or file."""

    at: str  # before it was done
    kind: str  # of KINDS
    uid: int  # who asked for it; of what obatchd did by itself, its own
    user: str = ""  # the name of that
    door: str  # CONTROL, HTTP, HTTP_SOCKET, PAGE, ITSELF
    address: str | UnsetType = UNSET  # of the other end of HTTP; of a proxy in front, the proxy's
    pid: int | UnsetType = UNSET  # of the other end of a socket, when it connected
    key: str | UnsetType = UNSET  # its id, or that of the session
    key_label: str | UnsetType = UNSET
    target: str = (
        ""  # the id of the key, session, job or file, the UUID of the GPU, the server, model; empty: the daemon
    )
    owner: int | UnsetType = UNSET  # uid whose that is
    detail: str | UnsetType = UNSET  # a reason that was given, how long
    failed: str | UnsetType = UNSET  # it came to nothing, by the error of this code; what was asked stands before


class AuditAsked(msgspec.Struct, frozen=True):
    """Which entries are asked for: the latest ``limit`` of those that fit."""

    limit: int
    since_s: float | None = None
    until_s: float | None = None
    kinds: tuple[str, ...] = ()  # of KINDS, or their first words: key, gpu, job …; none: all


class AuditDocument(msgspec.Struct):
    """``GET /v1/audit``: the oldest first."""

    entries: list[AuditEntry]
    unreadable: int  # lines that are no entries: a power cut leaves half of one
    problem: str  # why nothing can be written at present; empty: it can
