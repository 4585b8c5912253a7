"""One LightningModule a training stage."""

from surf_lightning.methods.mixit import MixIT
from surf_lightning.methods.objectives import ReMixITLoss, SelfRemixingLoss
from surf_lightning.methods.remixing import Remixing
from surf_lightning.methods.supervised import SupervisedFlow, SupervisedRegression
from surf_lightning.methods.surf import SURF

__all__ = ["SURF", "MixIT", "ReMixITLoss", "Remixing", "SelfRemixingLoss", "SupervisedFlow", "SupervisedRegression"]
