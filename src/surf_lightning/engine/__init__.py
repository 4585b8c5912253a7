"""A run: fitting, the command line of Lightning, run folders, checkpoints, loggers."""
