"""Whom submitters may have told: mail addresses and hosts that the administrator allows."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Sequence

from yarl import URL

from obatchd.context.addresses import AddressPolicy
from obatchd.errors import ConfigError, SourceError
from obatchd.settings.tables.context import opened
from obatchd.settings.tables.people import MAIL, NotificationSettings

_SHOWN = 10  # of those who may be told


def shown(target: str) -> str:
    """Somebody who is told, for people and logs: of a URL the host alone."""
    return f"mail to {target.removeprefix(MAIL)}" if target.startswith(MAIL) else f"webhook at {URL(target).raw_host}"


def logged(target: str) -> str:
    """The same without the address, which is a person's."""
    return "mail" if target.startswith(MAIL) else shown(target)


def address_policy(rules: NotificationSettings) -> AddressPolicy:
    """Where webhooks may be: at public addresses; a host that is named in full, and a network, opens others, too."""
    return AddressPolicy([entry for entry in rules.allow if not set("@*?") & set(entry)], "notifications")


def problem(target: str, rules: NotificationSettings) -> str:
    """Why somebody is not told; empty where they are, as far as that can be seen before a host's name is resolved."""
    if not rules.allow:
        return "nobody may be told on this host. An administrator says who may, with allow in [notifications]"
    if not _is_allowed(target, rules.allow):
        more = f" and {len(rules.allow) - _SHOWN} more" if len(rules.allow) > _SHOWN else ""
        words = f"{shown(target)} is not allowed on this host; allowed: {', '.join(rules.allow[:_SHOWN])}{more}"
        return f"{words}. An administrator can add others, with allow in [notifications]"
    if target.startswith(MAIL):
        program = rules.mail_command[0] if rules.mail_command else ""
        if not program or shutil.which(program) is None:
            words = f"there is no program {program}" if program else "no program is named"
            return f"mail cannot be sent from this host: {words} (mail_command in [notifications])"
        return ""
    try:
        address_policy(rules).target(URL(target))
    except SourceError as error:
        return f"{shown(target)}: {error.message}"
    return ""


def require_allowed(targets: Sequence[str] | None, rules: NotificationSettings, source: str) -> None:
    """Raises ConfigError, which says of each who may not be told why; messages call the settings ``source``."""
    found = [f"{source}: notify: {words}" for target in targets or () if (words := problem(target, rules))]
    if found:
        raise ConfigError("\n".join(dict.fromkeys(found)))


def _is_allowed(target: str, allow: Sequence[str]) -> bool:
    if target.startswith(MAIL):
        address = target.removeprefix(MAIL).lower()
        return any(fnmatch.fnmatchcase(address, entry.lower()) for entry in allow if "@" in entry)
    url = URL(target)
    host, port = (url.raw_host or "").lower().rstrip("."), url.port
    for entry in map(opened, (entry for entry in allow if "@" not in entry)):
        if entry.port in (0, port):
            named = str(entry.network.network_address) if entry.network and entry.network.num_addresses == 1 else ""
            if host == named or (entry.pattern and fnmatch.fnmatchcase(host, entry.pattern)):
                return True
    return False
