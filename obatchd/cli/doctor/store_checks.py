"""The check of ``obatchctl doctor`` on the model store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from obatchd.cli.doctor.account import Account, may, other_account, owner_of
from obatchd.cli.doctor.result import CheckResult, bad, nearest, ok, warn
from obatchd.cli.views.text import size
from obatchd.client import unit
from obatchd.client.runtime import is_service
from obatchd.errors import ConfigError
from obatchd.settings.base import expanded
from obatchd.settings.settings import Settings

_LOW_STORE_BYTES = 10 * 1024**3


def model_store(settings: Settings, spool: Path, homeless: Path) -> Iterator[CheckResult]:
    """Where models lie, and how much room there is for more; root is told what the daemon's user may do there.

    ``homeless`` is where they lie for a user without a home. Anybody else is told nothing of another user's store.
    """
    owner = owner_of(spool)
    if owner is not None and os.geteuid() not in (0, owner):
        return
    account = other_account(spool)
    given = settings.servers.models_dir or (os.environ.get("OLLAMA_MODELS") if account is None else None)
    try:
        store = expanded(given or (account.home if account else Path("~")) / ".ollama/models")
    except ConfigError as error:
        if settings.servers.models_dir:
            yield bad("models", f"servers.models_dir: {error.message}", "id; echo $HOME")
            return
        store = homeless
    yield _hindrance(store, account, spool) or _room(store)


def _hindrance(store: Path, account: Account | None, spool: Path) -> CheckResult | None:
    """What keeps the daemon's user from the store; a server starts only where its folders are there or can be made."""
    place, closed = nearest(store)
    who, whose = (f"{account.name}, the daemon's user,", f"-o {account.name} ") if account else ("you", "")
    if closed or not may(account, place, "rx"):
        if account is None:
            return warn(
                "models", f"you may not look into {store}; the daemon's user must be able to", f"ls -ld {place}"
            )
        return bad("models", f"{who} may not look into {store}, so no server can start", f"namei -l {place}")
    writable = may(account, place, "wx")
    shut = is_service(spool) and unit.shuts(unit.properties(), store)
    if place != store and (shut or not writable):
        text = f"there is no directory {store}, and {who} may not make it in {place}, so no server can start"
        return bad("models", text, f"sudo install -d {whose}{store}")
    ready = os.path.isdir(store / "blobs")
    found, cost = (warn, "nothing can be pulled or removed") if ready else (bad, "no server can start")
    if not writable:
        yours = f"not {account.name}'s to write" if account else "not yours to write"
        return found("models", f"{store}, {_free(place)}; {yours}, so {cost}", f"ls -ld {place}")
    if shut:
        text = (
            f"{store}; the unit of the service lets it only read there, so {cost}. Write these two lines into its "
            f"unit, and restart it: [Service] and ReadWritePaths={store}"
        )
        return found("models", text, "sudo systemctl edit obatchd")
    return None


def _room(store: Path) -> CheckResult:
    place, _ = nearest(store)
    text = f"{store}, {_free(place)}"
    if shutil.disk_usage(place).free < _LOW_STORE_BYTES:
        return warn("models", f"{text}; large models will not fit", f"df -h {place}")
    if place != store:
        text += "; made by the first pull"
    elif not os.path.isdir(store / "manifests"):
        text += "; no model in it yet"
    return ok("models", text)


def _free(place: Path) -> str:
    return f"{size(shutil.disk_usage(place).free)} free"
