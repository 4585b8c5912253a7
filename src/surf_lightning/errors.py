"""The one exception that the command line shows without a traceback."""


class UserError(ValueError):
    """A user's mistake; the message says what is wrong and what to do about it."""

    def __init__(self, message: str) -> None:
        # A DataLoader rebuilds its worker's error from the text of the whole traceback, which ends in our message.
        super().__init__(message.rpartition(f"{__name__}.UserError: ")[2].rstrip())
