"""Operations and memory of a computation, counted and not measured: the same on every machine."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count

from surf_lightning.functional import losses, permutation
from surf_lightning.networks import locoformer
from surf_lightning.networks.band_split import mel_band_bins
from surf_lightning.networks.stft import STFT

aten = torch.ops.aten


def count_flops(function: Callable[[], Any]) -> int:
    """Operations of products of matrices, convolutions and attention in one call; an addition is one, as a product.

    PyTorch's counter, set right where it takes the gradient of a grouped convolution's weights for that of a full one,
    and taught the attention of CPUs.
    """
    mapping = {
        aten.convolution_backward: _convolution_backward,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        function()
    return counter.get_total_flops()


def _convolution_backward(
    grad_shape: list[int], x_shape: list[int], w_shape: list[int], *rest: Any, out_shape: Any = None, **_: Any
) -> int:
    transposed, output_mask = rest[4], rest[7]
    forward = conv_flop_count(x_shape, w_shape, grad_shape, transposed=transposed)
    return forward * (output_mask[0] + output_mask[1])


def _attention(query: list[int], key: list[int], value: list[int], *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: list[int], query: list[int], key: list[int], value: list[int], *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


@contextlib.contextmanager
def without_data() -> Iterator[None]:
    """Tensors made here have shapes and no contents: a network of any size is counted in seconds."""

    def inverse(self: STFT, spectrum: Tensor, length: int) -> Tensor:
        """In place of istft, which looks at the window's values; a transform's own operations are not counted."""
        return spectrum.flatten(-3).sum(-1, keepdim=True).expand(*spectrum.shape[:-3], length)

    def bands(n_fft: int, sample_rate: int, mel_bands: int) -> list[list[int]]:
        """The bins of the bands, which are read from the contents of torchaudio's filters."""
        with unset_fake_temporarily():
            return mel_band_bins(n_fft, sample_rate, mel_bands)

    patches = mock.patch.object(STFT, "inverse", inverse), mock.patch.object(locoformer, "mel_band_bins", bands)
    tables = (permutation._all_permutations, losses.subsets, losses.partitions)  # made once, with contents or without
    try:
        for table in tables:
            table.cache_clear()
        with FakeTensorMode(), patches[0], patches[1]:
            yield
    finally:
        for table in tables:
            table.cache_clear()


def empty_weights(module: nn.Module, device: torch.device | str = "cpu") -> None:
    """Replace the parameters and buffers of ``module`` by such without contents, on ``device``: within without_data().

    For modules that are built outside of it, because they copy their networks.
    """
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            setattr(part, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))


class LiveBytes(TorchDispatchMode):
    """The bytes of all tensors made in this context that are alive together, at most: ``peak``."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def gigabytes(size: float) -> float:
    """Of 2^30 bytes."""
    return size / math.pow(2, 30)
