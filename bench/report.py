"""What came out, for people: the table with its ratios, and the bars with their verdicts."""

import re
from dataclasses import dataclass

from peers import OURS, RAW, RELAYED


@dataclass
class Figure:
    key: str
    title: str
    unit: str
    more_is_better: bool

    def best(self, values):
        values = [v for v in values if v is not None]
        return (max if self.more_is_better else min)(values) if values else None


FIGURES = [
    Figure("tcp1_gbit", "TCP 1 stream", "Gbit/s", True),
    Figure("tcp4_gbit", "TCP 4 streams", "Gbit/s", True),
    Figure("udp64_clean_kpps", "UDP 64 B, < 1 % lost", "kpps", True),
    Figure("udp64_kpps", "UDP 64 B, saturated", "kpps", True),
    Figure("udpmtu_gbit", "UDP of MTU size, saturated", "Gbit/s", True),
    Figure("rtt_p50_us", "RTT p50", "µs", False),
    Figure("rtt_p99_us", "RTT p99", "µs", False),
    Figure("load_p50_us", "RTT p50 under TCP", "µs", False),
    Figure("load_p99_us", "RTT p99 under TCP", "µs", False),
    Figure("cpu_s_per_gb", "VPN CPU", "s/GB", False),
    Figure("server_s_per_gb", "CPU of a server beside it", "s/GB", False),
    Figure("peak_mb", "peak memory", "MB", False),
    Figure("join_ms", "first reply", "ms", False),
]
BY_KEY = {figure.key: figure for figure in FIGURES}
BRIEF = [
    ("tcp1_gbit", "tcp1"),
    ("tcp4_gbit", "tcp4"),
    ("cpu_s_per_gb", "cpu"),
    ("udp64_clean_kpps", "udp64 clean"),
    ("udp64_kpps", "udp64"),
    ("udpmtu_gbit", "udpmtu"),
    ("rtt_p50_us", "rtt"),
    ("load_p50_us", "loaded"),
]


def number(value):
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"


def brief(sample):
    """One round's figures of one peer, for the progress line."""
    return ", ".join(f"{word} {number(sample[key])} {BY_KEY[key].unit}" for key, word in BRIEF if key in sample)


# -- who is who -------------------------------------------------------------------------------------------------------


class Results:
    """The medians of one leg, and the questions that ratios and bars ask of them."""

    def __init__(self, run, leg):
        self.run, self.leg, self.medians = run, leg, leg["medians"]

    def of(self, name, key):
        return self.medians.get(name, {}).get(key)

    def rivals(self, layer=None):
        """Everybody else's VPN, of one layer or of both."""
        return [
            n
            for n in self.medians
            if n not in (OURS, RELAYED, RAW) and (layer is None or self.run["peers"][n]["layer"] == layer)
        ]

    def best(self, key, names):
        """(name, value) of the best of these, or (None, None)."""
        values = {n: self.of(n, key) for n in names if self.of(n, key) is not None}
        best = BY_KEY[key].best(values.values())
        return next(((n, v) for n, v in values.items() if v == best), (None, None))

    def offloading_wireguard_go(self):
        """The versions since 2023, which batch through the TUN's offload."""
        return [
            n
            for n in self.rivals()
            if n.startswith("wireguard-go")
            and (year := re.search(r"v0\.0\.(20\d\d)", self.run["peers"][n]["version"]))
            and int(year[1]) >= 2023
        ]


# -- bars -------------------------------------------------------------------------------------------------------------


@dataclass
class Bar:
    """`key` of ours against `factor` times what `rival` gives (or against `factor` itself), in the leg called `leg`."""

    text: str
    leg: str
    key: str
    at_least: bool
    factor: float
    rival: str = ""

    def against(self, results):
        """(name, value) of what ours is held against."""
        if self.rival == "wireguard-go":
            return results.best(self.key, results.offloading_wireguard_go())
        if self.rival == "layer 2":
            return results.best(self.key, results.rivals(layer=2))
        if self.rival == "anybody":
            return results.best(self.key, results.rivals())
        if self.rival == "raw":
            return RAW, results.of(RAW, self.key)
        if self.rival == "direct":
            return OURS, results.of(OURS, self.key)
        return None, 1.0

    def judge(self, results):
        """(ours, reached ratio or figure, whom against, passed), or None where the run does not say."""
        ours = results.of(RELAYED if self.rival == "direct" else OURS, self.key)
        name, theirs = self.against(results)
        if ours is None or not theirs:
            return None
        reached = ours / theirs
        return (
            ours,
            reached,
            name and f"{name} {number(theirs)}",
            reached >= self.factor if self.at_least else reached <= self.factor,
        )


