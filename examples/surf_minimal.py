"""SURF in one file of plain PyTorch: learn to separate overlapping digits without ever seeing one alone.

Algorithm 1, Code Listing 1 and Appendix D.3 of "Separation via Unsupervised Remixing Flow" on scikit-learn's 8x8 digits:
`python examples/surf_minimal.py` trains for a few minutes on one CPU core. Made to be read and copied; surf-lightning
does the same faster, on any number of GPUs, and is tested against these functions.

Axes: B batch, K sources, M outputs of MixIT, C H W.
"""

import copy
import itertools

import torch
from torch import nn

K, M, SIDE = 2, 4, 8


# -- the method --


def mixit_loss(estimates, references):
    """MixIT, Eq. (3) of its paper, in dB: the best way to sum estimates [B,M,...] to references [B,2,...]."""
    errors = []
    for assignment in itertools.product(range(2), repeat=estimates.shape[1]):
        matrix = nn.functional.one_hot(torch.tensor(assignment), 2).T.to(estimates)
        square = (references - torch.einsum("nm,bm...->bn...", matrix, estimates)).flatten(2).square().sum(2)
        errors.append((10 * torch.log10(square + 1e-3 * references.flatten(2).square().sum(2) + 1e-8)).mean(1))
    return torch.stack(errors).min(0).values.mean()


def prior(mixtures, noise):
    """x0 = m/K + zero-sum noise, Eq. (4), for noise [B,K,...]."""
    return (mixtures / noise.shape[1])[:, None] + noise - noise.mean(1, keepdim=True)


@torch.no_grad()
def teacher_sample(teacher, frozen_teacher, mixtures, x0, beta, steps):
    """Euler steps of the hybrid teacher, D.3: straight to the MixIT estimate while t < beta, then its own velocity."""
    x = x0
    for step in range(steps):
        t = torch.full((len(x),), step / steps)
        x = x + (frozen_teacher(mixtures) - x0 if step / steps < beta else teacher(x, t, mixtures)) / steps
    return x


def remix(estimates, order):
    """Shuffle all B*K estimates over the batch, Eq. (14)."""
    return estimates.flatten(0, 1)[order].view_as(estimates)


def optimal_pit(estimates, sources):
    """The permutation [B,K] of each example's sources that is nearest to its estimates, Eq. (22)."""
    candidates = list(itertools.permutations(range(sources.shape[1])))
    costs = torch.stack([(estimates - sources[:, p]).flatten(1).square().sum(1) for p in candidates])
    return torch.tensor(candidates)[costs.argmin(0)]


def reorder(rows, permutation):
    return torch.stack([row[p] for row, p in zip(rows, permutation, strict=True)])


def flow_residual(student, x0, sources, mixtures, t):
    """R_t of Eq. (23) and the alignment Υ, lines 10-12 of Algorithm 1."""
    with torch.no_grad():
        permutation = optimal_pit(x0 + student(x0, torch.zeros_like(t), mixtures), sources)
    x1 = reorder(sources, permutation)
    weight = t.view(-1, *[1] * (x0.ndim - 1))
    return student((1 - weight) * x0 + weight * x1, t, mixtures) - (x1 - x0), permutation


def rm_loss(residual):
    """ReMixIT, Eq. (24)."""
    return residual.square().mean()


def sr_loss(residual, permutation, order):
    """Self-Remixing, Eq. (30): residuals back in their original mixtures, summed there."""
    unaligned = reorder(residual, permutation.argsort(1))
    return unaligned.flatten(0, 1)[order.argsort()].view_as(residual).sum(1).square().mean()


def ema_update(teacher, student, decay):
    """Line 16 of Algorithm 1."""
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.data.mul_(decay).add_(new.data, alpha=1 - decay)


# -- networks --


