"""LPIPS, Fréchet Inception Distance and Inception Score. Axes: N images, C H W, F features.

Their networks' weights come from a folder, else torchvision and torch-fidelity download them. Where neither works the
metric still exists: ``unavailable`` says why, and its value is NaN. The networks lie outside the metrics, and so
outside the checkpoints of a module that holds a metric.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchmetrics import Metric
from torchmetrics.functional.image.lpips import _LPIPS
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.utilities import rank_zero_warn
from torchmetrics.utilities.data import dim_zero_cat

from surf_lightning.functional.precision import full_precision
from surf_lightning.functional.randomness import Ranks
from surf_lightning.metrics.availability import not_available
from surf_lightning.metrics.images import ImageMean

INCEPTION = "inception_fid.pth"  # FID's Inception-v3, in torch-fidelity's keys
ALEXNET = "alexnet_features.pth"  # AlexNet's convolutions, in torchvision's keys features.N.*
POOL, LOGITS = "2048", "logits_unbiased"  # torch-fidelity's names of layers
WIDTHS = {POOL: 2048, LOGITS: 1008}
CHUNK = 64  # images that a network sees at once: Inception blows them up to 299 x 299
SMALLEST = 32  # pixels; AlexNet's second pooling fails on 28

Weights = str | None
"""A folder, or None to download."""


def to_bytes(images: Tensor) -> Tensor:
    """[0,1] to uint8, rounded as an image file would be; grey ``[N,1,H,W]`` to three equal channels."""
    return (images * 255).round().byte().expand(-1, 3, -1, -1)


# -- networks --


def _file(weights: Weights, name: str) -> str | None:
    path = Path(weights).expanduser() / name if weights else None
    if path is None or not path.is_file():
        return None
    torch.load(path, map_location="cpu", weights_only=True)  # refuses the code that the libraries would run in it
    return str(path)


@functools.cache
def alexnet(weights: Weights) -> nn.Module:
    """LPIPS-Alex v0.1; its linear layers ship with torchmetrics."""
    path = _file(weights, ALEXNET)
    with torch.inference_mode(False):
        network = _LPIPS(net="alex", pnet_rand=path is not None)
        if path:
            layers = {name: layer for part in network.net.children() for name, layer in part.named_children()}
            for key, value in torch.load(path, map_location="cpu", weights_only=True).items():
                _, layer, parameter = key.split(".")
                getattr(layers[layer], parameter).data.copy_(value)
        return network.requires_grad_(False).eval()


class Inception(nn.Module):
    """Inception-v3 with the TensorFlow weights of 2015-12-05, its input resized as TensorFlow 1 did: what FID is
    defined on. ``uint8 [N,3,H,W]`` -> pooled features ``[N,2048]`` and logits without bias ``[N,1008]``.

    The latest two answers are remembered: the metrics of the estimates and of m/K ask for the same references.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        with torch.inference_mode(False):
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", [POOL, LOGITS], _file(weights, INCEPTION))
        self.has_logits = bool(self.network.fc.weight.any())
        self.recent: deque[tuple[Tensor, dict[str, Tensor]]] = deque(maxlen=2)

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        for known, answer in self.recent:
            if known.device == images.device and torch.equal(known, images):
                return answer
        _move(self.network, images.device)
        with full_precision(images):
            pool, logits = zip(*(self.network(chunk) for chunk in images.split(CHUNK)), strict=True)
        self.recent.append((images, {POOL: torch.cat(pool), LOGITS: torch.cat(logits)}))
        return self.recent[-1][1]


def _move(network: nn.Module, device: torch.device) -> None:
    with torch.inference_mode(False):
        network.to(device)


inception = functools.cache(Inception)


@functools.cache
def why_not_loaded(load: Callable[[Weights], nn.Module], weights: Weights, name: str) -> str | None:
    """None where ``load(weights)`` works, else the words of ``not_available``."""
    try:
        load(weights)
    except Exception as error:  # of any kind: no network, no library, a damaged file
        place = f"{weights} has no usable {name}" if weights else f"no folder that holds {name} is named (data.weights)"
        return not_available(f"{place}, and: {error}")
    return None


class InceptionLayer(nn.Module):
    """One layer of ``Inception``: ``uint8 [N,3,H,W]`` -> ``[N,F]``. It holds no weights itself."""

    def __init__(self, layer: str, weights: Weights = None) -> None:
        super().__init__()
        self.layer, self.weights, self.num_features = layer, weights, WIDTHS[layer]
        self.unavailable = why_not_loaded(inception, weights, INCEPTION)
        if layer == LOGITS and not self.unavailable and not inception(weights).has_logits:
            self.unavailable = not_available(f"{INCEPTION} in {weights} has no classifier (its layer fc is zero)")

    def forward(self, images: Tensor) -> Tensor:
        return inception(self.weights)(images)[self.layer]


# -- metrics: update(estimates, references), both [N,C,H,W] in [0,1] --


