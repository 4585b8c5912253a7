"""Learning to separate sources from mixtures alone: the SURF paper and its baselines on PyTorch Lightning."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surf_lightning.inference.separator import Separator, load_separator

__version__ = "0.1.0"
__all__ = ["Separator", "__version__", "load_separator"]


def __getattr__(name: str) -> Any:  # PEP 562: torch is imported when it is needed, not for the help of a command
    if name in __all__:
        from surf_lightning.inference import separator

        return getattr(separator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
