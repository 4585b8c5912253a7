"""Lightning callbacks."""

from surf_lightning.callbacks.beta_schedule import BetaSchedule
from surf_lightning.callbacks.ema_teacher import EMATeacher
from surf_lightning.callbacks.finite_steps import FiniteSteps
from surf_lightning.callbacks.momi import MeasureMoMi
from surf_lightning.callbacks.remixing_terms import MeasureRemixing

__all__ = ["BetaSchedule", "EMATeacher", "FiniteSteps", "MeasureMoMi", "MeasureRemixing"]
