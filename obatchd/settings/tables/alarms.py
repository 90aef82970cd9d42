"""``[alarms]``: who is told when something needs somebody."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from obatchd.settings.base import Live, PositiveSeconds, Section

AlarmKind = Literal["quarantine", "server_failed", "burn_in_finished", "disk_low", "job_done"]


class AlarmSettings(Section):
    """Who is told when something needs somebody. etc/alarm-mail is a ready command that sends mail."""

    command: Live[list[str]] = Field(
        [],
        description="Program and arguments, run without a shell for each alarm, which it gets as JSON on its standard "
        "input; empty: none.",
    )
    timeout_s: Live[PositiveSeconds] = Field(30, description="Longest time of one run; then it is killed.")
    on: Live[list[AlarmKind]] = Field(
        ["quarantine", "server_failed", "burn_in_finished", "disk_low"], description="Which alarms are told."
    )