class Trunk(nn.Module):
    """A residual network on images [B,C,8,8], told a time."""

    def __init__(self, inputs, outputs, width=48, blocks=5):
        super().__init__()
        self.first, self.last = nn.Conv2d(inputs, width, 3, padding=1), nn.Conv2d(width, outputs, 3, padding=1)
        self.times = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width * blocks))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
                          nn.Conv2d(width, width, 3, padding=1)) for _ in range(blocks)
        )  # fmt: skip

    def forward(self, x, t):
        angles = t[:, None] * 2 ** torch.arange(8)
        times = self.times(torch.cat([angles.sin(), angles.cos()], 1)).chunk(len(self.blocks), 1)
        x = self.first(x)
        for block, time in zip(self.blocks, times, strict=True):
            x = x + block(x + time[:, :, None, None])
        return self.last(x)


class MixIT(nn.Module):
    """Mixtures [B,1,8,8] -> M estimates; after training, the M are summed to the K that are loudest."""

    def __init__(self):
        super().__init__()
        self.trunk = Trunk(1, M)

    def outputs(self, mixtures):
        raw = self.trunk(mixtures / K, torch.zeros(len(mixtures)))[:, :, None]
        return raw + ((mixtures - raw.sum(1)) / M)[:, None]

    def forward(self, mixtures):
        raw = self.outputs(mixtures)
        kept = reorder(raw, raw.flatten(2).square().sum(2).topk(K).indices)
        return kept + ((mixtures - kept.sum(1)) / K)[:, None]


class Velocity(nn.Module):
    """v(x_t, t, m): each source sees itself, the sum of the others and the mixture; zero-sum, equivariant."""

    def __init__(self):
        super().__init__()
        self.trunk = Trunk(3, 1)

    def forward(self, x, t, mixtures):
        m = mixtures[:, None].expand_as(x)
        raw = self.trunk(torch.cat([x, m - x, m / K], 2).flatten(0, 1), t.repeat_interleave(K)).view_as(x)
        estimate = raw - x  # the network estimates sources; divided by 1 - t it is a velocity
        return (estimate - estimate.mean(1, keepdim=True)) / (1 - t).clamp_min(1e-3).view(-1, 1, 1, 1, 1)


# -- training --


def psnr(separate, sources):
    """Of [0,1] images, in dB, averaged over images."""
    estimates = separate(sources.sum(1))
    aligned = reorder(sources, optimal_pit(estimates, sources))
    return float(-10 * ((estimates.clamp(-1, 1) - aligned) / 2).square().flatten(2).mean(2).log10().mean())


def main(mixit_steps=1500, surf_steps=2500, batch=64, steps=3, noise_scale=2.0, decay=0.995):
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    train, test = images[torch.randperm(len(images))].split([1497, 300])
    test = test.view(-1, K, 1, SIDE, SIDE)

    def mixtures(count):
        return train[torch.randint(len(train), (count, K))].sum(1)

    mixit = MixIT()
    optimizer = torch.optim.Adam(mixit.parameters(), 1e-3)
    for step in range(mixit_steps):
        pairs = mixtures(batch).view(-1, 2, 1, SIDE, SIDE)
        loss = mixit_loss(mixit.outputs(pairs.sum(1)), pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mixit.eval().requires_grad_(False)
    print(f"m/K {psnr(lambda m: (m / K)[:, None].expand(-1, K, -1, -1, -1), test):.2f} dB, MixIT {psnr(mixit, test):.2f} dB")

    student = Velocity()
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    for step in range(surf_steps):
        beta = max(0.0, 1 - step / (0.4 * surf_steps))
        m = mixtures(batch)
        x0 = prior(m, noise_scale * torch.randn(batch, K, 1, SIDE, SIDE))
        order = torch.randperm(batch * K)
        sources = remix(teacher_sample(teacher, mixit, m, x0, beta, steps), order)
        t = torch.rand(batch)
        x0 = prior(sources.sum(1), noise_scale * torch.randn_like(sources))
        residual, _ = flow_residual(student, x0, sources, sources.sum(1), t)
        loss = rm_loss((1 - t).view(-1, 1, 1, 1, 1) * residual)  # weighted as in Eq. (29): the error of the sources
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema_update(teacher, student, min(decay, (1 + step) / (10 + step)))

    def separate(m):
        return teacher_sample(teacher, mixit, m, prior(m, noise_scale * torch.randn(len(m), K, 1, SIDE, SIDE)), 0.0, steps)

    print(f"SURF {psnr(separate, test):.2f} dB")


if __name__ == "__main__":
    main()
