"""Which of a hot kernel's forms is the fastest: timed in calls that the program makes anyway, remembered on disk.

A tile is chosen by formula. Where a kernel takes a good part of a plan's time, a few of its other tiles take turns with it, each in
a call of its own, between two events of the device. Every form computes the same result in the same place, so nothing is computed
twice and no memory is needed. The winner is kept beside the compiled kernels, by device and sizes; new processes start with it.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchlet.compiler import tile
from torchlet.compiler.loops import Kernel
from torchlet.config import config
from torchlet.runtime import cc
from torchlet.runtime.cuda import Device, Event, Launch

AFTER = 20  # calls of a plan before it is looked at
LEAST_US, SHARE = 20.0, 0.03  # what a kernel takes by its roofline, and of its plan, to be hot
ALTERNATES = 4
ROUNDS = 5
GAIN = 0.98  # of the formula's time: what a form that takes its place may need at most


CONTESTS: list[dict[str, Any]] = []  # what was decided in this process: problem, target, device, kernel, tiles, ms, number of the winner


@dataclass(frozen=True)
class Choice:
    """Which tile a kernel has and why: by formula, by the table, timed, or timed before; the candidates, with times where there are."""

    kernel: str
    tile: str
    why: str
    candidates: tuple[tuple[str, float | None], ...]

    def __str__(self) -> str:
        others = [f"{tile} {ms:.4f} ms" if ms is not None else tile for tile, ms in self.candidates]
        return f"{self.kernel}: {self.tile} ({self.why}); of {' | '.join(others)}"

    @property
    def untimed(self) -> Choice:
        """The same without numbers."""
        return Choice(self.kernel, self.tile, self.why, tuple([(tile, None) for tile, _ in self.candidates]))


def allowed() -> bool:
    """True where measurements may choose a kernel; in deterministic mode formulas alone do."""
    return config.tune and not config.deterministic


def record(form: str, grid: Sequence[int], sizes: Mapping[str, int], device: Device) -> str:
    """The name under which the winner is kept. `form`: the key of the formula's kernel, which other sizes may share."""
    text = repr((form, tuple(grid), tuple(sizes.values()), device.properties.name))
    return "tuned-" + hashlib.sha256(text.encode()).hexdigest()[:40]


def recall(name: str) -> str | None:
    """The key of the form that won, if there was a contest."""
    entry = cc.read_entry(name)
    return entry.get("form") if entry else None


def times(name: str) -> list[tuple[str, float | None]]:
    """The tiles of a contest that was decided, and their milliseconds."""
    entry = cc.read_entry(name) or {}
    return list(zip(json.loads(entry.get("tiles", "[]")), map(float, entry.get("milliseconds", "").split(", ")), strict=False))


def hot(kernels: Mapping[str, Sequence[Kernel]], target: str) -> list[str]:
    """Those of a plan's groups of equal kernels that take so much of its time that a better tile would be felt."""
    each = {name: tile.roofline_us(group[0], target) for name, group in kernels.items()}
    total = sum(each[name] * len(group) for name, group in kernels.items())
    return [name for name, us in each.items() if us >= LEAST_US and us * len(kernels[name]) >= SHARE * total]


class Contest:
    """Forms of one kernel, the formula's first, and when they started and ended."""

    def __init__(self, name: str, forms: Sequence[str], tiles: Sequence[str], about: Mapping[str, str]):
        self.name, self.forms, self.tiles, self.about = name, tuple(forms), tuple(tiles), dict(about)
        self.spans: list[list[tuple[Event, Event]]] = [[] for _ in forms]

    @property
    def is_over(self) -> bool:
        """True when the device has passed all events."""
        return all(end.query() for spans in self.spans for _, end in spans)

    def winner(self) -> int:
        """The number of the fastest form, by its median; it is kept on disk."""
        medians = [statistics.median([a.elapsed_time(b) for a, b in spans]) if spans else float("inf") for spans in self.spans]
        best = min(range(len(medians)), key=medians.__getitem__)
        found = best if medians[best] <= GAIN * medians[0] else 0
        if medians[0] < float("inf"):
            facts = {"form": self.forms[found], "number": str(found), "milliseconds": ", ".join(f"{ms:.4f}" for ms in medians)}
            cc.write_entry(self.name, {**self.about, **facts, "tiles": json.dumps(self.tiles)})
            CONTESTS.append({**self.about, "tiles": list(self.tiles), "ms": medians, "winner": found})
        return found


class Site:
    """One launch of a plan in all forms of its contest."""

    def __init__(self, contest: Contest, launches: Sequence[Launch], forms: Sequence[Any]):
        self.contest, self.launches, self.forms = contest, tuple(launches), tuple(forms)

    def run(self, turn: int, values: tuple[object, ...], stream: int) -> None:
        """Queue the form whose turn it is between two events; where there are fewer forms, the first, untimed."""
        timed = turn < len(self.launches)
        launch = self.launches[turn if timed else 0]
        launch.bind(values)
        before, after = Event(enable_timing=True), Event(enable_timing=True)
        before.record()
        launch(stream)
        after.record()
        if timed:
            self.contest.spans[turn].append((before, after))
