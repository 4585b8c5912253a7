"""LPIPS, Fréchet Inception Distance and Inception Score. Axes: N images, C H W, F features.

The networks' weights come from a folder, else they are downloaded; a download, also one that lies in torch's cache, is
used only if it has the published hash. Metrics hold their network as a function, not as a submodule: no checkpoint
stores its weights, and copies of a metric share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchmetrics.functional.image.lpips import _LPIPS
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.utilities import rank_zero_warn
from torchmetrics.utilities.data import dim_zero_cat

from surf_lightning.functional.precision import full_precision
from surf_lightning.functional.randomness import Ranks
from surf_lightning.metrics.images import ImageMean

INCEPTION = "inception_fid.pth"  # FID's Inception-v3, in torch-fidelity's keys
ALEXNET = "alexnet_features.pth"  # AlexNet's convolutions, in torchvision's keys features.N.*
DOWNLOADS = {  # where they are published, and their SHA-256
    INCEPTION: (
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    ALEXNET: (
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
}
CHUNK = 64  # images that a network sees at once: Inception enlarges them to 299 x 299
SMALLEST = 32  # pixels; AlexNet's second pooling fails on 28
SPLITS = 10  # of the Inception Score

Features = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``uint8 [N,3,H,W]`` -> features ``[N,F]`` for FID, logits ``[N,classes]`` for the Inception Score."""


def to_bytes(images: Tensor) -> Tensor:
    """Round [0,1] to uint8 as an image file would; repeat grey ``[N,1,H,W]`` to three channels."""
    return (images * 255).round().byte().expand(-1, 3, -1, -1)


# -- networks --


def _weights(folder: str | None, name: str) -> Path:
    """The file ``name`` in ``folder``, else the download; raises RuntimeError, which says where it was looked for."""
    path = Path(folder).expanduser() / name if folder else None
    try:
        path = path if path and path.is_file() else _downloaded(*DOWNLOADS[name])
        torch.load(path, map_location="cpu", weights_only=True)  # refuses code, which the libraries would run
        return path
    except Exception as error:  # libraries raise errors of many kinds
        place = f"{folder} has no usable {name}" if folder else f"no folder that holds {name} is named (data.weights)"
        raise RuntimeError(f"{place}, and: {error}") from error


def _downloaded(url: str, digest: str) -> Path:
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest, progress=False)  # replaces the file if the hash is right
    return path


@torch.no_grad()
def _in_chunks(network: nn.Module, *images: Tensor) -> list[Any]:
    """What ``network`` gives for chunks of ``images``, on their device and without autocast."""
    with torch.inference_mode(False):
        network.to(images[0].device)
    with full_precision(images[0]):
        return [network(*chunk) for chunk in zip(*(x.split(CHUNK) for x in images), strict=True)]


