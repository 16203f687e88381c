"""The one error a user can cause."""

from __future__ import annotations


class ConfigError(ValueError):
    """A wrong choice of the user: what was given, what is allowed, and what to type instead.

    The command line prints the message as one line and exits with code 2; nothing is left behind.
    """
