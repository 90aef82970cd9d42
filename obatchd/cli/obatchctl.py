"""``obatchctl``: the operator's command line. Each command's module is imported only when it is used."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path

import click

from obatchd import __version__
from obatchd.cli.command import Invocation, RootGroup
from obatchd.client.runtime import default_spool

# Command to module; the module's attribute has the command's name, with _command behind it.
_COMMANDS = {
    "status": "commands.status",
    "jobs": "commands.jobs",
    "job": "commands.jobs",
    "submit": "commands.submit",
    "results": "commands.results",
    "cancel": "commands.jobs",
    "retry": "commands.jobs",
    "rm": "commands.jobs",
    "pause": "commands.jobs",
    "resume": "commands.jobs",
    "servers": "commands.servers",
    "gpus": "commands.gpus",
    "drain": "commands.host",
    "undrain": "commands.host",
    "reload": "commands.host",
    "models": "commands.models",
    "burnin": "commands.burnin",
    "config": "commands.config",
    "doctor": "doctor.doctor",
    "completion": "commands.completion",
}


class _Commands(RootGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], _COMMANDS, 1)
            raise click.UsageError(f"{error.message} Did you mean '{close[0]}'?", ctx) if close else error from None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(f"obatchd.cli.{module}"), f"{cmd_name}_command")
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--spool",
    envvar=["OBATCH_SPOOL", "OBATCHD_SPOOL"],
    default=default_spool,
    show_default="your own daemon's, else /var/spool/obatch",
    type=click.Path(file_okay=False, path_type=Path),
    help="Spool of the daemon to talk to; also OBATCH_SPOOL.",
)
@click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document; also behind every command.")
@click.version_option(__version__, prog_name="obatchctl")
@click.pass_context
def main(ctx: click.Context, spool: Path, as_json: bool) -> None:
    """Talk to obatchd: see what it does, give it work, take servers out and back.

    Exit codes: 0 good, 1 failed or degraded, 2 usage, 3 the daemon is not running, 4 no permission, 78 configuration.
    """
    ctx.obj = Invocation(spool.expanduser().absolute())
    ctx.obj.json = as_json
