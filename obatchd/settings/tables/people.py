"""``[access]`` and ``[alarms]``: who may use the daemon, and who is told."""

from __future__ import annotations

from typing import Literal

from obatchd.settings.base import Live, Positive, Section, setting


class AccessSettings(Section):
    """Who may use the daemon. The system service is started with mode = "service"."""

    mode: Literal["personal", "service"] = setting(
        "personal",
        '"personal": obatchd answers only its own user and root. "service": it answers the members '
        "of submit_group, each of whom sees only their own jobs; outbox and failed have a directory "
        "for each owner.",
    )
    submit_group: str = setting(
        "obatch-submit", "The group whose members may drop files and submit jobs.", min_length=1
    )
    admin_group: str = setting(
        "obatch-admin", "The group whose members see everything and may do everything.", min_length=1
    )


AlarmKind = Literal["quarantine", "server_failed", "burn_in_finished", "disk_low", "drop_changed", "job_done"]


class AlarmSettings(Section):
    """Who is told when something needs somebody. etc/alarm-mail is a ready command that sends mail."""

    command: Live[list[str]] = setting(
        [],
        "Program and arguments, run without a shell for each alarm, which it gets as JSON on its standard "
        "input; empty: none.",
    )
    timeout_s: Live[Positive] = setting(30, "Longest time of one run; then it is killed.")
    on: Live[list[AlarmKind]] = setting(
        ["quarantine", "server_failed", "burn_in_finished", "disk_low", "drop_changed"], "Which alarms are told."
    )
