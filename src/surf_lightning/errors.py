"""The one exception that the command line shows without a traceback, and what is said of others."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A user's mistake; the message says what is wrong and what to do about it."""

    def __init__(self, message: str) -> None:
        # A DataLoader rebuilds its worker's error from the text of the whole traceback, which ends in our message.
        super().__init__(message.rpartition(f"{__name__}.UserError: ")[2].rstrip())


def first_line(error: BaseException) -> str:
    """Of what ``error`` says, without a full stop; its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean ...?`` with what is nearest to ``word`` among the ``known``; nothing where nothing is near."""
    near = difflib.get_close_matches(word, list(dict.fromkeys(known)), 2, 0.7)
    return f"; did you mean {' or '.join(prefix + name for name in near)}?" if near else ""
