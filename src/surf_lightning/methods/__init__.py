"""One LightningModule a training stage."""

from surf_lightning.methods.basis import BASIS, SequentialUpdate, SimultaneousUpdate
from surf_lightning.methods.ideal_mask import IdealRatioMask
from surf_lightning.methods.mixcycle import MixCycle, MixPIT
from surf_lightning.methods.mixit import MixIT, SemiSupervisedMixIT
from surf_lightning.methods.one_step import OneStep
from surf_lightning.methods.remixing import Remixing
from surf_lightning.methods.supervised import SupervisedFlow, SupervisedRegression
from surf_lightning.methods.surf import SURF

__all__ = [
    "BASIS",
    "SURF",
    "IdealRatioMask",
    "MixCycle",
    "MixIT",
    "MixPIT",
    "OneStep",
    "Remixing",
    "SemiSupervisedMixIT",
    "SequentialUpdate",
    "SimultaneousUpdate",
    "SupervisedFlow",
    "SupervisedRegression",
]
