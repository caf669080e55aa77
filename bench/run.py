#!/usr/bin/env python3
"""The whole-system benchmark: eps-actor beside its peers, on one machine, in one command.

Two network namespaces joined by a veth stand for two hosts. In every round each peer is brought up, measured and taken
down again, so that a machine that drifts is unfair to all alike; the figures are medians over the rounds. README.md
beside this file says what is measured and how.

    sudo python3 bench/run.py                        5 rounds over all peers found
    sudo python3 bench/run.py --all                  and cut packets, 1 % loss and the relay, for every bar
    sudo python3 bench/run.py --rounds 1 --secs 2 --peers fastd,wireguard-go --only tcp1,rtt
    sudo python3 bench/run.py --install              get iperf3 and its like, and the peers, then stop

eps-actor is found by $EPS_ACTOR, in target/release, or on PATH.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

import chart
import loads
import peers
import report
from peers import OURS, RAW, RELAYED
from world import Failed, World, clear_leftovers

HERE = os.path.dirname(os.path.abspath(__file__))
TOOLS = {
    "iperf3": "iperf3",
    "ping": "iputils-ping",
    "ethtool": "ethtool",
    "ip": "iproute2",
    "sysctl": "procps",
    "nft": "nftables",
    "iptables": "iptables",
    "wg": "wireguard-tools",
    "openssl": "openssl",
}
NEEDED = ["iperf3", "ping", "ethtool", "ip", "sysctl"]
MEASURES = ["tcp1", "tcp4", "udp64", "udpmtu", "rtt", "load"]


@dataclass
class Leg:
    """One set of conditions, under which every peer is measured."""

    name: str
    offload: str = "veth"
    loss: float = 0.0
    only: list = field(default_factory=lambda: MEASURES)
    relay: bool = False

    def says(self):
        text = {
            "veth": "large packets cross the veth whole, as it comes",
            "cut": "TSO, GSO and UDP segmentation off, GRO on at both ends of the veth: packets cross one by one",
        }[self.offload]
        if self.loss:
            text = (
                f"{self.loss:g} % of the packets lost at random in each direction; packets cross one by one and are "
                "not joined again on arrival (GRO off too), else netfilter would lose a whole train at once"
            )
        return text


def main():
    options = arguments()
    if os.geteuid() != 0:
        sys.exit("bench: network namespaces need root; run it with sudo")
    programs = os.path.abspath(options.programs)
    os.environ["PATH"] = os.pathsep.join([os.path.join(programs, "bin"), os.environ["PATH"]])
    find_ourselves()
    if options.install:
        return install(programs)
    if missing := [f"{tool} ({TOOLS[tool]})" for tool in NEEDED if not shutil.which(tool)]:
        sys.exit(
            f"bench: not installed: {', '.join(missing)}. As root, `run.py --install` does it on Debian and its kin."
        )
    for s in signal.SIGTERM, signal.SIGHUP:
        signal.signal(s, lambda *_: sys.exit("bench: ended by a signal"))
    clear_leftovers()

    found, absent = peers.find(options.subject, relay=any(leg.relay for leg in options.legs))
    chosen, unknown = choose(found, absent, options.peers)
    for name in unknown:
        sys.exit(
            f"bench: no peer {name}; here are {', '.join(found)}"
            + (f"; not here: {', '.join(absent)}" if absent else "")
        )
    for name, why in absent.items():
        print(f"bench: goes without {name}: {why}", flush=True)
    run = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": machine(),
        "rounds": options.rounds,
        "secs": options.secs,
        "congestion": options.congestion or read("/proc/sys/net/ipv4/tcp_congestion_control"),
        "peers": {name: describe(found[name]) for name in chosen},
        "absent": absent,
        "legs": [],
    }
    interrupted = False
    try:
        measure_all(run, options, {name: found[name] for name in chosen})
    except KeyboardInterrupt:
        interrupted = True
        print("\nbench: interrupted; the table is of what there is", flush=True)
    if any(leg["samples"] for leg in run["legs"]):
        publish(run, options.out)
    return 130 if interrupted else 0


def measure_all(run, options, chosen):
    for leg in options.legs:
        run["legs"].append(
            {
                "name": leg.name,
                "offload": leg.offload,
                "loss": leg.loss,
                "only": leg.only,
                "says": leg.says(),
                "samples": {},
                "failures": {},
            }
        )
    for round_ in range(1, options.rounds + 1):
        for leg, record in zip(options.legs, run["legs"]):
            for name, spec in chosen.items():
                if name == RELAYED and not leg.relay:
                    continue
                print(
                    f"[{time.strftime('%H:%M:%S')}] round {round_}/{options.rounds} {leg.name:5} {name:20} ",
                    end="",
                    flush=True,
                )
                sample, failure = measure(spec, leg, options)
                print(report.brief(sample) + (f"  FAILED: {failure}" if failure else ""), flush=True)
                if sample:
                    record["samples"].setdefault(name, []).append(sample)
                if failure:
                    record["failures"].setdefault(name, []).append(failure)


def measure(spec, leg, options):
    """Brings one peer up, measures it and takes it down: (figures, what went wrong or None)."""
    sample, troubles = {}, []

    def take(measure_, load):
        # What one load cannot do, another may.
        if measure_ in leg.only:
            try:
                sample.update(load())
            except Failed as why:
                world.require_alive()
                troubles.append(f"{measure_}: {why}")

    try:
        with World(spec.get("topology", "pair"), leg.offload, leg.loss) as world:
            first_reply = world.start(spec)
            if spec.get("a"):
                sample["join_ms"] = first_reply * 1000
            require_path(world, spec)
            sample["mtu"] = world.mtu()
            fragments = world.fragments()
            take("tcp1", lambda: tcp1(world, options))
            take("tcp4", lambda: {"tcp4_gbit": loads.tcp(world, options.secs, 4, options.congestion).gbit})
            sample["fragments"] = world.fragments() - fragments
            take("rtt", lambda: dict(zip(("rtt_p50_us", "rtt_p99_us"), loads.rtt(world, options.pings))))
            take(
                "load",
                lambda: dict(
                    zip(("load_p50_us", "load_p99_us"), loads.rtt_under_load(world, options.secs, options.congestion))
                ),
            )
            take("udp64", lambda: {"udp64_clean_kpps": loads.udp_clean_pps(world, 64) / 1000})
            take("udp64", lambda: {"udp64_kpps": loads.udp(world, options.secs, 64).pps / 1000})
            payload = min(sample["mtu"], peers.MTU) - 28
            take("udpmtu", lambda: {"udpmtu_gbit": loads.udp(world, options.secs, payload).gbit})
            if spec.get("a"):
                sample["peak_mb"] = world.memory("VmHWM") / 1e6
                sample["after_mb"] = world.memory("VmRSS") / 1e6
            require_path(world, spec)
    except Failed as why:
        troubles.append(str(why))
    except subprocess.TimeoutExpired as why:
        troubles.append(f"{why.cmd[-1] if isinstance(why.cmd, list) else why.cmd} took more than {why.timeout:g} s")
    return sample, "; ".join(troubles) or None


def tcp1(world, options):
    got = loads.tcp(world, options.secs, 1, options.congestion)
    figures = {"tcp1_gbit": got.gbit}
    if world.processes["a"]:
        figures["cpu_s_per_gb"] = got.cpu_s_per_gb
    if world.processes["server"]:
        figures["server_s_per_gb"] = got.server_s_per_gb
    return figures


def require_path(world, spec):
    """Ours says itself which way frames go; a figure for the wrong way would be worse than none."""
    if "status" not in spec:
        return
    status = json.loads(world.run(spec["status"], "b"))
    states = [peer["state"] for peer in status["peers"]]
    if states != [spec["expect"]]:
        raise Failed(f"the path should be {spec['expect']}, but is {', '.join(states) or 'not there'}")


# -- what is there, and what is not -----------------------------------------------------------------------------------


def find_ourselves():
    if not os.environ.get("EPS_ACTOR"):
        built = os.path.join(HERE, "..", "target", "release", "eps-actor")
        if os.access(built, os.X_OK):
            os.environ["EPS_ACTOR"] = os.path.abspath(built)


def choose(found, absent, names):
    """(what to measure in its order, names that nobody has); who is only absent is passed over."""
    usual = peers.default(found)
    if not names:
        return usual, []
    chosen, unknown = {RAW, OURS, RELAYED}, []
    for name in names:
        # A family's name stands for those of it that are measured by default.
        matching = [name] if name in found else [n for n in usual if n.startswith(name + "-") and n != RELAYED]
        chosen.update(matching)
        unknown += [] if matching or name in absent else [name]
    return [name for name in found if name in chosen], unknown


def describe(spec):
    return {
        "layer": spec["layer"],
        "crypto": spec["crypto"],
        "version": peers.first_line(spec["version"]) if "version" in spec else "",
    }


def machine():
    model = next(
        (line.split(":")[1].strip() for line in read("/proc/cpuinfo").splitlines() if line.startswith("model name")),
        "?",
    )
    return f"{os.cpu_count()} × {model}, Linux {platform.release()}"


def read(path):
    with open(path) as f:
        return f.read().strip()


def install(programs):
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    if missing:
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        subprocess.run(["apt-get", "update", "-qq"], env=environment, check=False)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=environment, check=True
        )
    subprocess.run([os.path.join(HERE, "get-peers"), programs], check=False)


# -- results ----------------------------------------------------------------------------------------------------------


def publish(run, out):
    for leg in run["legs"]:
        leg["medians"] = {name: medians(samples) for name, samples in leg["samples"].items()}
    text = report.markdown(run)
    print("\n" + text)
    base = os.path.splitext(out or os.path.join(HERE, "results", time.strftime("%Y-%m-%d-%H%M")))[0]
    os.makedirs(os.path.dirname(os.path.abspath(base)), exist_ok=True)
    for suffix, content in (".json", json.dumps(run, indent=1) + "\n"), (".md", text), (".svg", chart.svg(run)):
        with open(base + suffix, "w") as f:
            f.write(content)
    print(f"bench: also as {base}.json, .md and .svg")


def medians(samples):
    keys = dict.fromkeys(key for sample in samples for key in sample)
    return {key: statistics.median([s[key] for s in samples if key in s]) for key in keys}


# -- the command line -------------------------------------------------------------------------------------------------


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5, help="times that each peer is measured (default 5)")
    parser.add_argument("--secs", type=positive, default=5, help="length of each load (default 5)")
    parser.add_argument("--pings", type=positive, default=1000, help="pings of the idle tunnel (default 1000)")
    parser.add_argument(
        "--peers",
        type=words,
        metavar="A,B",
        help="these beside raw veth and ours; a name without version is all usual ones",
    )
    parser.add_argument(
        "--only",
        type=words,
        metavar="M,N",
        default=MEASURES,
        help=f"of {','.join(MEASURES)} (CPU is measured with tcp1)",
    )
    parser.add_argument(
        "--offload",
        choices=["veth", "cut"],
        default="veth",
        help="veth: as it is, large packets cross whole; cut: they cross one by one and are joined again on "
        "arrival, as between two network cards",
    )
    parser.add_argument(
        "--loss",
        type=percent,
        default=0.0,
        metavar="PERCENT",
        help="lose packets of the underlay at random, in both directions; implies cut, and GRO off",
    )
    parser.add_argument(
        "--relay", action="store_true", help="ours also through its server, which alone both ends reach"
    )
    parser.add_argument("--all", action="store_true", help="veth and the relay, then TCP cut, then TCP with 1 %% loss")
    parser.add_argument("--congestion", metavar="NAME", help="congestion control of TCP, if not the machine's")
    parser.add_argument(
        "--subject", default=os.path.join(HERE, "subject.json"), metavar="FILE", help="how ours is set up"
    )
    parser.add_argument(
        "--programs",
        default=os.path.join(HERE, "programs"),
        metavar="DIR",
        help="where get-peers put the peers (default bench/programs)",
    )
    parser.add_argument("--out", metavar="FILE", help="where the JSON goes, the table and the picture beside it")
    parser.add_argument(
        "--install", action="store_true", help="install what is missing, as far as apt and cargo have it, and stop"
    )
    options = parser.parse_args()
    if wrong := [m for m in options.only if m not in MEASURES]:
        parser.error(f"no measure {', '.join(wrong)}; there are {', '.join(MEASURES)}")
    offload = "cut" if options.loss else options.offload
    name = "loss" if options.loss else offload
    options.legs = [Leg(name, offload, options.loss, options.only, options.relay or options.all)]
    if options.all:
        options.legs = [
            Leg("veth", only=options.only, relay=True),
            Leg("cut", "cut", only=["tcp1", "tcp4"]),
            Leg("loss", "cut", loss=1.0, only=["tcp1"]),
        ]
    return options


def words(text):
    return [word for word in text.split(",") if word]


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def percent(text):
    if not 0 < float(text) < 100:
        raise argparse.ArgumentTypeError("must lie between 0 and 100")
    return float(text)


if __name__ == "__main__":
    sys.exit(main())
