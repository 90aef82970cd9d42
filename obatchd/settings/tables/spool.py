"""``[inbox]``, ``[outbox]``, ``[limits]`` and ``[disk]``: how drops are taken, results written and jobs kept."""

from __future__ import annotations

from typing import Literal

from obatchd.settings.base import Count, Live, Natural, NextJob, NotNegative, Positive, Section, setting


class InboxSettings(Section):
    """How drops are taken."""

    settle_s: Live[Positive] = setting(
        2,
        "A file that is copied or written into the inbox is taken when nobody has it open and it has "
        "not changed for so long. Ten times as long where obatchd did not see its beginning: after a "
        "start, and where other hosts write into the inbox.",
    )
    folder_settle_s: Live[Positive] = setting(5, "settle_s for a folder, with everything in it.")
    rescan_s: Live[Positive] = setting(2, "How often obatchd looks through the whole inbox.")
    empty_s: Live[Positive] = setting(60, "An empty file is refused when it has been in the inbox for so long.")
    claim_batch: Live[Count] = setting(1000, "How many drops obatchd takes from the inbox in one go, at most.")
    max_line_bytes: Live[int] = setting(16 * 1024**2, "How long a request may be.", ge=1024)
    max_unpacked_bytes: Live[int] = setting(64 * 1024**3, "How much one drop may unpack to.", ge=1024)
    unpack_timeout_s: Live[Positive] = setting(
        600, "How long obatchd may take to unpack one drop: an archive, a workbook, Parquet."
    )
    unpack_memory_bytes: Live[int] = setting(
        1024**3, "How much memory obatchd may take to unpack one drop.", ge=64 * 1024**2
    )
    max_requests: Live[Count] = setting(10_000_000, "How many requests one drop may have.")
    on_invalid: Live[Literal["fail_line", "fail_file"]] = setting(
        "fail_line", 'A bad line fails alone ("fail_line"), or the whole drop is refused before it runs ("fail_file").'
    )
    dedupe: Live[Literal["allow", "reject"]] = setting(
        "allow",
        'A drop with the prompts and settings of an earlier one of its owner is run, with a note ("allow"), or refused '
        '("reject").',
    )


class OutboxSettings(Section):
    """How results are written."""

    response_files: NextJob[Literal["auto", "always", "never"]] = setting(
        "auto",
        'Whether each answer is a file of its own, too: "always", "never", or "auto": in '
        "jobs of at most response_files_limit requests.",
    )
    response_text: NextJob[Literal["txt", "md"]] = setting(
        "txt", "How the name of the file with the text of an answer ends. The text is the model's Markdown either way."
    )
    response_files_limit: NextJob[Natural] = setting(
        100_000, 'The most requests of a job whose answers response_files = "auto" also writes as files of their own.'
    )


class LimitSettings(Section):
    """How much one owner may have open before further drops of that owner wait in the inbox."""

    open_jobs: Live[Natural] = setting(
        0, "How many unfinished jobs one owner may have; further drops wait in the inbox. 0: no limit."
    )
    open_bytes: Live[Natural] = setting(
        0, "How many bytes the drops of one owner's unfinished jobs may have in all. 0: no limit."
    )
    open_requests: Live[Natural] = setting(
        0, "How many requests without a result one owner may have when another drop is taken. 0: no limit."
    )
    files: Live[Natural] = setting(
        10_000, "How many uploaded files one owner may keep; further uploads are refused. 0: no limit."
    )
    files_bytes: Live[Natural] = setting(
        0, "How many bytes the uploaded files of one owner may have in all; further uploads are refused. 0: no limit."
    )


class DiskSettings(Section):
    """When work waits for lack of space, and how long files are kept."""

    min_free_bytes: Live[Natural] = setting(
        256 * 1024**2,
        "When the disk has less room than this, obatchd sends no more requests to servers. A drop that would leave "
        "less is not taken.",
    )
    min_free_inodes: Live[Natural] = setting(
        10_000, "When the disk has fewer free inodes than this, obatchd sends no more requests to servers."
    )
    keep_done_s: Live[NotNegative] = setting(
        7 * 86400, "How long obatchd keeps the input and the store of a finished job; its results in the outbox stay."
    )
    keep_done_bytes: Live[Natural] = setting(
        10 * 1024**3,
        "How much room the input and the stores of finished jobs may take in all; obatchd deletes those of the oldest "
        "finished jobs first.",
    )
    retention_days: Live[NotNegative] = setting(
        0,
        "When a job has ended so long ago, obatchd erases all of it: results, prompts and its row in "
        "the index; 0: never. obatchctl rm does it at once.",
    )
    prune_outbox_s: Live[NotNegative] = setting(
        0, "obatchd deletes results in the outbox and drops in failed/ after so long; 0: never."
    )
