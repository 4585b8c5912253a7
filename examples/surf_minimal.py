"""SURF in one file of plain PyTorch: learn to separate overlapping digits from mixtures that nobody has separated.

Code Listing 1 of "Separation via Unsupervised Remixing Flow", after MixIT, with the hybrid teacher of Appendix D.3, on
scikit-learn's 8x8 digits. `python examples/surf_minimal.py` trains for some minutes on a CPU core. Made to be read and
copied: surf-lightning does the same faster, on any number of GPUs, and its tests compare with these functions.

Axes: B batch, K sources of a mixture, M outputs of MixIT, then the image.
"""

import copy
import itertools

import torch
from torch import nn
from torch.nn.functional import one_hot

K, M, STEPS = 2, 4, 3  # sources of a mixture, MixIT's outputs, Euler steps (5 in the paper)
TRAINING_NOISE, SAMPLING_NOISE = 2.0, 1.0  # deviations of the prior (1 in the paper)


def reorder(rows, permutation):  # out[b, i] = rows[b, permutation[b, i]]
    return torch.stack([row[p] for row, p in zip(rows, permutation, strict=True)])


def mixit_loss(estimates, references):
    """MixIT, in dB: the best way to sum estimates [B,M,...] to the references [B,2,...], Eq. (3) of its paper."""
    errors, energy = [], references.flatten(2).square().sum(2)
    for assignment in itertools.product(range(2), repeat=estimates.shape[1]):
        sums = torch.einsum("mn,bm...->bn...", one_hot(torch.tensor(assignment), 2).to(estimates), estimates)
        error = (references - sums).flatten(2).square().sum(2)
        errors.append((10 * torch.log10(error + 1e-3 * energy + 1e-8)).mean(1))
    return torch.stack(errors).min(0).values.mean()


def prior(mixtures, noise):
    """x0: the mean of the sources plus noise [B,K,...] that sums to zero, Eq. (4)."""
    return (mixtures / noise.shape[1])[:, None] + noise - noise.mean(1, keepdim=True)


@torch.no_grad()
def teacher_sample(teacher, frozen_teacher, mixtures, x0, beta, steps):
    """Euler steps of the hybrid teacher, D.3: straight to the frozen estimate while t < beta, then by the velocity."""
    x = x0
    for step in range(steps):
        t = x.new_full((len(x),), step / steps)
        x = x + (frozen_teacher(mixtures) - x0 if step / steps < beta else teacher(x, t, mixtures)) / steps
    return x


def remix(estimates, order):
    """All B*K estimates shuffled over the batch, Eq. (14)."""
    return estimates.flatten(0, 1)[order].view_as(estimates)


def optimal_pit(estimates, sources):
    """The permutation [B,K] that brings each example's sources nearest to its estimates, Eq. (22)."""
    candidates = list(itertools.permutations(range(sources.shape[1])))
    costs = [(estimates - sources[:, p]).flatten(1).square().sum(1) for p in candidates]
    return torch.tensor(candidates, device=estimates.device)[torch.stack(costs).argmin(0)]


def flow_residual(student, x0, sources, mixtures, t):
    """R_t of Eq. (23), and the permutation that aligned the sources: lines 10-12 of Algorithm 1."""
    with torch.no_grad():
        permutation = optimal_pit(x0 + student(x0, torch.zeros_like(t), mixtures), sources)
    x1, time = reorder(sources, permutation), t.view(-1, *[1] * (x0.ndim - 1))
    return student((1 - time) * x0 + time * x1, t, mixtures) - (x1 - x0), permutation


def rm_loss(residual):
    """ReMixIT, Eq. (24)."""
    return residual.square().mean()


def sr_loss(residual, permutation, order):
    """Self-Remixing, Eq. (30): residuals put back in their original mixtures, and summed there."""
    return remix(reorder(residual, permutation.argsort(1)), order.argsort()).sum(1).square().mean()


class ResNet(nn.Module):
    """Images [B,inputs,8,8] at times t [B] -> [B,outputs,8,8]."""

    def __init__(self, inputs, outputs, width=48, blocks=4):
        super().__init__()
        self.first, self.last = nn.Conv2d(inputs, width, 3, padding=1), nn.Conv2d(width, outputs, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        half = lambda: [nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)]  # noqa: E731
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.blocks = nn.ModuleList(nn.Sequential(*half(), *half()) for _ in range(blocks))

    def forward(self, x, t):
        angles = t[:, None] * 2.0 ** torch.arange(8)
        time, x = self.time(torch.cat([angles.sin(), angles.cos()], 1))[:, :, None, None], self.first(x)
        for number, block in enumerate(self.blocks):
            x = x + block(x + time)
            if number == len(self.blocks) // 2:
                pixels = self.norm(x.flatten(2).mT)
                x = x + self.attention(pixels, pixels, pixels, need_weights=False)[0].mT.view_as(x)
        return self.last(x)


