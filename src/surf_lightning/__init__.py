"""Learning to separate sources from mixtures alone: the SURF paper and its baselines on PyTorch Lightning."""

__version__ = "0.1.0"
