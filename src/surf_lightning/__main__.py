"""``python -m surf_lightning`` is the command ``surf``."""

from surf_lightning.cli import entry_point

entry_point()
