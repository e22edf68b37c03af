"""Draws Mermaid's flowcharts as SVG, which needs neither a script nor a network.

It knows what the pages use: nodes ``name[text]`` and ``name[(text)]``, chains of arrows ``-->``,
``<-->`` and ``-.->`` with or without ``|label|``, and subgraphs. A line that it does not know is an
error, so that no diagram loses a part.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

BLOCK = re.compile(r"^```mermaid\n(.*?)^```", re.MULTILINE | re.DOTALL)
START = re.compile(r"(?:flowchart|direction) (TD|TB|LR)")
SUBGRAPH = re.compile(r'subgraph (\w+)(?: \["(.*)"\])?')
ARROW = re.compile(r"\s*(<-->|-->|-\.->)\s*(?:\|\"?(.*?)\"?\|)?\s*")
NODE = re.compile(r"(\w+)(?:\[(\()?\"?(.*?)\"?\)?\])?")
CHAR, LINE, PAD, GAP, STEP = 7.4, 18, 12, 26, 44  # pixels


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return BLOCK.sub(lambda found: f'<div class="diagram">{drawn(found[1])}</div>\n', markdown)


def drawn(text: str) -> str:
    """A flowchart as an SVG element."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    chart = _read(lines)
    if lines:
        raise ValueError(f"after the end: {lines[0]}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {chart.width:.0f} '
        f'{chart.height:.0f}" width="{chart.width:.0f}" font-size="13" font-family="inherit">'
        f'<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        f'markerHeight="8" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" '
        f'fill="currentColor"/></marker></defs>{chart.svg}</svg>'
    )


@dataclass
class _Node:
    """What has a place: a box, a subgraph, or a bend of an arrow over several layers."""

    svg: str = ""
    width: float = 4
    height: float = 0
    above: list[_Node] = field(default_factory=list)
    below: list[_Node] = field(default_factory=list)
    layer: int = 0
    x: float = 0  # of the middle
    y: float = 0


@dataclass
class _Arrow:
    kind: str
    label: str
    path: list[_Node]


def _box(text: str, round_: bool) -> _Node:
    rows = text.split("<br>")
    width = CHAR * max(map(len, rows)) + 2 * PAD
    height = LINE * len(rows) + PAD
    radius = 14 if round_ else 3
    texts = "".join(
        f'<text x="{width / 2:.0f}" y="{PAD / 2 + LINE * (row + 0.72):.0f}" text-anchor="middle" '
        f'fill="currentColor">{html.escape(words)}</text>'
        for row, words in enumerate(rows)
    )
    frame = (
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="{radius}" fill="currentColor" '
        'fill-opacity="0.06" stroke="currentColor" stroke-opacity="0.5"/>'
    )
    return _Node(frame + texts, width, height)


def _read(lines: list[str]) -> _Node:
    """The lines up to the chart's end, which are taken away, as one node."""
    nodes: dict[str, _Node] = {}
    arrows: list[_Arrow] = []
    across = False
    while lines and (line := lines.pop(0)) != "end":
        if found := START.fullmatch(line):
            across = found[1] == "LR"
        elif found := SUBGRAPH.fullmatch(line):
            nodes[found[1]] = _framed(_read(lines), found[2] or "")
        else:
            _read_chain(line, nodes, arrows)
    return _laid_out(list(nodes.values()), arrows, across)


def _read_chain(line: str, nodes: dict[str, _Node], arrows: list[_Arrow]) -> None:
    """A line such as ``a[text] --> b -->|label| c``."""
    before, arrow, rest = None, None, line
    while True:
        found = NODE.match(rest)
        if found is None:
            raise ValueError(f"no box: {line}")
        node = nodes.setdefault(found[1], _box(found[1], False))
        if found[3] is not None:
            box = _box(found[3], found[2] is not None)
            node.svg, node.width, node.height = box.svg, box.width, box.height
        if before is not None and arrow is not None:
            arrows.append(_Arrow(arrow[1], arrow[2] or "", [before, node]))
        rest = rest[found.end() :]
        arrow, before = ARROW.match(rest), node
        if not arrow:
            if rest:
                raise ValueError(f"no arrow: {line}")
            return
        rest = rest[arrow.end() :]


def _framed(inner: _Node, title: str) -> _Node:
    """A subgraph with its frame and its title."""
    width = max(inner.width + 2 * PAD, CHAR * len(title) + 2 * PAD)
    height = inner.height + LINE + 2 * PAD
    svg = (
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="3" fill="none" '
        f'stroke="currentColor" stroke-opacity="0.3"/><text x="{PAD}" y="{LINE}" '
        f'fill="currentColor" opacity="0.7">{html.escape(title)}</text>'
        f'<g transform="translate({(width - inner.width) / 2:.0f} {LINE + PAD})">{inner.svg}</g>'
    )
    return _Node(svg, width, height)


