"""DataModules: every set yields mixtures and, where there is truth, their sources."""

from surf_lightning.data.arrays import Arrays
from surf_lightning.data.audioset import AudioSet
from surf_lightning.data.enhancement import Enhancement
from surf_lightning.data.folder import Folder, FolderWithTruth
from surf_lightning.data.fuss import FUSS, LibriSpeechFUSS
from surf_lightning.data.image_sets import CIFAR10, MNIST, Digits
from surf_lightning.data.libri2mix import Libri2Mix
from surf_lightning.data.sc09mix import SC09Mix
from surf_lightning.data.shards import Shards
from surf_lightning.data.wsj0mix import WSJ0Mix

__all__ = [
    "CIFAR10",
    "FUSS",
    "MNIST",
    "Arrays",
    "AudioSet",
    "Digits",
    "Enhancement",
    "Folder",
    "FolderWithTruth",
    "Libri2Mix",
    "LibriSpeechFUSS",
    "SC09Mix",
    "Shards",
    "WSJ0Mix",
]
