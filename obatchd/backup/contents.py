"""What a backup of a spool holds, and what of it is secret.

A backup is a tar file. Its first member, ``backup.json``, is a :class:`Manifest`, its last, ``end.json``, an
:class:`End`; the others have the paths that they have in the spool.
"""

from __future__ import annotations

import msgspec

MANIFEST, END = "backup.json", "end.json"
FOLDERS = ("inbox", "work", "outbox", "failed")
# Below work/. What is not named here is made again, or belongs to one host: logs, homes of servers, fetched texts, the
# identity of the spool.
INDEX = "state.db"
DATABASES = ("history.db",)  # beside the index and the segments
SEGMENTS = "segments"
JOBS = "jobs"
PLAIN = ("gpus.json", "burnin", "files", "audit")
# Left out unless they are asked for: tables of the index (the hashes of keys), and what lies beside it (the certificate
# of a head with its key, and the hashes of what its hosts come in by).
SECRET = ("keys",)
SECRET_FILES = ("cluster",)
# Facts of the index that are not true of the restored spool: ports in use, and the boot of the other one.
FORGOTTEN_FACTS = "key = 'boot_id' OR key LIKE 'port/%'"


class Manifest(msgspec.Struct):
    """What was backed up."""

    schema: int
    obatchd: str  # the version that made it
    made_at: str
    spool: str
    uid: int  # of the daemon
    gid: int
    jobs: int
    open_jobs: int  # not over
    secrets: bool
    results: bool  # whether outbox and failed are in it
    service: bool  # each user has a directory there


class End(msgspec.Struct):
    """The proof that the backup is whole."""

    unfinished: list[str]  # members that turned out, while they were copied, not to be what they were taken for