class MixIT(ResNet):
    """Sums of images [B,1,8,8] -> M outputs that sum to them; called, merged to the K whose weakest is loudest."""

    def outputs(self, mixtures):
        raw = super().forward(mixtures / K, torch.zeros(len(mixtures)))[:, :, None]
        return raw + (mixtures[:, None] - raw.sum(1, keepdim=True)) / M

    def forward(self, mixtures):
        raw = self.outputs(mixtures)
        ways = one_hot(torch.tensor(list(itertools.product(range(K), repeat=M))), K).to(raw)
        sums = torch.einsum("amk,bm...->abk...", ways, raw)
        weakest = sums.flatten(3).square().sum(3).amin(2)
        return sums[weakest.argmax(0), torch.arange(len(raw))]


class Velocity(ResNet):
    """v(x_t, t, m), zero-sum: each source [B,k,1,8,8] sees itself and the mixture, and they change places with x_t."""

    def forward(self, x, t, mixtures):
        m = mixtures[:, None].expand_as(x)
        images = super().forward(torch.cat([x, m - x], 2).flatten(0, 1), t.repeat_interleave(x.shape[1])).view_as(x)
        v = images - x  # the network predicts the sources: x + (1 - t) v
        return (v - v.mean(1, keepdim=True)) / (1 - t).clamp_min(1e-3).view(-1, 1, 1, 1, 1)


def psnr(separate, sources):
    aligned = reorder(sources, optimal_pit(estimates := separate(sources.sum(1)).clamp(-1, 1), sources))
    return f"{float(-10 * ((estimates - aligned) / 2).square().flatten(2).mean(2).log10().mean()):.2f} dB"


def train(parameters, steps, loss_of_step, after=lambda step: None):
    optimizer = torch.optim.Adam(parameters := list(parameters), 1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of_step(step).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        after(step)


def main(mixit_steps=1000, surf_steps=3000, batch=32, decay=0.998):
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1  # [N,1,8,8] in [-1,1]
    images, test = images[torch.randperm(len(images))].split([1497, 300])
    test = test.view(-1, K, 1, 8, 8)

    def start(mixtures, deviation):
        return prior(mixtures, deviation * torch.randn(len(mixtures), K, 1, 8, 8))

    def separate(mixtures, beta=0.0):
        return teacher_sample(teacher, mixit, mixtures, start(mixtures, SAMPLING_NOISE), beta, STEPS)

    def mixtures(count, single=0.0):  # sums of K images; a share holds one alone, which MixIT is not told (D.4)
        sources = images[torch.randint(len(images), (count, K))]
        sources[torch.rand(count) < single, 1:] = 0
        return sources.sum(1)

    def mixit_step(step):
        pairs = mixtures(2 * batch, single=0.5).view(-1, 2, 1, 8, 8)
        return mixit_loss(mixit.outputs(pairs.sum(1)), pairs)

    def surf_step(step):  # Algorithm 1, beta falling from 1 to 0 over 40% of the steps
        m, order, t = mixtures(batch), torch.randperm(batch * K), torch.rand(batch)
        beta = max(0.0, 1 - step / (0.4 * surf_steps))
        sources = remix(separate(m, beta), order)
        x0 = start(sources.sum(1), TRAINING_NOISE)
        residual, _ = flow_residual(student, x0, sources, sources.sum(1), t)
        # 1 - t is the weight of Eq. (29), for a network that predicts sources
        return rm_loss((1 - t).view(-1, 1, 1, 1, 1) * residual)  # or sr_loss(..., permutation, order)

    def follow(step):  # line 16, warmed up: the teacher must not carry the random beginning
        alpha = min(decay, (1 + step) / (10 + step))
        for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
            old.data.lerp_(new.data, 1 - alpha)

    mixit, student = MixIT(1, M), Velocity(2, 1)
    teacher = copy.deepcopy(student).requires_grad_(False)
    train(mixit.parameters(), mixit_steps, mixit_step)
    mixit.requires_grad_(False)
    print("mean of the sources", psnr(lambda m: (m / K)[:, None].expand(-1, K, -1, -1, -1), test))
    print("MixIT", psnr(mixit, test))
    train(student.parameters(), surf_steps, surf_step, follow)
    print("SURF", psnr(separate, test))


if __name__ == "__main__":
    main()
