"""The tables of ``state.db``, and how a file of an earlier version comes to have them."""

from __future__ import annotations

from obatchd.jobs.store.job_row import kept
from obatchd.jobs.store.programs import BATCH_INDEX, PROGRAM_TABLES
from obatchd.jobs.store.schema import Schema
from obatchd.jobs.store.usage import USAGE_ENERGY, USAGE_TABLE, USAGE_TABLE_4
from obatchd.settings.job import FrozenSettings

# How people find jobs, and the retries of one.
_FINDING = """
CREATE INDEX IF NOT EXISTS jobs_by_label ON jobs (job_label) WHERE job_label IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_by_name ON jobs (name);
CREATE INDEX IF NOT EXISTS jobs_by_retry ON jobs (owner, job) WHERE retry_of IS NOT NULL;
"""
_TABLES = f"""{USAGE_TABLE}
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS intents (job TEXT PRIMARY KEY, intent BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS jobs (
    key INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL UNIQUE, name BLOB NOT NULL, owner INTEGER NOT NULL,
    kind TEXT NOT NULL, size INTEGER NOT NULL, state TEXT NOT NULL, segment TEXT NOT NULL, accepted_s REAL NOT NULL,
    finished_s REAL, paused INTEGER NOT NULL DEFAULT 0, cancelled INTEGER NOT NULL DEFAULT 0,
    settings BLOB NOT NULL DEFAULT '{{}}', notes BLOB NOT NULL DEFAULT '[]', digest TEXT, retry_of TEXT,
    summary BLOB, released INTEGER NOT NULL DEFAULT 0, kept_bytes INTEGER NOT NULL DEFAULT 0, defaults BLOB NOT NULL,
    accepted_moment TEXT, job_label TEXT, indexed_s REAL, answered_s REAL, cancelled_s REAL, refused_lines INTEGER
);
CREATE TABLE IF NOT EXISTS job_defaults (sha256 BLOB PRIMARY KEY, settings BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, key);
CREATE INDEX IF NOT EXISTS jobs_by_segment ON jobs (segment) WHERE released = 0;
CREATE INDEX IF NOT EXISTS jobs_by_digest ON jobs (digest) WHERE digest IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_by_owner ON jobs (owner, key);
{_FINDING}
{PROGRAM_TABLES}
{BATCH_INDEX}"""
# Version 4, a line for each change.
_VERSION_4 = ("ALTER TABLE jobs ADD COLUMN job_label TEXT;", _FINDING, USAGE_TABLE_4)
_VERSION_5 = (USAGE_ENERGY,)
# Version 6: what programs keep over HTTP, and the moments of a job that they are told.
_VERSION_6 = (
    *(f"ALTER TABLE jobs ADD COLUMN {name} REAL;" for name in ("indexed_s", "answered_s", "cancelled_s")),
    "ALTER TABLE jobs ADD COLUMN refused_lines INTEGER;",
    PROGRAM_TABLES,
    BATCH_INDEX,
)
# A literal of SQL.
_UPGRADED = (
    "An earlier version of obatchd accepted this job. Where it names no settings of its own, those that the daemon had"
    " at the upgrade are used."
)


def state_schema(defaults: FrozenSettings) -> Schema:
    """``defaults`` are kept with the jobs of a file that does not know with which settings they were accepted."""
    sha256, settings = kept(defaults)
    freeze = f"""
    CREATE TABLE job_defaults (sha256 BLOB PRIMARY KEY, settings BLOB NOT NULL) WITHOUT ROWID;
    INSERT INTO job_defaults VALUES (x'{sha256.hex()}', x'{settings.hex()}');
    ALTER TABLE jobs ADD COLUMN defaults BLOB;
    UPDATE jobs SET defaults = x'{sha256.hex()}';
    UPDATE jobs SET notes = CAST(json_insert(CAST(notes AS TEXT), '$[#]', '{_UPGRADED}') AS BLOB)
        WHERE state = 'running';
    """
    steps = {
        1: "CREATE INDEX IF NOT EXISTS jobs_by_owner ON jobs (owner, key);",
        2: freeze,
        3: "ALTER TABLE jobs ADD COLUMN accepted_moment TEXT;",
        4: "\n".join(_VERSION_4),
        5: "\n".join(_VERSION_5),
        6: "\n".join(_VERSION_6),
    }
    return Schema(6, _TABLES, steps)
