"""Joining samples into a batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import numpy as np

from torchlet import ops
from torchlet.dtypes import float64
from torchlet.tensor import Tensor

__all__ = ["default_collate", "default_convert"]


def _numeric(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind in "biuf" or array.dtype.name == "bfloat16"


def default_convert(data: Any) -> Any:
    """NumPy arrays, also those inside of mappings and sequences, as tensors; everything else unchanged."""
    if isinstance(data, Tensor):
        return data
    if isinstance(data, np.ndarray | np.generic):
        array = np.asarray(data)
        return ops.tensor(array) if _numeric(array) else data
    if isinstance(data, Mapping):
        return _like(data, {k: default_convert(v) for k, v in data.items()})
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(default_convert(v) for v in data))
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return [default_convert(v) for v in data]
    return data


def default_collate(batch: Sequence[Any]) -> Any:
    """Samples as one batch: tensors, arrays and numbers are stacked along a new first dimension; mappings and sequences entry by entry.

    Raises RuntimeError for sequences of unequal lengths, TypeError for what cannot be joined.
    """
    first = batch[0]
    if isinstance(first, Tensor):
        return ops.stack(list(batch), 0)
    if isinstance(first, np.ndarray | np.generic):
        array = np.asarray(first)
        if not _numeric(array):
            raise TypeError(f"default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; found {array.dtype}")
        return ops.tensor(np.stack([np.asarray(x) for x in batch]))
    if isinstance(first, float):
        return ops.tensor(list(batch), dtype=float64)
    if isinstance(first, int):
        return ops.tensor(list(batch))
    if isinstance(first, str | bytes):
        return batch
    if isinstance(first, Mapping):
        return _like(first, {k: default_collate([sample[k] for sample in batch]) for k in first})
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(default_collate(entries) for entries in zip(*batch, strict=True)))
    if isinstance(first, Sequence):
        if any(len(sample) != len(first) for sample in batch):
            raise RuntimeError("each element in list of batch should be of equal size")
        joined = [default_collate(entries) for entries in zip(*batch, strict=True)]
        if isinstance(first, tuple) or not isinstance(first, MutableSequence) or type(first) is list:
            return joined
        return _sequence_like(first, joined)
    raise TypeError(f"default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; found {type(first)}")


def _like(original: Mapping[Any, Any], entries: dict[Any, Any]) -> Any:
    """A mapping of the original's class, where that can be made."""
    if type(original) is dict:
        return entries
    try:
        if isinstance(original, MutableMapping):
            made = copy.copy(original)
            made.update(entries)
            return made
        return type(original)(entries)  # type: ignore[call-arg]
    except TypeError:
        return entries


def _sequence_like(original: MutableSequence[Any], entries: list[Any]) -> Any:
    try:
        made = copy.copy(original)
        for i, entry in enumerate(entries):
            made[i] = entry
        return made
    except TypeError:
        return entries
