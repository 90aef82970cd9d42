"""``[inbox]``, ``[outbox]``, ``[limits]`` and ``[disk]``: how drops are taken, results written and jobs kept."""

from __future__ import annotations

from typing import Literal

from obatchd.settings.base import Count, Live, Natural, NextJob, NotNegative, Positive, Section, setting


class InboxSettings(Section):
    """How drops are taken."""

    settle_s: Live[Positive] = setting(
        2,
        "A file that was not renamed in is taken when it is closed and unchanged this long. Ten times as long where "
        "nobody saw its beginning: after a start, and where other hosts write to the inbox.",
    )
    folder_settle_s: Live[Positive] = setting(5, "The same for a folder, over all it contains.")
    rescan_s: Live[Positive] = setting(2, "Seconds between two looks at the whole inbox.")
    empty_s: Live[Positive] = setting(60, "An empty file is refused after this long.")
    claim_batch: Live[Count] = setting(1000, "Most drops claimed in one go.")
    max_line_bytes: Live[int] = setting(16 * 1024**2, "Longest request.", ge=1024)
    max_unpacked_bytes: Live[int] = setting(64 * 1024**3, "Most bytes a drop may unpack to.", ge=1024)
    unpack_timeout_s: Live[Positive] = setting(600, "Longest time to unpack one drop: an archive, a workbook, Parquet.")
    unpack_memory_bytes: Live[int] = setting(
        1024**3, "Most memory that the unpacking of one drop may take.", ge=64 * 1024**2
    )
    max_requests: Live[Count] = setting(10_000_000, "Most requests in one drop.")
    on_invalid: Live[Literal["fail_line", "fail_file"]] = setting(
        "fail_line", 'A bad line fails alone ("fail_line") or refuses the whole drop before it runs.'
    )
    dedupe: Live[Literal["allow", "reject"]] = setting(
        "allow", 'A drop with the prompts and settings of an earlier one of its owner: run and report it, or "reject".'
    )


class OutboxSettings(Section):
    """How results are written."""

    response_files: NextJob[Literal["auto", "always", "never"]] = setting(
        "auto", 'One file per response. "auto": for jobs of at most response_files_limit requests.'
    )
    response_text: NextJob[Literal["txt", "md"]] = setting(
        "txt", "Ending of the file with a response's text. The text is the model's Markdown either way."
    )
    response_files_limit: NextJob[Natural] = setting(100_000, 'Most requests of a job for "auto".')


class LimitSettings(Section):
    """What one owner may have open. Further drops of that owner wait in the inbox; 0: no limit."""

    open_jobs: Live[Natural] = setting(0, "Jobs that are not done.")
    open_bytes: Live[Natural] = setting(0, "Bytes of their drops.")
    open_requests: Live[Natural] = setting(0, "Requests of theirs without a result when another drop is taken.")


class DiskSettings(Section):
    """When dispatch pauses for lack of space."""

    min_free_bytes: Live[Natural] = setting(256 * 1024**2, "Below this, dispatch pauses; submissions stop before.")
    min_free_inodes: Live[Natural] = setting(10_000, "Below this, dispatch pauses.")
    keep_done_s: Live[NotNegative] = setting(7 * 86400, "How long a finished job's input and store are kept.")
    keep_done_bytes: Live[Natural] = setting(
        10 * 1024**3, "Most bytes of them; the oldest finished jobs are released first."
    )
    retention_days: Live[NotNegative] = setting(
        0,
        "Days after its end when everything of a job is erased, results, prompts and its row in the "
        "index; 0: never. obatchctl rm does it at once.",
    )
    prune_outbox_s: Live[NotNegative] = setting(
        0, "Delete results in the outbox and drops in failed/ after this long; 0 never does."
    )
