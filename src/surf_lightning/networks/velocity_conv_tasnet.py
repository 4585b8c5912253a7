"""Conv-TasNet as the velocity network of a flow, for CPUs. Axes: B batch, K sources, T samples, E filters, N frames."""

from __future__ import annotations

from torch import Tensor, nn

from surf_lightning.functional.flow import expand_like
from surf_lightning.networks.base import SourceHead, VelocityNetwork, serializable
from surf_lightning.networks.conv_tasnet import MaskedFilterbank, ScaledConv, TemporalNetwork
from surf_lightning.networks.locoformer_layers import TimeEmbedding
from surf_lightning.networks.stft import rms


@serializable
class VelocityConvTasNet(VelocityNetwork):
    """The sources as masks of the mixture; the masks from the mixture, the noisy sources and t.

    The outputs are ordered: unlike :class:`MBLocoformer`, it need not learn to tell the sources apart by their noise,
    and so is of use after minutes of training. The pairing at t = 0 then depends on m and x1 alone, which makes x0
    independent of x1 given m: the noisy sources enter times t, and the estimate at t = 0 is a function of m. A sampler
    of one step gives this estimate, the mean, whatever the noise; samples that differ take two steps or more.

    Levels: x_t and m/K are divided by the root mean square of each m/K and the estimates are multiplied by it, so that
    a gain on both is a gain on the velocity.

    Args:
        num_sources: K.
        filters: E.
        frame: length of the filters, in samples.
        hop: step of the filters, in samples.
        bottleneck: channels between the blocks.
        hidden: channels inside the blocks.
        kernel: frames of the depthwise convolutions, odd.
        repeats: how often the sequence of dilations is gone through.
        blocks: blocks of each repeat, of dilations 1, 2, 4, ..., 2^(blocks - 1).
        skip_residuals: links between repeats, see :class:`TemporalNetwork`.

    Raises:
        ValueError: ``hop`` does not divide ``frame``, or ``kernel`` is even.
    """

    def __init__(
        self,
        num_sources: int,
        filters: int = 256,
        frame: int = 40,
        hop: int = 20,
        bottleneck: int = 256,
        hidden: int = 512,
        kernel: int = 3,
        repeats: int = 4,
        blocks: int = 8,
        skip_residuals: bool = False,
    ) -> None:
        super().__init__()
        self.num_sources = num_sources
        self.filterbank = MaskedFilterbank(filters, frame, hop)
        self.dense = ScaledConv(filters, bottleneck, bias=True)
        self.noisy = ScaledConv(num_sources * filters, bottleneck)
        self.time = TimeEmbedding(bottleneck)
        self.tcn = TemporalNetwork(bottleneck, hidden, kernel, repeats, blocks, skip_residuals)
        self.masks = nn.Conv1d(bottleneck, num_sources * filters, 1, bias=False)
        self.head = SourceHead()

    def forward(self, x_t: Tensor, t: Tensor, mixtures: Tensor) -> Tensor:
        """``x_t [B,K,T]``, ``t [B]`` in [0,1], ``mixtures [B,T]`` (sums), any T -> zero-sum ``velocity [B,K,T]``."""
        means = mixtures[:, None] / self.num_sources
        scale = rms(means)
        coefficients = self.filterbank.encode((means / scale)[:, 0])
        noisy = self.filterbank.encode((x_t / scale).flatten(0, 1)).unflatten(0, (-1, self.num_sources)).flatten(1, 2)
        features = self.dense(coefficients) + self.time(t)[..., None] + expand_like(t, noisy) * self.noisy(noisy)
        estimates = self.filterbank.decode(self.masks(self.tcn(features)), coefficients, mixtures.shape[-1])
        return self.head(self.num_sources * scale * estimates, x_t, t)

    def residual_weight(self, t: Tensor) -> Tensor:
        return self.head.residual_weight(t)
