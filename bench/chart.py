"""The main measures as a picture: panels of horizontal bars, the best on top, ours in its own colour. Plain SVG."""

from dataclasses import dataclass
from html import escape

from peers import OURS, RAW, RELAYED
from report import BY_KEY, number

WIDTH, MARGIN, GAP = 1240, 40, 44
COLUMNS = 2
PANEL = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
LABEL, VALUE = 148, 96  # left of the bars, and right of the longest
BAR, ROW_GAP, PANEL_HEAD, PANEL_GAP = 11, 9, 58, 34
TITLE, LEGEND = 84, 34

INK, MUTED, RULE, PAPER = "#1c2430", "#6b7686", "#e3e7ec", "#ffffff"
OURS_COLOURS = ("#e4572e", "#f3a78f", "#f8d0c3")
OURS_ROW = "#fdf1ed"
LAYER_COLOURS = {2: ("#2f6690", "#93b7d1", "#c9dbe8"), 3: ("#7d8896", "#bcc3cc", "#dde1e6")}


@dataclass
class Series:
    """One bar of each peer's: where its value comes from, and what the panel calls it."""

    leg: dict
    key: str
    says: str

    def value(self, name):
        return self.leg["medians"].get(name, {}).get(self.key)


@dataclass
class Panel:
    title: str
    series: list

    def __post_init__(self):
        self.series = [s for s in self.series if any(s.value(n) is not None for n in s.leg["medians"] if n != RAW)]

    def rows(self):
        """The peers that have a value, best first by the first series."""
        names = dict.fromkeys(n for s in self.series for n in s.leg["medians"] if n != RAW and s.value(n) is not None)
        sign = -1 if self.more_is_better else 1
        first = self.series[0]
        return sorted(names, key=lambda n: (first.value(n) is None, sign * (first.value(n) or 0)))

    @property
    def more_is_better(self):
        return BY_KEY[self.series[0].key].more_is_better

    @property
    def unit(self):
        return BY_KEY[self.series[0].key].unit

    @property
    def row_height(self):
        return BAR * len(self.series) + ROW_GAP

    @property
    def height(self):
        return PANEL_HEAD + self.row_height * len(self.rows())


def svg(run):
    panels = [panel for panel in panels_of(run) if panel.series]
    heights, body = [TITLE] * COLUMNS, []
    for panel in panels:
        column = heights.index(min(heights))
        body += draw(panel, run, MARGIN + column * (PANEL + GAP), heights[column])
        heights[column] += panel.height + PANEL_GAP
    height = max(heights) + LEGEND
    legs = "; ".join(leg["name"] if leg["name"] != "loss" else f"{leg['loss']:g} % loss" for leg in run["legs"])
    heads = [
        text(MARGIN, 42, "eps-actor beside its peers", 24, weight=600),
        text(
            MARGIN,
            66,
            f"{run['date']} · {run['machine']} · median of {run['rounds']} × {run['secs']} s · underlay: {legs}",
            13,
            MUTED,
        ),
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
            "font-family=\"Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif\">",
            rectangle(0, 0, WIDTH, height, PAPER),
            *heads,
            *body,
            *legend(height - 24),
            "</svg>",
            "",
        ]
    )


def panels_of(run):
    legs = {leg["name"]: leg for leg in run["legs"]}
    main = run["legs"][0]

    def of(*series):
        return [Series(main, key, says) for key, says in series]

    yield Panel("TCP throughput", of(("tcp1_gbit", "1 stream"), ("tcp4_gbit", "4 streams")))
    yield Panel(
        "UDP, 64 bytes", of(("udp64_kpps", "delivered at saturation"), ("udp64_clean_kpps", "with less than 1 % lost"))
    )
    yield Panel("VPN CPU for 1 GB of TCP, both ends", of(("cpu_s_per_gb", "")))
    yield Panel("Round trip, idle", of(("rtt_p50_us", "p50"), ("rtt_p99_us", "p99")))
    yield Panel("Round trip while one TCP stream fills the tunnel", of(("load_p50_us", "p50"), ("load_p99_us", "p99")))
    yield Panel("Peak memory of an end", of(("peak_mb", "")))
    others = [
        Series(legs[name], "tcp1_gbit", says)
        for name, says in (
            ("cut", "packets cut"),
            ("loss", f"{legs['loss']['loss']:g} % loss" if "loss" in legs else ""),
        )
        if name in legs
    ]
    if others and main["name"] not in ("cut", "loss"):
        yield Panel("TCP, 1 stream, on a harder underlay", others)


def draw(panel, run, x, y):
    best = "more is better" if panel.more_is_better else "less is better"
    says = " / ".join(s.says for s in panel.series if s.says)
    raw = " / ".join(number(s.value(RAW)) for s in panel.series if s.value(RAW) is not None)
    note = " · ".join(part for part in (says, best, f"raw veth {raw}" if raw else "") if part)
    yield text(x, y + 16, f"{panel.title}, {panel.unit}", 15, weight=600)
    yield text(x, y + 35, note, 12, MUTED)
    yield rectangle(x, y + 44, PANEL, 1, RULE)
    rows = panel.rows()
    longest = max(s.value(n) or 0 for s in panel.series for n in rows) or 1
    room = PANEL - LABEL - VALUE
    for i, name in enumerate(rows):
        top = y + PANEL_HEAD + i * panel.row_height
        tall = BAR * len(panel.series)
        ours = name in (OURS, RELAYED)
        if ours:
            yield rectangle(x, top - ROW_GAP / 2, PANEL, panel.row_height, OURS_ROW)
        yield text(
            x + LABEL - 10,
            top + tall / 2 + 4.5,
            name,
            13,
            OURS_COLOURS[0] if ours else INK,
            "end",
            600 if ours else 400,
        )
        for j, series in enumerate(panel.series):
            value = series.value(name)
            if value is None:
                continue
            width = max(1.5, room * value / longest)
            bar_y = top + j * BAR
            yield rectangle(x + LABEL, bar_y, width, BAR - 1, colour(run, name, j), radius=1.5)
            yield text(
                x + LABEL + width + 6,
                bar_y + BAR - 1.5,
                number(value),
                11,
                INK if j == 0 else MUTED,
                weight=600 if ours and j == 0 else 400,
            )


def colour(run, name, series):
    return OURS_COLOURS[series] if name in (OURS, RELAYED) else LAYER_COLOURS[run["peers"][name]["layer"]][series]


def legend(y):
    x = MARGIN
    for fill, says in (
        (OURS_COLOURS[0], "eps-actor (layer 2)"),
        (LAYER_COLOURS[2][0], "other layer 2 VPNs"),
        (LAYER_COLOURS[3][0], "layer 3 VPNs"),
    ):
        yield rectangle(x, y - 10, 12, 12, fill, radius=2)
        yield text(x + 19, y, says, 12, MUTED)
        x += 44 + 7 * len(says)
    yield text(x, y, "The paler bar is the second of each pair.", 12, MUTED)


def text(x, y, words, size, fill=INK, anchor="start", weight=400):
    style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>'


def rectangle(x, y, width, height, fill, radius=0):
    return f'<rect x="{x:g}" y="{y:g}" width="{width:.1f}" height="{height:g}" rx="{radius}" fill="{fill}"/>'
