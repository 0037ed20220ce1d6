"""Sequences of different lengths: padded to one tensor, or packed one step after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from torchlet import dtypes, ops
from torchlet.tensor import Tensor

__all__ = [
    "PackedSequence",
    "invert_permutation",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "unpad_sequence",
    "unpack_sequence",
]


class _Packed(NamedTuple):
    data: Tensor
    batch_sizes: Tensor
    sorted_indices: Tensor | None
    unsorted_indices: Tensor | None


class PackedSequence(_Packed):
    """The elements of several sequences, step by step, the longest sequence first.

    `data` is (total, *); `batch_sizes` (steps) says how many sequences have an element at each step.
    """

    def __new__(
        cls, data: Tensor, batch_sizes: Tensor | None = None, sorted_indices: Tensor | None = None, unsorted_indices: Tensor | None = None
    ) -> PackedSequence:
        """Indices default to what sorts the sequences and undoes it."""
        if batch_sizes is None:
            raise ValueError("batch_sizes must be given")
        if unsorted_indices is None:
            unsorted_indices = invert_permutation(sorted_indices)
        return super().__new__(cls, data, batch_sizes, sorted_indices, unsorted_indices)

    def to(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """The data in another dtype or on another device."""
        data = self.data.to(*args, **kwargs)
        indices = [None if i is None else i.to(data.device) for i in (self.sorted_indices, self.unsorted_indices)]
        return PackedSequence(data, self.batch_sizes, *indices)

    def cuda(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """The data on a CUDA device."""
        return self.to("cuda")

    def cpu(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """The data in main memory."""
        return self.to("cpu")

    @property
    def is_cuda(self) -> bool:
        """True on a CUDA device."""
        return self.data.is_cuda  # type: ignore[no-any-return]


def invert_permutation(permutation: Tensor | None) -> Tensor | None:
    """The permutation that undoes another."""
    if permutation is None:
        return None
    return ops.tensor(np.argsort(permutation.cpu().numpy(), kind="stable"), device=permutation.device)


def _lengths(packed: PackedSequence) -> np.ndarray[Any, Any]:
    """How long each sequence is, the longest first."""
    sizes = packed.batch_sizes.numpy()
    return (sizes[:, None] > np.arange(int(sizes[0]))).sum(0)


def _places(lengths: Any) -> np.ndarray[Any, Any]:
    """Step * batch + sequence of every element, in packed order."""
    steps = int(lengths.max())
    return np.flatnonzero((np.arange(steps)[:, None] < lengths).reshape(-1))


def pad_packed(packed: PackedSequence) -> tuple[Tensor, Tensor]:
    """(T, N, *) with zeros past the ends, and the lengths (N), both in packed order of the sequences, where the data is."""
    lengths = _lengths(packed)
    steps, n, rest = int(lengths.max()), len(lengths), tuple(packed.data.shape[1:])
    place = packed.data.device
    flat = ops.zeros(steps * n, *rest, dtype=packed.data.dtype, device=place)
    flat = flat.index_copy(0, ops.tensor(_places(lengths), device=place), packed.data)
    return flat.reshape(steps, n, *rest), ops.tensor(lengths, device=place)


def pack_padded(x: Tensor, like: PackedSequence) -> PackedSequence:
    """(T, N, *) packed as another sequence is."""
    data = x.reshape(-1, *x.shape[2:]).index_select(0, ops.tensor(_places(_lengths(like)), device=x.device))
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)


def pack_padded_sequence(input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> PackedSequence:
    """Pack (T, N, *), or (N, T, *) with `batch_first`, by the lengths of the sequences."""
    if isinstance(lengths, Tensor):
        counts = lengths.cpu().numpy().astype(np.int64)
    else:
        counts = np.asarray([int(n) for n in lengths], np.int64)
    x = input.transpose(0, 1) if batch_first else input
    if len(counts) != x.shape[1]:
        raise RuntimeError(f"Expected `len(lengths)` to be equal to batch_size, but got {len(counts)} (batch_size={x.shape[1]})")
    if counts.size == 0 or counts.min() <= 0:
        raise RuntimeError("Length of all samples has to be greater than 0, but found an element in 'lengths' that is <= 0")
    if counts.max() > x.shape[0]:
        raise RuntimeError(f"Expected lengths of at most {x.shape[0]}, the size of the padded sequences, but got {int(counts.max())}")
    order = None
    if enforce_sorted:
        if (counts[1:] > counts[:-1]).any():
            raise RuntimeError(
                "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True. You can pass `enforce_sorted=False` to "
                "pack_padded_sequence and/or pack_sequence to sidestep this requirement if you do not need ONNX exportability."
            )
    else:
        sorting = np.argsort(-counts, kind="stable")
        counts, order = counts[sorting], ops.tensor(sorting, device=x.device)
        x = x.index_select(1, order)
    x = x[: int(counts.max())]
    sizes = (np.arange(int(counts.max()))[:, None] < counts).sum(1)
    data = x.reshape(-1, *x.shape[2:]).index_select(0, ops.tensor(_places(counts), device=x.device))
    return PackedSequence(data, ops.tensor(sizes), order)


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """(T, N, *), or (N, T, *) with `batch_first`, and the lengths (N)."""
    x, lengths = pad_packed(sequence)
    steps = x.shape[0]
    if total_length is not None:
        if total_length < steps:
            raise ValueError(
                f"Expected total_length to be at least the length of the longest sequence in input, but got "
                f"total_length={total_length} and max sequence length being {steps}"
            )
        x = ops.pad(x, (0, 0) * (x.ndim - 1) + (0, total_length - steps))
    if padding_value != 0.0:
        over = ops.arange(x.shape[0], device=x.device).unsqueeze(1) >= lengths
        x = ops.where(over.reshape(*over.shape, *[1] * (x.ndim - 2)), float(padding_value), x)
    if sequence.unsorted_indices is not None:
        x, lengths = x.index_select(1, sequence.unsorted_indices), lengths[sequence.unsorted_indices]
    return (x.transpose(0, 1) if batch_first else x), lengths.cpu()


def pad_sequence(
    sequences: Tensor | Iterable[Tensor], batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Tensor:
    """Tensors (L_i, *) as one: (T, N, *), or (N, T, *) with `batch_first`."""
    listed = list(sequences)
    if not listed:
        raise RuntimeError("received an empty list of sequences")
    if padding_side not in ("left", "right"):
        raise RuntimeError(f"padding_side should be either 'left' or 'right', but got '{padding_side}'")
    longest = max(s.shape[0] for s in listed)
    padded = []
    for s in listed:
        gap = longest - s.shape[0]
        widths = (0, 0) * (s.ndim - 1) + ((gap, 0) if padding_side == "left" else (0, gap))
        padded.append(ops.pad(s, widths, "constant", padding_value) if gap else s)
    return ops.stack(padded, 0 if batch_first else 1)


def unpad_sequence(padded_sequences: Tensor, lengths: Tensor, batch_first: bool = False) -> list[Tensor]:
    """The sequences of a padded tensor, each in its own length."""
    x = padded_sequences if batch_first else padded_sequences.transpose(0, 1)
    return [s[: int(n)] for s, n in zip(x, lengths, strict=True)]


def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """Pack tensors (L_i, *)."""
    lengths = ops.tensor([s.shape[0] for s in sequences], dtype=dtypes.int64)
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """The sequences of a packed one."""
    return unpad_sequence(*pad_packed_sequence(packed_sequences, batch_first=True), batch_first=True)