def _laid_out(nodes: list[_Node], arrows: list[_Arrow], across: bool) -> _Node:
    """Nodes in layers, arrows from each to the next; across: the layers are columns."""
    for _ in nodes:
        for arrow in arrows:
            first, last = arrow.path
            last.layer = max(last.layer, first.layer + 1)
    layers: list[list[_Node]] = [[] for _ in range(1 + max(node.layer for node in nodes))]
    for node in nodes:
        layers[node.layer].append(node)
        if across:
            node.width, node.height = node.height, node.width
    for arrow in arrows:
        first, last = arrow.path
        bends = [_Node(layer=layer) for layer in range(first.layer + 1, last.layer)]
        arrow.path = [first, *bends, last]
        for upper, lower in pairwise(arrow.path):
            upper.below.append(lower)
            lower.above.append(upper)
        for bend in bends:
            layers[bend.layer].append(bend)
    _place(layers)
    for node in nodes if across else []:
        node.width, node.height = node.height, node.width
    for node in [node for layer in layers for node in layer] if across else []:
        node.x, node.y = node.y, node.x
    parts = [_arrow(arrow, across) for arrow in arrows]
    parts += [
        f'<g transform="translate({node.x - node.width / 2:.0f} {node.y - node.height / 2:.0f})">'
        f"{node.svg}</g>"
        for node in nodes
    ]
    everything = [node for layer in layers for node in layer]
    return _Node(
        "".join(parts),
        max(node.x + node.width / 2 for node in everything) + 1,
        max(node.y + node.height / 2 for node in everything) + 1,
    )


def _place(layers: list[list[_Node]]) -> None:
    """Gives every node its middle: near those that it is joined to, and beside its neighbours."""
    y = 1.0
    for layer in layers:
        height = max(node.height for node in layer)
        for node in layer:
            node.y = y + height / 2
        y += height + STEP
        _spread(layer)
    for sweep in range(24):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            for node in layer:
                joined = (
                    [*node.above, *node.below]
                    if sweep > 11
                    else (node.above if sweep % 2 == 0 else node.below)
                )
                if joined:
                    node.x = sum(other.x for other in joined) / len(joined)
            layer.sort(key=lambda node: node.x)
            _spread(layer)
    left = min(node.x - node.width / 2 for layer in layers for node in layer)
    for layer in layers:
        for node in layer:
            node.x += 1 - left


def _spread(layer: list[_Node]) -> None:
    """Pushes neighbours apart, and the layer back to where its middle was."""
    wanted = sum(node.x for node in layer)
    for one, two in pairwise(layer):
        two.x = max(two.x, one.x + (one.width + two.width) / 2 + GAP)
    shift = (wanted - sum(node.x for node in layer)) / len(layer)
    for node in layer:
        node.x += shift


def _arrow(arrow: _Arrow, across: bool) -> str:
    def end(node: _Node, side: int) -> tuple[float, float]:
        if across:
            return node.x + side * node.width / 2, node.y
        return node.x, node.y + side * node.height / 2

    points = [end(arrow.path[0], 1)]
    points += [(node.x, node.y) for node in arrow.path[1:-1]]
    points.append(end(arrow.path[-1], -1))
    d = f"M{points[0][0]:.0f} {points[0][1]:.0f}"
    for (x, y), (u, v) in pairwise(points):
        h, k = (x + u) / 2, (y + v) / 2
        bend = (
            f"C{h:.0f} {y:.0f} {h:.0f} {v:.0f}" if across else f"C{x:.0f} {k:.0f} {u:.0f} {k:.0f}"
        )
        d += f"{bend} {u:.0f} {v:.0f}"
    style = ' stroke-dasharray="4 4"' if arrow.kind == "-.->" else ""
    back = ' marker-start="url(#arrow)"' if arrow.kind == "<-->" else ""
    (x, y), (u, v) = points[-2:]
    label = (
        f'<text x="{(x + u) / 2 + 4:.0f}" y="{(y + v) / 2 + 4:.0f}" fill="currentColor" '
        f'opacity="0.8">{html.escape(arrow.label)}</text>'
        if arrow.label
        else ""
    )
    return (
        f'<path d="{d}" fill="none" stroke="currentColor" stroke-opacity="0.6"{style}{back} '
        f'marker-end="url(#arrow)"/>{label}'
    )
