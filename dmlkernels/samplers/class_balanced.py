"""P classes with K samples each, sorted by class, which is the order that the pair kernels run fastest on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from .. import _checks


class ClassBalancedSampler(Sampler[list[int]]):
    """Batch sampler that draws P classes and K samples of each, sorted by label.

    Classes and, within a class, samples are dealt like cards: each comes once before any comes again, and none comes
    twice in a batch. The batches are one endless stream, cut into epochs; an epoch continues where the one before it
    ended, so that short epochs reach every sample too.

    Args:
        labels: (n,) integers, the class of each row of the data set.
        classes_per_batch: P.
        samples_per_class: K.
        batches: batches per epoch; None: as many as n samples fill, at least 1.
        seed: equal seeds give equal batches.
        replacement: give a class with fewer than K samples some of them twice, instead of raising.

    Raises:
        ValueError: an argument is out of range, P exceeds the number of classes, or a class has fewer than K samples.

    Example:
        >>> sampler = ClassBalancedSampler(labels, classes_per_batch=256, samples_per_class=8)
        >>> loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler)
        >>> for epoch in range(10):
        ...     sampler.set_epoch(epoch)
        ...     for images in loader: ...
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        classes_per_batch: int,
        samples_per_class: int,
        *,
        batches: int | None = None,
        seed: int = 0,
        replacement: bool = False,
    ) -> None:
        labels = torch.as_tensor(labels).cpu()
        if labels.ndim != 1 or labels.is_floating_point() or not len(labels):
            raise ValueError(
                "ClassBalancedSampler: labels must be (n,) integers with n >= 1, "
                f"got {labels.dtype} {tuple(labels.shape)}"
            )
        op = "ClassBalancedSampler"
        classes_per_batch = _checks.integer(op, "classes_per_batch", classes_per_batch)
        samples_per_class = _checks.integer(op, "samples_per_class", samples_per_class)
        batches = None if batches is None else _checks.integer(op, "batches", batches)
        seed, replacement = _checks.integer(op, "seed", seed), _checks.flag(op, "replacement", replacement)
        for name, value in (
            ("classes_per_batch", classes_per_batch),
            ("samples_per_class", samples_per_class),
            ("batches", 1 if batches is None else batches),
        ):
            if value < 1:
                raise ValueError(f"ClassBalancedSampler: {name} must be at least 1, got {value}")
        classes, counts = labels.unique(return_counts=True)
        if classes_per_batch > len(classes):
            raise ValueError(
                f"ClassBalancedSampler: classes_per_batch must be at most {len(classes)}, the number of classes, "
                f"got {classes_per_batch}"
            )
        fewest = int(counts.argmin())
        if not replacement and counts[fewest] < samples_per_class:
            raise ValueError(
                f"ClassBalancedSampler: samples_per_class must be at most {counts[fewest]}, the number of samples of "
                f"class {classes[fewest]}, got {samples_per_class}; pass replacement=True to repeat samples"
            )
        self.classes_per_batch = classes_per_batch
        self.samples_per_class = samples_per_class
        self.batches = batches or max(1, len(labels) // (classes_per_batch * samples_per_class))
        self.seed = seed
        self._rows = [rows.tolist() for rows in labels.argsort(stable=True).split(counts.tolist())]
        self._classes = list(range(len(classes)))
        self._generator = torch.Generator()
        self._class_deck: list[int] = []
        self._row_decks: list[list[int]] = []
        self._start()

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches that are left of this epoch, then move on to the next one."""
        epoch = self._dealt // self.batches
        while self._dealt // self.batches == epoch:
            yield self._next()

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to."""
        return self._dealt // self.batches

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; within that epoch already (after `load_state_dict`), stay.

        Args:
            epoch: 0 or more. An epoch that is not the next one is reached by dealing the batches before it.

        Raises:
            ValueError: `epoch` is negative.
        """
        epoch = _checks.integer("ClassBalancedSampler", "epoch", epoch)
        if epoch < 0:
            raise ValueError(f"ClassBalancedSampler: epoch must be at least 0, got {epoch}")
        if epoch < self.epoch:
            self._start()
        while self._dealt < epoch * self.batches:
            self._next()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on with the batch after the last one dealt.

        A DataLoader with workers asks for batches ahead of time: with one, save between epochs.
        """
        return {
            "configuration": self._configuration(),
            "dealt": self._dealt,
            "class_deck": list(self._class_deck),
            "row_decks": [list(deck) for deck in self._row_decks],
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the stream that `state_dict` was taken from.

        Raises:
            ValueError: the state belongs to other data or to other arguments.
        """
        for name, value in self._configuration().items():
            if state["configuration"][name] != value:
                raise ValueError(
                    f"ClassBalancedSampler: {name} must be {state['configuration'][name]} as in the saved state, "
                    f"got {value}"
                )
        self._dealt = state["dealt"]
        self._class_deck = list(state["class_deck"])
        self._row_decks = [list(deck) for deck in state["row_decks"]]
        self._generator.set_state(state["generator"])

    def _configuration(self) -> dict[str, int]:
        return {
            "samples": sum(len(rows) for rows in self._rows),
            "classes": len(self._rows),
            "classes_per_batch": self.classes_per_batch,
            "samples_per_class": self.samples_per_class,
            "batches": self.batches,
            "seed": self.seed,
        }

    def _start(self) -> None:
        self._generator.manual_seed(self.seed)
        self._dealt = 0
        self._class_deck = []
        self._row_decks = [[] for _ in self._rows]

    def _next(self) -> list[int]:
        self._dealt += 1
        chosen = sorted(self._deal(self._class_deck, self._classes, self.classes_per_batch))
        return [
            row for cls in chosen for row in self._deal(self._row_decks[cls], self._rows[cls], self.samples_per_class)
        ]

    def _deal(self, deck: list[int], cards: list[int], count: int) -> list[int]:
        """Take `count` cards off the deck, shuffling a new one below it when it runs out."""
        hand = deck[:count]
        del deck[:count]
        while len(hand) < count:
            fresh = [cards[place] for place in torch.randperm(len(cards), generator=self._generator).tolist()]
            # A card in hand stays in the new deck for later; only a class smaller than K has to repeat within the hand.
            held = set(hand) if count <= len(cards) else set()
            drawn = [card for card in fresh if card not in held][: count - len(hand)]
            taken = set(drawn)
            deck[:] = [card for card in fresh if card not in taken]
            hand += drawn
        return hand
