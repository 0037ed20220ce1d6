"""The dump's report.html: functions, their kernels with costs, and the lines of each kernel; one file, no network, no script needed."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

__all__ = ["html"]

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222; background: #fff }
h2 { margin: 1.6em 0 .3em } table { border-collapse: collapse; width: 100% } th { text-align: left; font-weight: 600 }
td, th { border-bottom: 1px solid #ddd; padding: .2em .6em .2em 0; vertical-align: top } .n { text-align: right }
pre { font: 12px/1.4 ui-monospace, monospace; overflow-x: auto; background: #f6f6f4; padding: .6em; margin: .3em 0 }
summary { cursor: pointer } .quiet { color: #666 } .warn { color: #a40 }
"""
_LONGEST = 20_000  # characters of a file that are shown; the file itself is linked


def html(index: dict[str, Any], folder: Path) -> str:
    """The page for an index; texts are read from the folder."""
    parts = [
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8"><title>torchlet: what was compiled</title>',
        f"<style>{_STYLE}</style></head><body>",
        "<h1>What was compiled</h1>",
        f"<p class=quiet>{escape(', '.join(f'{k} {v}' for k, v in index['versions'].items() if v))}</p>",
        "<table><tr><th>function<th>segment ended<th class=n>steps<th class=n>kernels<th class=n>bytes moved<th class=n>operations</tr>",
    ]
    for f in index["functions"]:
        why = ", ".join(r or "launched" for r in f["ended_because"])
        parts.append(
            f'<tr><td><a href="#{f["folder"]}">{escape(f["folder"])}</a><td>{escape(f["ended_at"])} {escape(why)}<td class=n>{f["steps"]}'
            f"<td class=n>{len(f['kernels'])}<td class=n>{_sum(f, 'bytes_moved')}<td class=n>{_sum(f, 'flops')}</tr>"
        )
    parts.append("</table>")
    for f in index["functions"]:
        parts += _function(f, folder / f["folder"])
    return "\n".join([*parts, "</body></html>", ""])


def _sum(f: dict[str, Any], key: str) -> str:
    return f"{sum(k[key] for k in f['kernels']):,}"


def _function(f: dict[str, Any], folder: Path) -> list[str]:
    parts = [f'<h2 id="{f["folder"]}">{escape(f["folder"])}</h2>']
    if f["stepwise"]:
        parts.append(f"<p class=warn>Not compiled, run step by step: {escape(f['stepwise'])}</p>")
    if f["externs"]:
        parts.append(f"<p class=warn>Run as NumPy between the kernels: {escape(', '.join(f['externs']))}</p>")
    if f["kernels"]:
        parts.append("<table><tr><th>kernel<th>your lines<th class=n>bytes moved<th class=n>operations")
        parts.append("<th class=n>at least, one core<th class=n>at least, GPU</tr>")
        for k in f["kernels"]:
            cpu, *gpu = k["roofline_us"].values()
            source = f"{f['folder']}/6_kernels/{k['label']}"
            parts.append(
                f'<tr><td><a href="{source}.c">{escape(k["label"])}</a> <span class=quiet>{k["half"]}</span>'
                f' <a href="{source}.py">Triton</a> <a href="{source}_run.py">run</a>'
                f"<td>{'<br>'.join(map(escape, k['lines']))}<td class=n>{k['bytes_moved']:,}<td class=n>{k['flops']:,}"
                f"<td class=n>{cpu:.3g} us<td class=n>{gpu[0]:.3g} us</tr>"
            )
        parts.append("</table>")
    shown = [p for p in sorted(folder.glob("*")) if p.is_file() and p.name != "times.json"]  # the rest is the same each time
    shown += [p for p in sorted(folder.glob("6_kernels/*")) if p.suffix in (".c", ".py") and not p.stem.endswith("_run")]
    for path in shown:
        name = path.relative_to(folder.parent).as_posix()
        text = path.read_text(encoding="utf-8")
        more = f"\n… {len(text) - _LONGEST} characters more in {name}" if len(text) > _LONGEST else ""
        is_open = " open" if path.name == "0_source.py" else ""
        title = f'<a href="{name}">{escape(path.relative_to(folder).as_posix())}</a>'
        parts.append(f"<details{is_open}><summary>{title}</summary><pre>{escape(text[:_LONGEST] + more)}</pre></details>")
    return parts
