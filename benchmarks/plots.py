"""The rates as a picture, `results/rates.png`: drawn as SVG, which Chromium (Debian package, used by the tests too) turns into PNG."""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from tests.console.pages.browsing import CHROMIUM

_ROW, _LEFT, _WIDTH, _TOP = 30, 290, 900, 64
_OURS, _OTHERS, _INK, _PALE = "#1f6feb", "#a8b3c0", "#1c2128", "#e4e8ed"

_REFERENCES: Final = ("bare client", "aiohttp client", "wrk", "plain pipeline", "Go program", "Benthos")


def svg(result: Mapping[str, Any]) -> str:
    """One bar a program or scenario, events (or requests) a second; the thin line is the spread of the runs."""
    rates = sorted(result["rates"].items(), key=lambda item: -item[1]["per_second"])
    most: float = max(rate["per_second"] * (1 + rate["spread"] / 2) for _, rate in rates)
    scale = (_WIDTH - _LEFT - 140) / most
    height = _TOP + _ROW * len(rates) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'font-family="DejaVu Sans, Arial, sans-serif" font-size="13" fill="{_INK}">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        '<text x="16" y="26" font-size="16" font-weight="bold">Events or requests a second on one core</text>',
        '<text x="16" y="46" fill="#57606a">one POST each over TLS, verified but by wrk; all in one run, median and spread</text>',
    ]
    for number, (name, rate) in enumerate(rates):
        parts += _bar(_TOP + number * _ROW, name, rate, scale)
    return "\n".join([*parts, "</svg>"])


def _bar(top: float, name: str, rate: Mapping[str, Any], scale: float) -> list[str]:
    length, middle = rate["per_second"] * scale, top + 10
    half = length * rate["spread"] / 2
    colour = _OTHERS if name.split(", ")[0] in _REFERENCES or name.startswith("peer ") else _OURS
    label = f"{rate['per_second']:,} (× {rate['vs_dispatcher']:.2f})"
    return [
        f'<text x="{_LEFT - 12}" y="{top + 15}" text-anchor="end">{escape(name)}</text>',
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - 140}" height="20" fill="{_PALE}" opacity="0.4"/>',
        f'<rect x="{_LEFT}" y="{top}" width="{length:.1f}" height="20" rx="2" fill="{colour}"/>',
        f'<line x1="{_LEFT + length - half:.1f}" x2="{_LEFT + length + half:.1f}" y1="{middle}" y2="{middle}" stroke="{_INK}"/>',
        f'<text x="{_LEFT + length + half + 8:.1f}" y="{top + 15}">{label}</text>',
    ]


def draw(result: Mapping[str, Any], to: Path) -> bool:
    """Writes the PNG. Returns False if no Chromium is installed."""
    if not CHROMIUM:
        return False
    picture = svg(result)
    height = picture.split('height="', 1)[1].split('"', 1)[0]
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "rates.html"
        page.write_text(f'<meta charset="utf-8"><body style="margin:0">{picture}</body>')
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={name}/profile",
            f"--window-size={_WIDTH},{height}", f"--screenshot={to}", page.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, capture_output=True, timeout=60, check=True)
    return to.exists()
