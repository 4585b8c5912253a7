"""The one exception that the command line shows without a traceback."""


class UserError(ValueError):
    """A user's mistake; the message says what is wrong and what to do about it."""
