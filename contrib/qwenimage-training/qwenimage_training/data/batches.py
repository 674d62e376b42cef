"""Which rows form which batch: of one size each, shuffled by seed and epoch, dealt to processes, from any position on.

Everything follows from (seed, epoch): a run that is resumed at a position goes on with the very batches that are left.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwenimage_core.errors import RequestError
from qwenimage_training.data.pictures import Size


@dataclass(frozen=True)
class Position:
    """How far training has come: `index` batches of this process are done in `epoch`. Both count from 0."""

    epoch: int = 0
    index: int = 0


def plan_batches(
    sizes: Sequence[Size], batch_size: int, seed: int, epoch: int, shuffle: bool
) -> list[list[int]]:
    """All batches of an epoch: every index of `sizes` once, equal sizes in a batch. The last batch of a size may be
    smaller. Without `shuffle` the order is that of the rows."""
    order = list(range(len(sizes)))
    dice = random.Random(hashlib.sha256(f"batches:{seed}:{epoch}".encode()).digest())
    if shuffle:
        dice.shuffle(order)
    open_batches: dict[Size, list[int]] = {}
    batches: list[list[int]] = []
    for index in order:
        batch = open_batches.setdefault(sizes[index], [])
        if not batch:
            batches.append(batch)
        batch.append(index)
        if len(batch) == batch_size:
            del open_batches[sizes[index]]
    if shuffle:
        dice.shuffle(batches)
    return batches


class BatchSampler:
    """A batch sampler for a torch DataLoader (`batch_sampler=`), one for each process.

    Iterating gives the batches of the current epoch from the current position on and changes nothing, because a
    loader reads ahead: who trains counts what is done, and calls `start`. All `world` processes get the same number
    of batches; where they do not come out even, the first batches of the epoch fill up the last round. It deals to
    the processes itself: do not let another library split it again.
    """

    def __init__(
        self,
        sizes: Sequence[Size],
        batch_size: int = 1,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world or not sizes:
            raise RequestError(
                "This dataset cannot be dealt out.",
                got=f"{len(sizes)} rows, batch_size {batch_size}, process {rank} of {world}",
                expected="a row or more, a batch size from 1 on, a process number below their count",
            )
        self.sizes = sizes
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world = world
        self.position = Position()
        self._planned: tuple[int, list[list[int]]] | None = None

    def start(self, position: Position) -> None:
        """Go on from here: the start of an epoch, or where a stopped run was."""
        count = len(self._own(position.epoch))
        if position.epoch < 0 or not 0 <= position.index <= count:
            raise RequestError(
                "This position is not in the dataset.",
                got=position,
                expected=f"at most {count} batches of process {self.rank} done in the epoch",
                mend="resume with the dataset, batch size and number of processes of the stopped run",
            )
        self.position = position

    def __len__(self) -> int:
        """Batches of this process that are left in the epoch."""
        return len(self._own(self.position.epoch)) - self.position.index

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._own(self.position.epoch)[self.position.index :]:
            yield list(batch)

    def _own(self, epoch: int) -> list[list[int]]:
        if self._planned is None or self._planned[0] != epoch:
            batches = plan_batches(self.sizes, self.batch_size, self.seed, epoch, self.shuffle)
            missing = -len(batches) % self.world
            filled = batches + [batches[i % len(batches)] for i in range(missing)]
            self._planned = epoch, filled[self.rank :: self.world]
        return self._planned[1]