class LPIPS(ImageMean):
    """Learned Perceptual Image Patch Similarity (Zhang et al., 2018), AlexNet v0.1: 0 for equal images.

    Images below 32 pixels are padded to them with black.
    """

    def __init__(self, weights: Weights = None) -> None:
        super().__init__()
        self.weights = weights
        self.unavailable = why_not_loaded(alexnet, weights, ALEXNET)
        if self.unavailable:
            rank_zero_warn(f"LPIPS is {self.unavailable}")

    @torch.no_grad()
    def score(self, estimates: Tensor, references: Tensor) -> Tensor:
        if self.unavailable:
            return estimates.new_full((len(estimates),), torch.nan)
        network = alexnet(self.weights)
        _move(network, estimates.device)
        chunks = zip(estimates.split(CHUNK), references.split(CHUNK), strict=True)
        with full_precision(estimates):
            return torch.cat([network(_for_alexnet(x), _for_alexnet(y)).flatten() for x, y in chunks])


def _for_alexnet(images: Tensor) -> Tensor:
    missing = [max(0, SMALLEST - size) for size in images.shape[:-3:-1]]  # of W, of H
    sides = [side for size in missing for side in (size // 2, size - size // 2)]
    return 2 * pad(images, sides).expand(-1, 3, -1, -1) - 1


class Reference:
    """A set of images that estimates are compared with as a set.

    Args:
        images: gives them all, uint8 ``[N,C,H,W]``.
    """

    def __init__(self, images: Callable[[], Tensor]) -> None:
        self.images = images
        self._moments: dict[str, Tensor] = {}

    def moments(self, features: nn.Module, device: torch.device) -> dict[str, Tensor]:
        """The states ``real_*`` of an FID that has seen this rank's share; measured once, for several FIDs."""
        if not self._moments:
            ranks = Ranks.current()
            share = self.images()[ranks.rank :: ranks.world_size]
            fid = FrechetInceptionDistance(features).to(device)
            for chunk in share.split(CHUNK):
                fid.update(chunk.to(device).expand(-1, 3, -1, -1), real=True)
            self._moments = {name: getattr(fid, name) for name in fid._defaults if name.startswith("real_")}
        return self._moments


class FID(FrechetInceptionDistance):
    """Fréchet Inception Distance (Heusel et al., 2017) of all estimates, quantised, as a set.

    It is torchmetrics', on torch-fidelity's features. NaN where there are less than two images.

    Args:
        features: uint8 ``[N,3,H,W]`` -> ``[N,F]``, with an attribute ``num_features``.
        reference: what the estimates are compared with; by default the references they are updated with.
    """

    def __init__(self, features: nn.Module, reference: Reference | None = None) -> None:
        super().__init__(features)
        self.reference = reference
        self.unavailable: str | None = getattr(features, "unavailable", None)
        if self.unavailable:
            rank_zero_warn(f"FID is {self.unavailable}")

    def update(self, estimates: Tensor, references: Tensor) -> None:  # type: ignore[override]
        """Count ``estimates`` and, without a ``reference`` set, ``references``."""
        if self.unavailable:  # on this rank: a distance of the other ranks' images alone would mislead
            self.fake_features_sum += torch.nan
            return
        if self.reference is None:
            super().update(to_bytes(references), real=True)
        elif self.real_features_num_samples == 0:
            for name, value in self.reference.moments(self.inception, self.device).items():
                setattr(self, name, value.clone())
        super().update(to_bytes(estimates), real=False)

    def compute(self) -> Tensor:
        counts = torch.stack([self.real_features_num_samples, self.fake_features_num_samples])
        if counts.min() < 2 or not self.fake_features_sum.isfinite().all():
            return torch.tensor(torch.nan, device=self.device)
        return super().compute()


class InceptionScore(Metric):
    """Inception Score (Salimans et al., 2016) of all estimates, quantised, by torch-fidelity.

    ``is`` and ``is_std`` are mean and deviation over 10 splits, which are a function of the set of images, not of their
    order or ranks. Where they cannot be computed there is ``is`` alone, NaN.

    Args:
        features: uint8 ``[N,3,H,W]`` -> logits ``[N,F]``, with an attribute ``num_features``.
    """

    full_state_update = False
    higher_is_better = True
    SPLITS = 10
    logits: list[Tensor]

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features, self.num_features = features, int(features.num_features)  # type: ignore[arg-type]
        self.unavailable: str | None = getattr(features, "unavailable", None)
        if self.unavailable:
            rank_zero_warn(f"Inception Score is {self.unavailable}")
        self.add_state("logits", [], dist_reduce_fx="cat")

    def update(self, estimates: Tensor) -> None:
        if self.unavailable:
            self.logits.append(estimates.new_full((len(estimates), self.num_features), torch.nan))
        else:
            self.logits.append(self.features(to_bytes(estimates)))

    def compute(self) -> dict[str, Tensor]:
        logits = dim_zero_cat(self.logits).cpu()
        if len(logits) < self.SPLITS or not logits.isfinite().all():
            return {"is": torch.tensor(torch.nan, device=self.device)}
        from torch_fidelity.metric_isc import isc_features_to_metric

        order = np.lexsort(logits[:, :4].T.numpy())  # then shuffled by torch-fidelity, with its own seed
        values: dict[str, Any] = isc_features_to_metric(logits[torch.from_numpy(order)], self.SPLITS)
        named = {"is": values["inception_score_mean"], "is_std": values["inception_score_std"]}
        return {name: torch.tensor(value, device=self.device) for name, value in named.items()}
