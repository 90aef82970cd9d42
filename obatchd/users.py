"""Names of users, as people know them."""

from __future__ import annotations

import pwd


def user_name(uid: int) -> str:
    """The name of a user; the uid as text where the user database has none (any more). It may take long to say so."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
