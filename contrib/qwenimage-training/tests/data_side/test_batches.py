"""Buckets and batches: every row once an epoch, one size a batch, the same rest after a resume."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenimage_core.errors import RequestError
from qwenimage_training.data.arguments import DataArguments
from qwenimage_training.data.batches import BatchSampler, Position
from qwenimage_training.data.buckets import TargetSizes, choose_bucket, cut_away, plan_buckets

steps = st.integers(1, 16).map(lambda n: 16 * n)
sides = st.integers(16, 4000)
sizes = st.lists(st.sampled_from([(64, 64), (32, 128), (128, 32), (48, 48)]), min_size=1, max_size=60)
deals = st.fixed_dictionaries(
    {"batch_size": st.integers(1, 9), "seed": st.integers(0, 2**32), "shuffle": st.booleans()}
)


@settings(deadline=None)  # machines under test are busy
@given(step=steps, cap=st.integers(256**2, 2**22), aspect=st.floats(1, 10))
def test_buckets_are_multiples_within_the_cap_and_come_in_both_orientations(
    step: int, cap: int, aspect: float
) -> None:
    found = plan_buckets(cap, step, aspect)
    assert found
    assert len(set(found)) == len(found)
    for width, height in found:
        assert width % step == height % step == 0
        assert 0 < width * height <= cap
        assert max(width, height) <= aspect * min(width, height)
        assert (height, width) in found


def test_buckets_of_a_megapixel_are_near_it() -> None:
    found = plan_buckets(1048576, 64, 4.0)
    assert {(1024, 1024), (512, 2048), (2048, 512)} <= set(found)
    assert min(width * height for width, height in found) > 0.85 * 1048576


@settings(deadline=None)  # machines under test are busy
@given(source=st.tuples(sides, sides), enlarge=st.floats(1, 3))
def test_a_bucket_never_enlarges_beyond_what_is_allowed(source, enlarge: float) -> None:
    found = choose_bucket(source, plan_buckets(512**2, 64, 4.0), enlarge)
    if found is not None:
        assert max(found[0] / source[0], found[1] / source[1]) <= enlarge
        assert 0 <= cut_away(source, found) < 1


def test_a_picture_goes_to_the_bucket_of_its_aspect_and_a_small_one_keeps_its_size() -> None:
    chosen = TargetSizes(DataArguments(buckets=True)).of
    assert chosen((3000, 3000), "row") == (1024, 1024)
    assert chosen((4096, 1024), "row") == (2048, 512)
    assert chosen((520, 515), "row") == (512, 512)
    assert TargetSizes(DataArguments(buckets=True, bucket_enlarge=2.0)).of((520, 515), "row") == (1024, 1024)


@settings(deadline=None)  # machines under test are busy
@given(sizes=sizes, deal=deals, world=st.integers(1, 4), epoch=st.integers(0, 5))
def test_every_row_once_an_epoch_and_one_size_a_batch(sizes, deal, world: int, epoch: int) -> None:
    samplers = [BatchSampler(sizes, rank=rank, world=world, **deal) for rank in range(world)]
    for sampler in samplers:
        sampler.start(Position(epoch))
    shares = [list(sampler) for sampler in samplers]
    assert len({len(share) for share in shares}) == 1  # no process waits for another
    assert [len(s) for s in samplers] == [len(share) for share in shares]
    for batch in (batch for share in shares for batch in share):
        assert 1 <= len(batch) <= deal["batch_size"]
        assert len({sizes[index] for index in batch}) == 1
    dealt = [tuple(batch) for round_ in zip(*shares, strict=True) for batch in round_]
    distinct = list(dict.fromkeys(dealt))
    assert sorted(index for batch in distinct for index in batch) == list(range(len(sizes)))
    assert len(dealt) - len(distinct) < world  # padding fills one round at most
    assert dealt[: len(distinct)] == distinct  # and stands at its end


@settings(deadline=None)  # machines under test are busy
@given(sizes=sizes, deal=deals, epoch=st.integers(0, 3), data=st.data())
def test_a_resumed_run_gets_the_rest(sizes, deal, epoch: int, data) -> None:
    whole = BatchSampler(sizes, **deal)
    whole.start(Position(epoch))
    batches = list(whole)
    done = data.draw(st.integers(0, len(batches)))
    resumed = BatchSampler(sizes, **deal)
    resumed.start(Position(epoch, done))
    assert list(resumed) == batches[done:]
    assert len(resumed) == len(batches) - done
    assert list(resumed) == batches[done:]  # reading changes nothing


def test_few_batches_are_incomplete() -> None:
    sizes = [(64, 64)] * 21 + [(32, 128)] * 10
    lengths = Counter(len(batch) for batch in BatchSampler(sizes, 4, seed=3))
    assert lengths == {4: 7, 1: 1, 2: 1}


def test_epochs_and_seeds_differ_and_the_order_of_rows_is_kept_on_request() -> None:
    sizes = [(64, 64)] * 100

    def order(seed: int, epoch: int, shuffle: bool = True) -> list[int]:
        sampler = BatchSampler(sizes, 1, seed=seed, shuffle=shuffle)
        sampler.start(Position(epoch))
        return [index for batch in sampler for index in batch]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert order(0, 0, shuffle=False) == list(range(100))


@pytest.mark.parametrize("position", [Position(0, 3), Position(-1, 0), Position(0, -1)])
def test_a_position_outside_the_dataset_is_refused(position: Position) -> None:
    sampler = BatchSampler([(64, 64)] * 4, 2)
    with pytest.raises(RequestError, match="position"):
        sampler.start(position)


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"rank": 2, "world": 2}, {"sizes": []}])
def test_what_cannot_be_dealt_is_refused(bad) -> None:
    with pytest.raises(RequestError, match="dealt"):
        BatchSampler(**({"sizes": [(64, 64)], "batch_size": 1} | bad))
