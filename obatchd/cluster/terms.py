"""Which settings the head decides for all hosts, once: the head makes its terms by this list, each host obeys them.

All other settings are those of the host's own file.
"""

from __future__ import annotations

from typing import Any

from obatchd.cluster.messages import Terms
from obatchd.errors import ConfigError
from obatchd.settings import reading
from obatchd.settings.reading import Leaf
from obatchd.settings.settings import Settings

_TABLES = frozenset({"servers", "models", "gpu_health", "burnin", "dispatch"})
_TOP = frozenset({"context_length"})
# What depends on the machine.
_LOCAL = frozenset({"ollama", "listen", "base_port", "cpu_servers", "group", "models_dir", "environment"})
_OF_REMOTE_SERVERS = frozenset({"remote_slots", "remote_token"})


def is_of_head(leaf: Leaf) -> bool:
    """Whether the head decides a setting for its hosts."""
    if not leaf.section:
        return leaf.name in _TOP
    return leaf.section in _TABLES and not (leaf.section == "servers" and leaf.name in _LOCAL | _OF_REMOTE_SERVERS)


def terms(settings: Settings) -> Terms:
    """What a head with these settings tells its hosts; keys of the top level stand in the table ``""``."""
    found: dict[str, dict[str, Any]] = {}
    for leaf in filter(is_of_head, reading.leaves()):
        table = getattr(settings, leaf.section) if leaf.section else settings
        found.setdefault(leaf.section, {})[leaf.name] = table.model_dump(mode="json", include={leaf.name})[leaf.name]
    return Terms(found, settings.cluster.lease_s)


def obeyed(own: Settings, terms: Terms) -> Settings:
    """The host's own settings with the head's in their places; keys that are not known here are left out.

    Raises ConfigError where they do not go together.
    """
    data = own.model_dump()
    for leaf in filter(is_of_head, reading.leaves()):
        told = terms.settings.get(leaf.section, {})
        if leaf.name in told:
            table = data[leaf.section] if leaf.section else data
            table[leaf.name] = told[leaf.name]
    settings, wrong = reading.validate(data, {}, "the head", Settings)
    if settings is None:
        raise ConfigError("\n".join(wrong))
    return settings
