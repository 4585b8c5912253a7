"""``python -m surf_lightning`` is the command ``surf``."""

import os
import sys

if sys.path[0] == os.getcwd():  # where ``python -m`` would find a stranger's files before our libraries
    del sys.path[0]

from surf_lightning.cli import entry_point

entry_point()