def alexnet(weights: str | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """The distance of LPIPS-Alex v0.1 between images in [-1,1]: two ``[N,3,H,W]`` -> ``[N]``.

    Its linear layers ship with torchmetrics.
    """
    path = _weights(weights, ALEXNET)
    network = _LPIPS(net="alex", pnet_rand=True)
    layers = {name: layer for part in network.net.children() for name, layer in part.named_children()}
    for key, value in torch.load(path, map_location="cpu", weights_only=True).items():
        part, layer, parameter = key.split(".")
        if part == "features":
            getattr(layers[layer], parameter).data.copy_(value)
    network.requires_grad_(False).eval()
    return lambda x, y: torch.cat([distance.flatten() for distance in _in_chunks(network, x, y)])


def inception(weights: str | None = None) -> Features:
    """Inception-v3 with the TensorFlow weights of 2015-12-05, its input resized as TensorFlow 1 did, as FID demands.

    Gives pooled features ``[N,2048]`` and logits without bias ``[N,1008]``, NaN where the file has no classifier.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = str(_weights(weights, INCEPTION))
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], path)
    has_classifier = bool(network.fc.weight.any())
    if not has_classifier:
        rank_zero_warn(f"no Inception Score: {INCEPTION} in {weights} has no classifier (its layer fc is zero)")

    def features(images: Tensor) -> tuple[Tensor, Tensor]:
        pool, logits = (torch.cat(part) for part in zip(*_in_chunks(network, images), strict=True))
        return pool, logits if has_classifier else torch.full_like(logits, torch.nan)

    return features


# -- metrics: update(estimates, references), both [N,C,H,W] in [0,1] --


class LPIPS(ImageMean):
    """Learned Perceptual Image Patch Similarity (Zhang et al., 2018), AlexNet v0.1: 0 for equal images.

    Images below 32 pixels are padded with black. ``weights`` is a folder that holds alexnet_features.pth.

    Raises:
        RuntimeError: it does not, and the file cannot be downloaded.
    """

    higher_is_better = False

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        self.distance = alexnet(weights)

    def score(self, estimates: Tensor, references: Tensor) -> Tensor:
        return self.distance(_for_alexnet(estimates), _for_alexnet(references))


def _for_alexnet(images: Tensor) -> Tensor:
    missing = [max(0, SMALLEST - size) for size in images.shape[:-3:-1]]  # of W, of H
    sides = [side for size in missing for side in (size // 2, size - size // 2)]
    return 2 * pad(images, sides).expand(-1, 3, -1, -1) - 1


class _Given(nn.Identity):
    """Stands where torchmetrics wants a network: FID below computes the features itself."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


class FID(FrechetInceptionDistance):
    """Fréchet Inception Distance (Heusel et al., 2017) between all estimates and all references, both quantised.

    NaN with fewer than two images.
    """

    def __init__(self, features: Features, num_features: int = 2048, **options: Any) -> None:
        super().__init__(_Given(num_features), **options)
        self.features = features

    def update(self, estimates: Tensor, references: Tensor) -> None:  # type: ignore[override]
        self.count(to_bytes(references), real=True)
        self.count(to_bytes(estimates), real=False)

    def count(self, images: Tensor, real: bool) -> Tensor:
        """Count ``uint8 [N,3,H,W]`` as references (``real``) or estimates; returns their logits ``[N,classes]``."""
        pooled, logits = self.features(images)
        super().update(pooled, real)
        return logits

    def compute(self) -> Tensor:
        counts = torch.stack([self.real_features_num_samples, self.fake_features_num_samples])
        return super().compute() if counts.min() >= 2 else torch.tensor(torch.nan, device=self.device)


class SampleQuality(FID):
    """The columns of Table 2 by one pass of Inception: ``is`` and ``is_std``, and ``fid`` against the training images.

    The ``training_images``, uint8 ``[N,C,H,W]``, are measured once: ``reset`` and copies keep that. Each process
    measures its share.
    """

    logits: list[Tensor]

    def __init__(self, features: Features, training_images: Callable[[], Tensor], num_features: int = 2048) -> None:
        super().__init__(features, num_features, reset_real_features=False)
        self.training_images = training_images
        self.add_state("logits", [], dist_reduce_fx="cat")

    def update(self, estimates: Tensor) -> None:  # type: ignore[override]
        """Count ``estimates [N,C,H,W]`` in [0,1]."""
        if self.real_features_num_samples == 0:
            ranks = Ranks.current()
            for chunk in self.training_images()[ranks.rank :: ranks.world_size].split(CHUNK):
                self.count(chunk.to(self.device).expand(-1, 3, -1, -1), real=True)
        self.logits.append(self.count(to_bytes(estimates), real=False))

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        score = inception_score(dim_zero_cat(self.logits).cpu())
        values = {name: torch.tensor(value, device=self.device) for name, value in score.items()}
        return {**values, "fid": super().compute()}


def inception_score(logits: Tensor) -> dict[str, float]:
    """Inception Score (Salimans et al., 2016) of ``logits [N,classes]``, by torch-fidelity.

    Returns:
        ``is`` and ``is_std``, mean and deviation over 10 splits. They depend on the set of images, not on their order.
        With fewer images than splits, or logits that are not finite, ``is`` is NaN and alone.
    """
    if len(logits) < SPLITS or not logits.isfinite().all():
        return {"is": torch.nan}
    from torch_fidelity.metric_isc import isc_features_to_metric

    order = np.lexsort(logits[:, :4].T.numpy())  # torch-fidelity then shuffles, by its own seed
    values: dict[str, Any] = isc_features_to_metric(logits[torch.from_numpy(order)], SPLITS)
    return {"is": values["inception_score_mean"], "is_std": values["inception_score_std"]}
