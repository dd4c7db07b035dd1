"""Which forward a backward node belongs to: autograd numbers nodes in the order in which the forward makes them."""

import bisect
from typing import Generic, TypeVar

import torch

Value = TypeVar("Value")


class Marks(Generic[Value]):
    """What the forward was at, from one sequence number of autograd's to the next."""

    def __init__(self, first: Value) -> None:
        """`first` holds before anything is marked."""
        self._numbers = [-1]
        self._values = [first]

    def __len__(self) -> int:
        """Marks set so far."""
        return len(self._numbers) - 1

    def set(self, value: Value) -> None:
        """Nodes that are made from here on are of `value`."""
        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._values.append(value)

    def of(self, number: int) -> Value:
        """What the node of that sequence number is of."""
        return self._values[bisect.bisect_right(self._numbers, number) - 1]