BARS = [
    Bar("TCP 1 stream ≥ 3.5 × wireguard-go with offload", "veth", "tcp1_gbit", True, 3.5, "wireguard-go"),
    Bar("TCP 1 stream ≥ 6 × the best layer 2", "veth", "tcp1_gbit", True, 6, "layer 2"),
    Bar("TCP 1 stream ≥ 0.22 of raw veth", "veth", "tcp1_gbit", True, 0.22, "raw"),
    Bar("TCP 4 streams ≥ 3.5 × wireguard-go with offload", "veth", "tcp4_gbit", True, 3.5, "wireguard-go"),
    Bar("TCP 4 streams ≥ 6 × the best layer 2", "veth", "tcp4_gbit", True, 6, "layer 2"),
    Bar("TCP 4 streams ≥ 0.22 of raw veth", "veth", "tcp4_gbit", True, 0.22, "raw"),
    Bar("CPU per GB ≤ 1/3 of wireguard-go's", "veth", "cpu_s_per_gb", False, 1 / 3, "wireguard-go"),
    Bar("UDP 64 B delivered ≥ 1.3 × the best of either layer", "veth", "udp64_kpps", True, 1.3, "anybody"),
    Bar("RTT p50 idle ≤ the best peer's", "veth", "rtt_p50_us", False, 1, "anybody"),
    Bar("RTT p50 under one TCP stream ≤ 1 ms", "veth", "load_p50_us", False, 1000),
    Bar("memory after the run < 40 MB", "veth", "after_mb", False, 40),
    Bar("TCP 1 stream relayed ≥ 0.5 of direct", "veth", "tcp1_gbit", True, 0.5, "direct"),
    Bar("cut packets: TCP 1 stream ≥ 2.5 × wireguard-go's", "cut", "tcp1_gbit", True, 2.5, "wireguard-go"),
    Bar("1 % loss: TCP 1 stream ≥ wireguard-go's", "loss", "tcp1_gbit", True, 1, "wireguard-go"),
]
UNITS = {"after_mb": "MB"}


# -- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(run):
    lines = [
        f"# Benchmark of {run['date']}",
        "",
        f"{run['machine']}. Medians of {run['rounds']} rounds, loads of {run['secs']} s, TCP with {run['congestion']}.",
        "",
    ]
    for leg in run["legs"]:
        if leg["medians"]:
            lines += [f"## {leg['name']}: {leg['says']}", "", *table(run, leg), ""]
            if ratio_rows := ratios(run, leg):
                lines += [*ratio_rows, ""]
        lines += fragmented(leg)
        lines += failures(leg)
    lines += ["## Bars", "", *bars(run), ""]
    if run["absent"]:
        lines += [
            "Not here, so not measured: " + "; ".join(f"{n} ({why})" for n, why in run["absent"].items()) + ".",
            "",
        ]
    return "\n".join(lines)


def table(run, leg):
    results = Results(run, leg)
    figures = [f for f in FIGURES if any(f.key in m for m in leg["medians"].values())]
    order = sorted(leg["medians"], key=lambda n: (n != RAW, -(results.of(n, "tcp1_gbit") or 0)))
    yield "| | layer | MTU | " + " | ".join(f"{f.title}, {f.unit}" for f in figures) + " |"
    yield "|---|---|---|" + "---:|" * len(figures)
    for name in order:
        shown = f"**{name}**" if name in (OURS, RELAYED) else name
        mtu = leg["medians"][name].get("mtu")
        cells = [number(results.of(name, f.key)) for f in figures]
        yield f"| {shown} | {run['peers'][name]['layer']} | {mtu and int(mtu) or '–'} | " + " | ".join(cells) + " |"


def ratios(run, leg):
    """Ours as a multiple of raw veth and of the best peers, for every figure that says something so."""
    results = Results(run, leg)
    rows = []
    for figure in FIGURES:
        ours = results.of(OURS, figure.key)
        cells = []
        for who, theirs in (
            (RAW, results.of(RAW, figure.key)),
            results.best(figure.key, results.rivals()),
            results.best(figure.key, results.rivals(layer=2)),
        ):
            whom = "" if who == RAW else who
            cells.append(f"{number(ours / theirs)} × {whom}".rstrip() if ours and theirs else "–")
        if ours and any(cell != "–" for cell in cells):
            wish = "more" if figure.more_is_better else "less"
            rows.append(
                f"| {figure.title} ({wish} is better) | {number(ours)} {figure.unit} | " + " | ".join(cells) + " |"
            )
    if not rows:
        return []
    return ["| ours | | of raw veth | of the best peer | of the best layer 2 |", "|---|---:|---:|---:|---:|", *rows]


def fragmented(leg):
    """A tunnel MTU too large for the underlay costs a second datagram for each."""
    made = {name: int(m["fragments"]) for name, m in leg["medians"].items() if m.get("fragments", 0) > 100}
    says = ", ".join(f"{name} ({count})" for name, count in made.items())
    return [f"IP fragments made under TCP, so the tunnel's MTU is too large here: {says}.", ""] if made else []


def failures(leg):
    lines = [
        f"* {name}, {len(reasons)} time{'s' if len(reasons) > 1 else ''}: {reasons[-1]}"
        for name, reasons in leg["failures"].items()
    ]
    return ["Failed:", "", *lines, ""] if lines else []


def bars(run):
    yield "| bar | ours | reached | |"
    yield "|---|---:|---:|---|"
    by_leg = {leg["name"]: Results(run, leg) for leg in run["legs"]}
    for bar in BARS:
        verdict = bar.judge(by_leg[bar.leg]) if bar.leg in by_leg else None
        if verdict is None:
            yield f"| {bar.text} | – | – | not measured |"
            continue
        ours, reached, against, passed = verdict
        unit = UNITS.get(bar.key) or BY_KEY[bar.key].unit
        reached = f"{number(reached)} × {against}" if against else f"{number(ours)} {unit}"
        yield f"| {bar.text} | {number(ours)} {unit} | {reached} | {'**pass**' if passed else '**MISS**'} |"
