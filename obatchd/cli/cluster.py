"""``obatchctl cluster``: what an engine needs to start hosts of this head: a file for sbatch, and an enrolment."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from obatchd.cli.command import Group, Invocation, Span, given
from obatchd.cli.hosts import write_enrolment
from obatchd.client.runtime import next_step

if TYPE_CHECKING:
    from obatchd.cluster.slurm import HeadInJob

_VALID = Span(60.0, with_unit=True)
_FILE = click.Path(dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_HOSTS = Path("~/.local/state/obatch-slurm")

cluster_command = Group("cluster", "Let an engine start obatchd on many hosts.")


@cluster_command.command("slurm")
@click.option("-N", "--nodes", required=True, metavar="NODES", callback=given, help="How many nodes: 7, or 2-7.")
@click.option("--gres", default="", metavar="LIST", help="GPUs of each node as Slurm names them, such as gpu:4.")
@click.option(
    "--time", "limit", metavar="LIMIT", help="The job's time limit, 12:00:00 or 12h; default: the partition's."
)
@click.option("--partition", default="", metavar="NAME", help="Slurm's partition; default: its own.")
@click.option("--name", default="obatch-hosts", show_default=True, metavar="NAME", help="The job's name.")
@click.option("--apart", is_flag=True, help="A job for each node, which starts, ends and comes back alone.")
@click.option("--renew", is_flag=True, help="Go back to the queue at the time limit, until scancel.")
@click.option(
    "--notice", default="2m", show_default=True, type=Span(1.0), metavar="TIME",
    help="How long before the limit hosts take no more work.",
)  # fmt: skip
@click.option("--sbatch", "options", multiple=True, metavar="OPTION", help="One more of sbatch's, such as --mem=64G.")
@click.option(
    "--valid", default="7d", show_default=True, type=_VALID, metavar="TIME",
    help="How long hosts may join by the enrolment.",
)  # fmt: skip
@click.option("--with-head", is_flag=True, help="The head runs in the job, too, on its first node; needs --head-spool.")
@click.option("--head-spool", type=_DIRECTORY, help="The spool of that head, on storage that the nodes share.")
@click.option("--head-config", type=_FILE, help="Its configuration file.")
@click.option("--port", default=7700, show_default=True, type=click.IntRange(1, 65535), help="The port of its door.")
@click.option("--host-config", type=_FILE, help="The configuration file of each host; default: where it looks itself.")
@click.option("--directory", type=_DIRECTORY, help=f"Where hosts keep their state on the nodes; default: {_HOSTS}.")
@click.option("--obatchd", type=_FILE, help="obatchd on the nodes; default: the path that it has here.")
@click.option("--enrolment", type=_FILE, help="The file for the enrolment; default: beside the output.")
@click.option(
    "--head", "address", default="", metavar="HOST:PORT", help="Where nodes reach the head, if not at listen."
)
@click.option("-o", "--output", type=_FILE, help="Write the file here instead of printing it.")
def slurm_command(invocation: Invocation, nodes: str, limit: str | None, valid: float, **rest: Any) -> None:
    """Print a file for sbatch, whose job runs obatchd host on its nodes.

    It holds no secret. Beside it a file is made that only you can read, with the enrolment by which the job's hosts
    join this head; obatchctl hosts forget --enrolment ends that.
    """
    from obatchd.cluster import slurm

    output: Path | None = rest["output"]
    enrolment = _absolute(rest["enrolment"] or _beside(output, rest["name"]))
    obatchd = _absolute(rest["obatchd"]) if rest["obatchd"] else _program("obatchd")
    job = slurm.PilotJob(
        nodes=nodes,
        limit_s=None if limit is None else slurm.limit_s(limit),
        notice_s=rest["notice"],
        obatchd=obatchd,
        enrolment=enrolment,
        directory=_absolute(rest["directory"] or _HOSTS),
        config=_absolute(rest["host_config"]) if rest["host_config"] else None,
        head=_head(rest, obatchd, valid),
        **{name: rest[name] for name in ("gres", "partition", "name", "apart", "renew", "options")},
    )
    text = slurm.sbatch_file(job)
    if job.head is None:
        write_enrolment(invocation, enrolment, valid, rest["address"])
    document = {"enrolment": None if job.head else str(enrolment)}
    if output is None:
        invocation.answer(document | {"sbatch": text})
        if not invocation.json:
            click.echo(text, nl=False)
        return
    output.write_text(text, "utf-8")
    made = [] if job.head else [f"{enrolment}: the enrolment, which only you can read; hosts join by it on the nodes"]
    step = next_step(f"sbatch {output}")
    invocation.answer(document | {"sbatch": str(_absolute(output))}, f"{output}: the job", *made, f"Now:  {step}")


def _head(rest: dict[str, Any], obatchd: Path, valid_s: float) -> HeadInJob | None:
    from obatchd.cluster.slurm import HeadInJob

    if not rest["with_head"]:
        if given_too := [name for name in ("head_spool", "head_config") if rest[name]]:
            raise click.UsageError(f"--{given_too[0].replace('_', '-')} goes with --with-head")
        return None
    if rest["head_spool"] is None:
        raise click.UsageError("--with-head needs --head-spool: a directory of yours that all nodes see")
    config = _absolute(rest["head_config"]) if rest["head_config"] else None
    return HeadInJob(
        _absolute(rest["head_spool"]), obatchd.with_name("obatchctl"), config, rest["port"], f"{round(valid_s)}s"
    )


def _beside(output: Path | None, name: str) -> Path:
    return output.with_name(f"{output.name}.enrolment") if output else Path(f"{name}.enrolment")


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))


def _program(name: str) -> Path:
    """The program beside this one, else the one on PATH."""
    beside = Path(sys.argv[0]).absolute().with_name(name)
    return beside if beside.exists() else Path(shutil.which(name) or beside)
