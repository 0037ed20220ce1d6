"""The tiled matrix product: a text with holes for what is computed before (prologue) and after (epilogue) the product.

A program makes one [BLOCK_M, BLOCK_N] tile, or walks over tiles. Tiles are numbered in bands of GROUP tile rows, so that those
made at the same time share operand tiles in the L2 cache. A walk is one flattened loop: the operands of the next tile are on
their way while a tile is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import indent

TILE = """\
{batch}
band = pid // {band_tiles}
band_rows = min({tiles_m} - band * {group}, {group})
m_start = (band * {group} + pid % {band_tiles} % band_rows) * BLOCK_M
n_start = (pid % {band_tiles} // band_rows) * BLOCK_N
m = m_start{wide} + tl.arange(0, BLOCK_M)[:, None]
n = n_start{wide} + tl.arange(0, BLOCK_N)[None, :]
{before}
for k_start in range(0, {k}, BLOCK_K):
{loop}
{after}
"""
ONE = "pid = tl.program_id(0)\n{tile}"
WALK = """\
for tile in tl.range(tl.program_id(0), {tiles}, {programs}, flatten=True):
    pid = tile
{tile}
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """Extents of the product and of its tiles; tiles are numbered in bands of `group` rows."""

    m: int
    n: int
    k: int
    batch: int
    block_m: int
    block_n: int
    group: int = 8

    @property
    def tiles_m(self) -> int:
        """Tiles along m."""
        return -(-self.m // self.block_m)

    @property
    def tiles_n(self) -> int:
        """Tiles along n."""
        return -(-self.n // self.block_n)

    @property
    def programs(self) -> int:
        """How many programs the product takes."""
        return self.tiles_m * self.tiles_n * self.batch


def sizes(s: Shape, walks: bool) -> dict[str, int]:
    """The numbers that the loops over tiles and along k are made of."""
    found = {"k_size": s.k, "tiles_m": s.tiles_m, "band_tiles": s.group * s.tiles_n}
    if s.batch > 1:
        found["tiles"] = s.tiles_m * s.tiles_n
    return {**found, "all_tiles": s.programs} if walks else found


def render(
    s: Shape, wide: bool, before: list[str], loop: list[str], after: list[str], programs: int = 0, arguments: bool = False
) -> str:
    """The kernel's body. `before` holds loop-invariant lines, `loop` loads the operand tiles and accumulates, `after` is the epilogue.

    `wide`: positions take 64 bits. `programs`: how many walk over the tiles; 0: one for each tile. `arguments`: the numbers of
    `sizes` are arguments of the kernel, of these names.
    """
    number: dict[str, int | str] = {name: name if arguments else n for name, n in sizes(s, programs > 0).items()}
    cast = ".to(tl.int64)" if wide else ""
    text = TILE.format(
        batch=f"z = (pid // {number['tiles']}){cast}\npid = pid % {number['tiles']}" if s.batch > 1 else "",
        band_tiles=number["band_tiles"],
        group=s.group,
        tiles_m=number["tiles_m"],
        k=number["k_size"],
        wide=cast,
        before="\n".join(before),
        loop=indent("\n".join(loop), "    "),
        after="\n".join(after),
    )
    text = WALK.format(tiles=number["all_tiles"], programs=programs, tile=indent(text, "    ")) if programs else ONE.format(tile=text)
    text = f"tl.assume(k_size > 0)\n{text}" if arguments else text
    return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"
