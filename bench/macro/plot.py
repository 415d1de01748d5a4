# SPDX-License-Identifier: LGPL-2.1-or-later
"""Line charts as SVG, without a library."""
import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 40, 50
COLOURS = ["#555555", "#b36b00", "#7b4fa3", "#0072b2", "#56b4e9", "#cc3311", "#228833"]


def ticks(top):
    """Round steps from 0 to at least `top`."""
    if top <= 0:
        return [0, 1]
    raw = top / 5
    unit = 10 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
    return [i * step for i in range(math.ceil(top / step - 1e-9) + 1)]


def text(x, y, s, anchor="middle", size=12, extra=""):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" {extra}>'
            f'{escape(str(s))}</text>')


def line_chart(title, x_label, y_label, series):
    """series: {name: [(x, y, low, high)]}, x from 0 to 100."""
    top = max((high for points in series.values() for _, _, _, high in points), default=1)
    marks = ticks(top)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def px(x):
        return LEFT + x / 100 * (right - LEFT)

    def py(y):
        return bottom - y / marks[-1] * (bottom - TOP)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           'font-family="sans-serif" fill="#222">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
           text((LEFT + right) / 2, 22, title, size=14)]
    for y in marks:
        out.append(f'<line x1="{LEFT}" x2="{right}" y1="{py(y):.1f}" y2="{py(y):.1f}" stroke="#ddd"/>')
        out.append(text(LEFT - 6, py(y) + 4, f"{y:g}", "end"))
    for x in range(0, 101, 25):
        out.append(text(px(x), bottom + 18, x))
    out.append(text((LEFT + right) / 2, HEIGHT - 10, x_label))
    middle = (TOP + bottom) / 2
    out.append(text(18, middle, y_label, extra=f'transform="rotate(-90 18 {middle})"'))
    for i, (name, points) in enumerate(series.items()):
        colour, points = COLOURS[i % len(COLOURS)], sorted(points)
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y, _, _ in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y, low, high in points:
            out.append(f'<line x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{py(low):.1f}" '
                       f'y2="{py(high):.1f}" stroke="{colour}"/>')
            out.append(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="3" fill="{colour}"/>')
        out.append(f'<rect x="{right + 14}" y="{TOP + 20 * i}" width="12" height="12" fill="{colour}"/>')
        out.append(text(right + 32, TOP + 20 * i + 10, name, "start"))
    return "\n".join(out) + "\n</svg>\n"
