"""A trained model as a user holds it. Axes: B batch, K sources, M outputs, *S the signal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from surf_lightning import __version__
from surf_lightning.errors import UserError
from surf_lightning.functional.flow import euler, mixture_consistent, prior_from_noise, sample_prior
from surf_lightning.functional.losses import check_deals
from surf_lightning.functional.selection import first_outputs, merge_outputs, most_energetic
from surf_lightning.inference.checkpoint import KEY, PREFIX, build, weights_of
from surf_lightning.inference.hub import local_path, read_trained
from surf_lightning.networks.base import ConstantNoise, PriorNoise, RegressionNetwork, VelocityNetwork, serializable

Selection = Literal["loudest", "merged", "first"]
SELECTIONS = {"loudest": most_energetic, "merged": merge_outputs, "first": first_outputs}


class Separator(nn.Module, ABC):
    """A network with all that turns its output into sources."""

    network: nn.Module
    num_sources: int
    signal: dict[str, Any]

    @abstractmethod
    def forward(self, mixtures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``mixtures [B,*S]`` (sums of sources) -> ``estimates [B,K,*S]`` that sum to them; keeps gradients."""

    def check(self, mixtures: Tensor) -> None:
        """Raises UserError where the network does not do what its kind promises, on any ``mixtures [B,*S]``."""

    @torch.no_grad()
    def separate(self, mixtures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Separate mixtures into their sources.

        Args:
            mixtures: sums of K sources, ``[B,*S]``; images in units where a source lies in [-1,1].
            generator: makes the estimates of a flow reproducible; a regression draws nothing.

        Returns:
            ``estimates [B,K,*S]``, which sum to the mixtures.

        Raises:
            ValueError: the mixtures have another shape than those that a loaded separator was trained on.
        """
        if (signal := getattr(self, "signal", None)) is not None:
            shape = signal["shape"] if signal["kind"] == "image" else ["T"]
            if mixtures.ndim != 1 + len(shape) or (shape != ["T"] and list(mixtures.shape[1:]) != shape):
                expected = ", ".join(map(str, ["B", *shape]))
                raise ValueError(f"this separator takes mixtures [{expected}], not {list(mixtures.shape)}")
        return self(mixtures, generator)

    @torch.no_grad()
    def separate_from(self, mixtures: Tensor, noise: Tensor) -> Tensor:
        """As ``separate``; a flow starts from this standard normal ``noise [B,K,*S]``, regressions ignore it."""
        return self(mixtures)


@serializable
class RegressionSeparator(Separator):
    """K estimates of the M outputs of a regression network, the residual shared equally among them.

    Args:
        network: of M outputs.
        num_sources: K, at most M.
        selection: how M outputs become K: the ``loudest`` K, all of them ``merged`` into K sums, see
            ``functional.selection.merge_outputs``, or the ``first`` K - 1 and the sum of the others.

    Raises:
        ValueError: the network has fewer outputs, too many to be ``merged``, or is for another number of sources.
    """

    def __init__(self, network: RegressionNetwork, num_sources: int, selection: Selection = "loudest") -> None:
        super().__init__()
        if network.num_outputs < num_sources:
            raise ValueError(f"a network of {network.num_outputs} outputs cannot separate {num_sources} sources")
        divisor = getattr(network, "num_sources", num_sources)
        if divisor != num_sources:
            raise ValueError(f"the network is for mixtures of {divisor} sources (its num_sources), not {num_sources}")
        if selection == "merged" and network.num_outputs > num_sources:
            check_deals(network.num_outputs, num_sources)  # now, not at the first validation
        self.network, self.num_sources = network, num_sources
        self.select = SELECTIONS[selection]

    def forward(self, mixtures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return mixture_consistent(self.select(self.network(mixtures), self.num_sources), mixtures)


@serializable
class FlowSeparator(Separator):
    """A flow from the prior to the sources, sampled by ``num_steps`` uniform Euler steps.

    Args:
        network: the velocity.
        num_steps: Euler steps.
        noise: standard deviation of the prior, 1 if None.
        sampling_noise: what that deviation is multiplied by where sources are sampled. Below 1, samples keep nearer to
            the mean than those of the posterior; training is not touched by it.
    """

    def __init__(
        self, network: VelocityNetwork, num_steps: int = 5, noise: PriorNoise | None = None, sampling_noise: float = 1.0
    ) -> None:
        super().__init__()
        if sampling_noise < 0 or num_steps < 1 or not isinstance(num_steps, int):
            raise ValueError(
                f"sampling_noise ({sampling_noise}) must be at least 0, num_steps ({num_steps}) whole and at least 1"
            )
        self.network: VelocityNetwork = network
        self.num_sources, self.num_steps, self.sampling_noise = network.num_sources, num_steps, sampling_noise
        self.noise: PriorNoise = noise or ConstantNoise()

    @torch.no_grad()
    def check(self, mixtures: Tensor) -> None:
        x = torch.stack([mixtures / self.num_sources] * self.num_sources, 1)
        velocity = self.network(x, torch.full_like(mixtures.flatten(1)[:, 0], 0.5), mixtures)
        if velocity.shape != x.shape:
            raise UserError(f"the network's velocity is {list(velocity.shape)} for sources of {list(x.shape)}")
        tolerance = 0.01 * velocity.abs().max() + 1e-3 * mixtures.abs().max()
        if not velocity.sum(1).abs().max() <= tolerance:  # NaN neither
            raise UserError(
                "the network's velocity does not sum to zero over the sources, so that the estimates would not sum to "
                "the mixture: project it (functional.flow.project_zero_sum), or let one of the heads do so"
            )

    def prior(self, mixtures: Tensor, noise: Tensor) -> Tensor:
        """x0 of Eq. (4) for ``mixtures [B,*S]`` from standard normal ``noise``, both it and x0 ``[B,K,*S]``."""
        return prior_from_noise(mixtures, self.noise(mixtures, self.num_sources) * noise)

    def forward(self, mixtures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        scale = self.sampling_noise * self.noise(mixtures, self.num_sources)
        x0 = sample_prior(mixtures, self.num_sources, scale, generator)
        return euler(self.network, x0, mixtures, self.num_steps)

    @torch.no_grad()
    def separate_from(self, mixtures: Tensor, noise: Tensor) -> Tensor:
        return euler(self.network, self.prior(mixtures, self.sampling_noise * noise), mixtures, self.num_steps)


def in_micro_batches(function: Callable[..., Tensor], size: int | None, *batches: Tensor) -> Tensor:
    """``function(*batches)``, evaluated on ``size`` examples at a time; ``batches`` are alike in their first axis.

    ``function`` must treat examples independently. Where gradients are wanted, each part is evaluated again in the
    backward pass instead of keeping its activations, from the same random numbers, so that the peak of memory is a
    part's, while the loss may couple all rows of the batch, as Self-Remixing's does.
    """
    if size is None or len(batches[0]) <= size:
        return function(*batches)
    parts = zip(*(batch.split(size) for batch in batches), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([recompute(function, *part, use_reentrant=False) for part in parts])
    return torch.cat([function(*part) for part in parts])


def compile_networks(module: nn.Module) -> None:
    """Compile the network of every separator in ``module``, in place: the names of parameters stay as they are."""
    # DDP would cut the graphs at the bounds of its buckets, to send gradients early, and refuses checkpointing in them.
    torch._dynamo.config.optimize_ddp = False
    # One class may be frozen teacher, teacher and student, with and without gradients, of two or three batch sizes.
    torch._dynamo.config.recompile_limit = 32
    for part in module.modules():
        if isinstance(part, Separator):
            part.network.compile()


def load_separator(
    checkpoint: str | PathLike[str], device: str | torch.device = "cpu", trust: bool = False
) -> Separator:
    """The separator of a checkpoint written by any method of this package, in evaluation mode. No pickle is executed.

    Args:
        checkpoint: a run's checkpoint, a folder written by ``surf export``, or such a folder on the Hugging Face Hub by
            the name of its repository, ``user/name``.
        device: to load it to.
        trust: import classes from outside this package, if it needs any.

    Returns:
        A separator whose ``signal`` says what it separates: the kind, and the shape or the sample rate.

    Raises:
        UserError: there is no such file, or it is no checkpoint of this package, or of a version that does not fit.
    """
    record, separator = read_separator(checkpoint, trust)
    separator.signal = record["signal"]
    return separator.to(device).eval()


def read_separator(checkpoint: str | PathLike[str], trust: bool = False) -> tuple[dict[str, Any], Separator]:
    """What ``load_separator`` loads, and the checkpoint's record of it, with the steps that it was trained for."""
    checkpoint = local_path(checkpoint)
    content = read_trained(checkpoint)
    record = content[KEY]
    try:
        separator = build(record["separator"], weights_of(content, PREFIX), trust)
    except UserError as error:
        version = record["version"][:20]
        other = "" if version == __version__ else f", of version {version}, does not fit this version, {__version__}"
        raise UserError(f"{checkpoint}{other}: {error}") from error
    if not isinstance(separator, Separator):
        raise UserError(f"{checkpoint} describes a {type(separator).__name__}, which separates nothing")
    return {**record, "steps": content.get("global_step")}, separator
