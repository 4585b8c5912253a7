"""Networks, and the two protocols through which methods use them."""

from surf_lightning.networks.base import (
    ConstantNoise,
    EnvelopeNoise,
    GlobalRMSNoise,
    Head,
    PriorNoise,
    RegressionNetwork,
    SourceHead,
    VelocityHead,
    VelocityNetwork,
    serializable,
)
from surf_lightning.networks.conv_tasnet import ConvTasNet, VelocityConvTasNet
from surf_lightning.networks.locoformer import MBLocoformer, RegressionLocoformer
from surf_lightning.networks.ncsnpp import LogSigma, RegressionNCSNpp, SharedNCSNpp
from surf_lightning.networks.score import ScoreNCSNpp, ScoreNetwork
from surf_lightning.networks.stft_conv_tasnet import STFTConvTasNet, VelocitySTFTConvTasNet

__all__ = [
    "ConstantNoise",
    "ConvTasNet",
    "EnvelopeNoise",
    "GlobalRMSNoise",
    "Head",
    "LogSigma",
    "MBLocoformer",
    "PriorNoise",
    "RegressionLocoformer",
    "RegressionNCSNpp",
    "RegressionNetwork",
    "STFTConvTasNet",
    "ScoreNCSNpp",
    "ScoreNetwork",
    "SharedNCSNpp",
    "SourceHead",
    "VelocityConvTasNet",
    "VelocityHead",
    "VelocityNetwork",
    "VelocitySTFTConvTasNet",
    "serializable",
]
