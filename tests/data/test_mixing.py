"""Which image goes where: uniform, distinct, and a function of (seed, position) alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import binomtest, chisquare
from torch import Tensor

from surf_lightning.data.mixing import FixedMixtures, RandomMixtures, distinct, to_sources
from surf_lightning.functional.randomness import Ranks


def numbered(count: int) -> Tensor:
    """Images ``[N,1,1,2]`` that tell their own number."""
    number = torch.arange(count)
    return torch.stack([number % 256, number // 256], 1).to(torch.uint8).view(count, 1, 1, 2)


def numbers(sources: Tensor) -> Tensor:
    """The numbers ``[B,K]`` of the images that ``sources`` are."""
    low, high = ((sources + 1) * 127.5).round().long().flatten(2).unbind(-1)
    return low + 256 * high


@pytest.mark.parametrize(("size", "population"), [(1, 1), (2, 2), (2, 5), (3, 4), (4, 4), (5, 1000)])
def test_distinct_rows_have_no_two_alike(size: int, population: int) -> None:
    rows = distinct(500, size, population, torch.Generator().manual_seed(0))
    assert rows.shape == (500, size)
    assert rows.min() >= 0
    assert rows.max() < population
    assert all(len(set(row)) == size for row in rows.tolist())


@pytest.mark.parametrize(("size", "population"), [(2, 5), (3, 4), (3, 3)])
def test_every_ordered_row_of_distinct_indices_is_as_likely(size: int, population: int) -> None:
    rows = distinct(24_000, size, population, torch.Generator().manual_seed(1)).tolist()
    possible = list(itertools.permutations(range(population), size))
    counts = [sum(tuple(row) == one for row in rows) for one in possible]
    assert sum(counts) == 24_000
    assert chisquare(counts).pvalue > 1e-3


def test_more_images_than_there_are_cannot_be_distinct() -> None:
    with pytest.raises(ValueError, match="3 distinct images from 2"):
        distinct(1, 3, 2, torch.Generator())


def test_pixels_become_floats_between_minus_one_and_one() -> None:
    expected = torch.tensor([-1.0, -0.2, 0.2, 1.0])
    torch.testing.assert_close(to_sources(torch.tensor([0, 102, 153, 255], dtype=torch.uint8)), expected)


def test_a_batch_is_a_function_of_seed_and_number() -> None:
    batches = RandomMixtures(numbered(50), 3, 8, 5, Ranks())
    again = RandomMixtures(numbered(50), 3, 8, 5, Ranks())
    late, early = batches[10**9], batches[0]
    for name in ("mixtures", "sources"):
        assert torch.equal(again[0][name], early[name])
        assert torch.equal(again[10**9][name], late[name])
    assert not torch.equal(early["sources"], late["sources"])
    assert not torch.equal(early["sources"], RandomMixtures(numbered(50), 3, 8, 6, Ranks())[0]["sources"])
    assert torch.equal(early["mixtures"], early["sources"][:, 0] + early["sources"][:, 1] + early["sources"][:, 2])


def test_any_number_of_workers_prepares_the_same_batches() -> None:
    batches = RandomMixtures(numbered(50), 2, 4, 0, Ranks(), 0.5)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, sampler=range(3, 9), num_workers=2)
    for index, item in zip(range(3, 9), loader, strict=True):
        assert torch.equal(item["sources"], batches[index]["sources"])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_out_the_batch_that_one_rank_alone_would_have(world_size: int) -> None:
    whole = RandomMixtures(numbered(40), 2, 4 * world_size, 7, Ranks(), 0.5)[11]
    parts = [RandomMixtures(numbered(40), 2, 4, 7, Ranks(rank, world_size), 0.5)[11] for rank in range(world_size)]
    for name in ("mixtures", "sources"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])


def test_images_are_drawn_uniformly() -> None:
    batches = RandomMixtures(numbered(10), 2, 200, 0, Ranks())
    drawn = torch.cat([numbers(batches[index]["sources"]) for index in range(20)])
    assert (drawn[:, 0] != drawn[:, 1]).all()
    for column in drawn.T:
        assert chisquare(column.bincount(minlength=10)).pvalue > 1e-3


def test_half_of_the_mixtures_hold_one_image_alone() -> None:
    batches = RandomMixtures(numbered(30), 3, 500, 0, Ranks(), single_source_share=0.5)
    items = [batches[index] for index in range(8)]
    sources = torch.cat([item["sources"] for item in items])
    absent = (sources == 0).flatten(2).all(2)
    single = absent[:, 1]
    assert not absent[:, 0].any()
    assert torch.equal(absent[:, 2], single)
    assert binomtest(int(single.sum()), len(single), 0.5).pvalue > 1e-3
    mixtures = torch.cat([item["mixtures"] for item in items])
    assert torch.equal(mixtures[single], sources[single, 0])
    assert chisquare(numbers(sources[single, :1]).flatten().bincount(minlength=30)).pvalue > 1e-3


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_or_all_of_the_mixtures_hold_one_image_alone(share: float) -> None:
    sources = RandomMixtures(numbered(30), 2, 500, 0, Ranks(), share)[0]["sources"]
    assert bool((sources[:, 1] == 0).all()) == bool(share)


def test_ten_thousand_images_make_five_thousand_pairs_each_used_once() -> None:
    pairs = FixedMixtures(numbered(10_000), 2, 5_000, 256).chosen
    assert pairs.shape == (5_000, 2)
    assert sorted(pairs.flatten().tolist()) == list(range(10_000))


def test_fixed_mixtures_use_each_image_equally_often() -> None:
    chosen = FixedMixtures(numbered(6), 2, 9, 4).chosen
    assert chosen.flatten().bincount().tolist() == [3] * 6
    assert (chosen[:, 0] != chosen[:, 1]).all()


def test_fixed_batches_are_the_mixtures_in_order_whatever_their_size() -> None:
    images = numbered(21)
    whole = FixedMixtures(images, 2, 10, 10)
    assert len(whole) == 1
    parts = FixedMixtures(images, 2, 10, 4)
    assert [len(parts[index]["mixtures"]) for index in range(len(parts))] == [4, 4, 2]
    for name in ("mixtures", "sources"):
        assert torch.equal(torch.cat([parts[index][name] for index in range(3)]), whole[0][name])
    assert torch.equal(numbers(whole[0]["sources"]), whole.chosen)
    assert torch.equal(whole[0]["mixtures"], whole[0]["sources"].sum(1))
    assert torch.equal(FixedMixtures(images, 2, 7, 4).chosen, whole.chosen[:7])
    with pytest.raises(IndexError):
        parts[3]


def test_mixtures_hold_from_the_fewest_images_to_all_and_zeros_behind_them() -> None:
    images = numbered(50) + 1  # no source is 0 by itself
    batches = RandomMixtures(images, 4, 400, 5, Ranks(), fewest_sources=2)
    usual = RandomMixtures(images, 4, 400, 5, Ranks())[3]["sources"]
    fixed = FixedMixtures(images, 4, 400, 400, fewest_sources=2)
    for batch, whole in ((batches[3], usual), (fixed[0], FixedMixtures(images, 4, 400, 400)[0]["sources"])):
        present = batch["sources"].flatten(2).abs().amax(2) > 0
        counts = present.sum(1)
        assert torch.equal(present, torch.arange(4) < counts[:, None])
        assert chisquare(torch.bincount(counts, minlength=5)[2:]).pvalue > 1e-3
        assert counts.min() == 2
        assert torch.equal(batch["sources"][present], whole[present])
        torch.testing.assert_close(batch["mixtures"], batch["sources"].sum(1))
    parts = [RandomMixtures(images, 4, 200, 5, Ranks(rank, 2), fewest_sources=2)[3]["sources"] for rank in range(2)]
    assert torch.equal(torch.cat(parts), batches[3]["sources"])
