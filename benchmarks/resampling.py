"""FIR resampling against the straightforward formulation, alone and in NCSN++. Axes: N batch, C channels, H W."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from counting import count_flops
from machine import Machine, name
from rows import Timing
from surf_step import CIFAR
from timing import alternating, compare
from torch import Tensor, nn

from surf_lightning.networks import SharedNCSNpp
from surf_lightning.networks.image_layers import FIRDown, FIRResample, FIRUp


def upfirdn(x: Tensor, kernel: Tensor, up: int, down: int, padding: tuple[int, int]) -> Tensor:
    """Zeros put between the samples, zeros put around, ``kernel [1,1,h,w]`` over every channel, samples left out.

    ``x [N,C,H,W]``; ``padding`` before and after, in both axes. The kernel is symmetric, so it need not be turned.
    """
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, h, up, w, up)
    spread[:, :, :, 0, :, 0] = x
    padded = F.pad(spread.view(n, c, h * up, w * up), [*padding, *padding])
    filtered = F.conv2d(padded, kernel.to(x.dtype).expand(c, 1, *kernel.shape[2:]), groups=c)
    return filtered[:, :, ::down, ::down]


class PlainDown(FIRDown):
    """FIRDown, every sample filtered and every second thrown away."""

    def forward(self, x: Tensor) -> Tensor:
        return upfirdn(x, self.kernel, 1, 2, (1, 1))


class PlainUp(FIRUp):
    """FIRUp, the zeros filtered as well."""

    def forward(self, x: Tensor) -> Tensor:
        return upfirdn(x, self.kernel, 2, 1, (2, 1))


def with_plain_resampling(network: nn.Module) -> nn.Module:
    """A copy with every FIR layer in its plain form."""
    plain = copy.deepcopy(network)
    for module in list(plain.modules()):
        for label, child in module.named_children():
            if isinstance(child, FIRResample):
                setattr(module, label, PlainDown() if isinstance(child, FIRDown) else PlainUp())
    return plain


def run(machine: Machine) -> Iterator[Timing]:
    """Each layer with gradient, then all of NCSN++ of the CIFAR size, forward and backward."""
    device = machine.device
    torch.manual_seed(0)
    batch = 16 if machine.small else 256
    for label, ours, theirs in (("down", FIRDown(), PlainDown()), ("up", FIRUp(), PlainUp())):
        x = torch.randn(batch, 64, 32, 32, device=device).requires_grad_()
        ours, theirs = ours.to(device), theirs.to(device)
        y = ours(x)
        _check(y, theirs(x))
        row = compare(_with_gradient(ours, x), _with_gradient(theirs, x), device)
        floor = machine.floor_ms(bytes_moved=2 * (x.nbytes + y.nbytes))
        yield Timing(
            f"FIR {label} by 2, with gradient, {list(x.shape)}", **row, floor_ms=floor, remark="plain: upfirdn"
        )
    yield from whole_network(machine, batch=2 if machine.small else 64)


def whole_network(machine: Machine, batch: int) -> Iterator[Timing]:
    """The same numbers, then the times of both."""
    device = machine.device
    network = SharedNCSNpp(num_sources=2, **CIFAR).to(device)
    for parameter in network.parameters():  # the layers that start at zero would hide a difference
        parameter.data += 0.01 * torch.randn_like(parameter)
    plain = with_plain_resampling(network).to(device)
    x = torch.randn(batch, 2, 3, 32, 32, device=device)
    inputs = (x, torch.rand(batch, device=device), x.sum(1))
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        _check(network(*inputs), plain(*inputs))
    for precision in machine.precisions():

        def step(module: nn.Module, precision: torch.dtype = precision) -> Callable[[], None]:
            def forward_backward() -> None:
                with machine.autocast(precision):
                    loss = module(*inputs).square().mean()
                loss.backward()

            return forward_backward

        flops = count_flops(step(network))
        floor = machine.floor_ms(flops, precision=precision)
        case = f"NCSN++ forward and backward, CIFAR, B = {batch}, {name(precision)}"
        row = compare(step(network), step(plain), device, 3 if machine.small else 7)
        yield Timing(case, **row, floor_ms=floor, remark=f"plain: upfirdn; {_share(floor, row['ours_ms'])}")
        last = copy.deepcopy(network).to(memory_format=torch.channels_last)
        ours, theirs = alternating([step(last), step(network)], device, 3 if machine.small else 7)
        case = f"the same with weights in channels-last memory, {name(precision)}"
        remark = f"plain: as above; {_share(floor, ours)}"
        yield Timing(case, ours, theirs, theirs / ours, floor_ms=floor, remark=remark)


def _with_gradient(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    def call() -> None:
        x.grad = None
        layer(x).square().sum().backward()

    return call


def _check(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.detach().abs().max()))


def _share(floor: float, time: float) -> str:
    return f"{floor / time:.0%} of the peak"
