"""The name of one engine start: what ties a verdict, its run file and the log together."""

from __future__ import annotations

import secrets


def new_session_id() -> str:
    """Twelve hexadecimal digits that no other session has: random, so that forked and remote processes differ too."""
    return secrets.token_hex(6)
