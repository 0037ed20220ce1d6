"""Where results are made: the operator that moves a tensor to another device, and tensors made from nothing on a device."""

from __future__ import annotations

from typing import Any

from torchlet import storage
from torchlet.op import STATE, Op, Pointwise, apply, define
from torchlet.spec import CPU, Spec
from torchlet.spec import device as Device
from torchlet.tensor import Tensor, wrap

# in a graph, where all is computed in one place, it is the identity
to_device_ = define(
    "to_device", ("x",), storage.transfer, lambda x, device, non_blocking: Spec(x.shape, x.dtype, device, x.weak),
    Pointwise(lambda x, device, non_blocking: x, "same"), ("device", "non_blocking"),
    vjp={"x": lambda g, x_spec: to_device_(g, device=x_spec.device, non_blocking=False)}, doc="A copy on another device.",
)


def place_of(where: Any) -> Device:
    """The device that is meant, numbered; "cuda" is the current one. Raises RuntimeError for a device that is not there."""
    place = Device(where)
    return place if place is CPU else storage.open_device(place)


def _enter(self: Device) -> Device:
    _outer.append(STATE.default_device)
    place = place_of(self)
    STATE.default_device = None if place is CPU else place
    return self


def _leave(self: Device, *_: object) -> None:
    STATE.default_device = _outer.pop()


_outer: list[Any] = []
Device.__enter__, Device.__exit__ = _enter, _leave  # type: ignore[attr-defined]  # `with torch.device("cuda"):`


def make(op: Op, numbers: tuple[Any, ...], attrs: tuple[Any, ...], where: Any) -> Tensor:
    """An operator that needs numbers only (full, arange, random), its result made on the device where it is wanted (None: the default device)."""
    place = (STATE.default_device or CPU) if where is None else place_of(where)
    if place is CPU:
        return apply(op, numbers, attrs)
    if STATE.run is None:
        return wrap(storage.compute(op, numbers, attrs, place))
    return apply(to_device_, (apply(op, numbers, attrs),), (place, False))
