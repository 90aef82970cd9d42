"""``obatchctl usage``: the work for each owner, month by month."""

from __future__ import annotations

from datetime import datetime

import click

from obatchd.cli.command import Command, Document, Invocation
from obatchd.cli.views.text import table

# What erasing a job leaves behind.
SUMS_STAY = "The sums of obatchctl usage stay: they name an owner and a month, and no job."
_HEADINGS = (
    "~OWNER", "MONTH", ">DONE", "?>FAILED", "?>CANCELLED", "?>EXPIRED", ">PROMPT TOKENS", ">ANSWER TOKENS",
    ">GPU-SECONDS",
)  # fmt: skip


def _month(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return datetime.strptime(value, "%Y-%m").strftime("%Y-%m")
    except ValueError:
        raise click.BadParameter(f"{value!r} is no month; write it as 2026-11") from None


@click.command("usage", cls=Command)
@click.option("--month", metavar="YYYY-MM", callback=_month, help="Only this month (UTC).")
@click.option("--mine", "owner", flag_value="mine", help="Only your own.")
def usage_command(invocation: Invocation, month: str | None, owner: str | None) -> None:
    """Sum requests, tokens and GPU-seconds by owner and month: an administrator's list has everybody's.

    A job counts in the month in which it ends. An answer counts the share of its server's GPUs that its slot has, while
    it takes. The sums name no job, and stay when jobs are erased.
    """
    invocation.answer(invocation.client().get("usage", month=month, owner=owner), view=_list)


def _list(document: Document) -> list[str]:
    rows = [
        [
            row["name"], row["month"], f"{row['succeeded']:,}",
            *(f"{row[name]:,}" if row[name] else "" for name in ("failed", "cancelled", "expired")),
            f"{row['prompt_tokens']:,}", f"{row['response_tokens']:,}", f"{row['gpu_s']:,.0f}",
        ]
        for row in document["usage"]
    ]  # fmt: skip
    return table(_HEADINGS, rows) if rows else ["No job has ended in that time."]
