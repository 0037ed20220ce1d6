"""SummaryWriter: numbers, texts and histograms in the files that TensorBoard reads. Nothing beyond the standard library is needed."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np

from torchlet.autograd import force
from torchlet.tensor import Tensor

__all__ = ["SummaryWriter"]


def _table() -> list[int]:
    out = []
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ (0x82F63B78 if n & 1 else 0)
        out.append(n)
    return out


_CRC = _table()  # CRC-32C (Castagnoli)


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes((*out, n))


def _bytes(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _double(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _number(value: Any) -> float:
    return float(value.item()) if isinstance(value, Tensor | np.ndarray | np.generic) else float(value)


class SummaryWriter:
    """Writes events to a file below `log_dir` (runs/<date>_<machine> by default)."""

    def __init__(
        self,
        log_dir: str | None = None,
        comment: str = "",
        purge_step: int | None = None,
        max_queue: int = 10,
        flush_secs: int = 120,
        filename_suffix: str = "",
    ):
        if not log_dir:
            log_dir = os.path.join("runs", f"{time.strftime('%b%d_%H-%M-%S')}_{socket.gethostname()}{comment}")
        self.log_dir = str(log_dir)
        os.makedirs(self.log_dir, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{id(self)}{filename_suffix}"
        self._file = Path(self.log_dir, name).open("wb")  # noqa: SIM115  open until `close`
        self._below: dict[str, SummaryWriter] = {}
        self._event(_bytes(3, b"brain.Event:2"), None, None)

    def _event(self, content: bytes, step: int | None, walltime: float | None) -> None:
        event = _double(1, time.time() if walltime is None else walltime)
        event += (_varint(2 << 3) + _varint(int(step)) if step else b"") + content
        head = struct.pack("<Q", len(event))
        self._file.write(head + _masked_crc(head) + event + _masked_crc(event))

    def _summary(self, tag: str, value: bytes, step: int | None, walltime: float | None) -> None:
        self._event(_bytes(5, _bytes(1, _bytes(1, tag.encode()) + value)), step, walltime)

    def add_scalar(
        self,
        tag: str,
        scalar_value: Any,
        global_step: int | None = None,
        walltime: float | None = None,
        new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        """A number at a step."""
        self._summary(tag, _varint(2 << 3 | 5) + struct.pack("<f", _number(scalar_value)), global_step, walltime)

    def add_scalars(
        self, main_tag: str, tag_scalar_dict: dict[str, Any], global_step: int | None = None, walltime: float | None = None
    ) -> None:
        """Several numbers in one diagram, each in a folder of its own."""
        for tag, value in tag_scalar_dict.items():
            folder = os.path.join(self.log_dir, f"{main_tag}_{tag}".replace("/", "_"))
            if folder not in self._below:
                self._below[folder] = SummaryWriter(folder)
            self._below[folder].add_scalar(main_tag, value, global_step, walltime)

    def add_text(self, tag: str, text_string: str, global_step: int | None = None, walltime: float | None = None) -> None:
        """A text at a step."""
        metadata = _bytes(9, _bytes(1, _bytes(1, b"text")))
        tensor = _bytes(
            8, _varint(1 << 3) + _varint(7) + _bytes(2, _bytes(2, _varint(1 << 3) + _varint(1))) + _bytes(8, str(text_string).encode())
        )
        self._summary(f"{tag}/text_summary", metadata + tensor, global_step, walltime)

    def add_histogram(
        self,
        tag: str,
        values: Any,
        global_step: int | None = None,
        bins: Any = 64,
        walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        """How values are distributed at a step."""
        a = np.asarray(force(values) if isinstance(values, Tensor) else values, np.float64).reshape(-1)
        counts, edges = np.histogram(a, bins if isinstance(bins, int) else 64)
        content = _double(1, a.min()) + _double(2, a.max()) + _double(3, a.size) + _double(4, a.sum()) + _double(5, (a * a).sum())
        content += _bytes(6, edges[1:].tobytes()) + _bytes(7, counts.astype(np.float64).tobytes())
        self._summary(tag, _bytes(5, content), global_step, walltime)

    def add_hparams(self, hparam_dict: dict[str, Any], metric_dict: dict[str, Any], *_: Any, **__: Any) -> None:
        """Hyperparameters as a text, metrics as numbers."""
        self.add_text("hparams", "\n".join(f"    {k}: {v}" for k, v in hparam_dict.items()))
        for tag, value in metric_dict.items():
            self.add_scalar(tag, value)

    def flush(self) -> None:
        """Write what is waiting."""
        for writer in (self, *self._below.values()):
            writer._file.flush()

    def close(self) -> None:
        """Write what is waiting and close the files."""
        for writer in self._below.values():
            writer.close()
        self._file.close()

    def __enter__(self) -> SummaryWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
