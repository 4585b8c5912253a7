"""Networks, and the two protocols by which methods use them."""

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
from surf_lightning.networks.conv_tasnet import ConvTasNet, PowerWeights, PredictedSourceWeights, UniformWeights
from surf_lightning.networks.locoformer import MBLocoformer, RegressionLocoformer
from surf_lightning.networks.ncsnpp import ConcatenatedNCSNpp, LogSigma, PlainTime, RegressionNCSNpp, SharedNCSNpp
from surf_lightning.networks.score import ScoreNCSNpp, ScoreNetwork
from surf_lightning.networks.velocity_conv_tasnet import VelocityConvTasNet

__all__ = [
    "ConcatenatedNCSNpp",
    "ConstantNoise",
    "ConvTasNet",
    "EnvelopeNoise",
    "GlobalRMSNoise",
    "Head",
    "LogSigma",
    "MBLocoformer",
    "PlainTime",
    "PowerWeights",
    "PredictedSourceWeights",
    "PriorNoise",
    "RegressionLocoformer",
    "RegressionNCSNpp",
    "RegressionNetwork",
    "ScoreNCSNpp",
    "ScoreNetwork",
    "SharedNCSNpp",
    "SourceHead",
    "UniformWeights",
    "VelocityConvTasNet",
    "VelocityHead",
    "VelocityNetwork",
    "serializable",
]
