"""DataModules: every set yields mixtures and, where there is truth, their sources."""

from surf_lightning.data.cifar import CIFAR10
from surf_lightning.data.digits import Digits
from surf_lightning.data.mnist import MNIST

__all__ = ["CIFAR10", "MNIST", "Digits"]
