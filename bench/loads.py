"""The loads: what is put on a World, and what is made of it. Each is bounded in time and holds the machine's lock."""

import contextlib
import fcntl
import json
import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass

from world import Failed

IPERF_PORT = 5201
CLEAN_LOSS = 0.01  # "under 1 % loss"
SEARCH_START_PPS = 20_000
SEARCH_TOP_PPS = 4_000_000
SEARCH_HALVINGS = 4  # of a factor of 2: the rate is known to 4 %
SEARCH_SECS = 1


@contextlib.contextmanager
def machine_lock():
    """One measurement at a time on a machine; whoever else measures or compiles may take the same lock."""
    path = os.environ.get("BENCH_LOCK") or os.path.join(tempfile.gettempdir(), "bench.lock")
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass
class Tcp:
    gbit: float  # that arrived, in Gbit/s
    cpu_s_per_gb: float  # of the VPN's two ends
    server_s_per_gb: float  # of a server beside them


@dataclass
class Udp:
    pps: float  # datagrams that arrived, per second
    gbit: float  # the same as payload
    sent_pps: float
    loss: float


def tcp(world, secs, streams, congestion=None):
    options = ["-P", str(streams)] + (["-C", congestion] if congestion else [])
    with machine_lock():
        before = world.cpu("a", "b"), world.cpu("server")
        report = iperf(world, secs, options)
        after = world.cpu("a", "b"), world.cpu("server")
    arrived = report["server_output_json"]["end"]["sum_received"]
    if not arrived["bytes"] or not arrived["seconds"]:
        raise Failed("no TCP arrived")
    vpn, server = ((b - a) / arrived["bytes"] * 1e9 for a, b in zip(before, after))
    return Tcp(arrived["bytes"] * 8 / arrived["seconds"] / 1e9, vpn, server)


def udp(world, secs, size, pps=0):
    """Offers datagrams of `size` bytes of payload, as fast as it goes where no rate is given."""
    with machine_lock():
        report = iperf(world, secs, ["-u", "-l", str(size), "-b", str(pps * size * 8)])
    sent, arrived = report["end"]["sum_sent"], report["server_output_json"]["end"]["sum_received"]
    if not sent["packets"] or not arrived["seconds"]:
        raise Failed("no UDP was sent")
    packets = arrived["bytes"] / size
    return Udp(
        packets / arrived["seconds"],
        arrived["bytes"] * 8 / arrived["seconds"] / 1e9,
        sent["packets"] / sent["seconds"],
        max(0.0, 1 - packets / sent["packets"]),
    )


def udp_clean_pps(world, size):
    """The highest rate that arrives with less than 1 % missing: doubled until it does not, then narrowed down."""
    best, low, high, offered = 0.0, 0, None, SEARCH_START_PPS
    while offered <= SEARCH_TOP_PPS:
        got = _try_clean(world, size, offered)
        if not got:
            high = offered
            break
        best, low = max(best, got.pps), offered
        if got.sent_pps < 0.9 * offered:
            return best  # the sender is at its end, not the tunnel
        offered *= 2
    if high is None:
        return best
    low = low or high // 16  # even the first was too much
    for _ in range(SEARCH_HALVINGS):
        offered = int((low * high) ** 0.5)
        if got := _try_clean(world, size, offered):
            best, low = max(best, got.pps), offered
        else:
            high = offered
    return best


def _try_clean(world, size, offered):
    """A near miss gets a second chance: another's work on the machine looks like loss."""
    for _ in range(2):
        got = udp(world, SEARCH_SECS, size, offered)
        if got.loss < CLEAN_LOSS:
            return got
        if got.loss > 5 * CLEAN_LOSS:
            return None
    return None


def rtt(world, count):
    """(p50, p99) in µs of an idle tunnel, one ping each millisecond."""
    with machine_lock():
        return _ping(world, count, 0.001)


def rtt_under_load(world, secs, congestion=None):
    """(p50, p99) in µs while one TCP stream fills the tunnel, a ping each 10 ms."""
    options = f"-C {congestion}" if congestion else ""
    with machine_lock(), _iperf_server(world):
        stream = world.spawn(f"iperf3 -c $OA -t {secs + 2} --connect-timeout 3000 {options}", "b", "load")
        time.sleep(0.7)
        try:
            result = _ping(world, secs * 100, 0.01)
            if stream.poll() is not None:
                raise Failed("the TCP stream ended under the pings")
        finally:
            world.end(stream)
    return result


def _ping(world, count, interval):
    # Where replies take longer than the interval, ping waits for them; -w bounds it all the same.
    limit = int(count * interval * 4) + 2
    out = world.run(f"ping -n -i {interval} -c {count} -W 1 -w {limit} $OA", "b", check=False, timeout=limit + 10)
    times = sorted(float(ms) * 1000 for ms in re.findall(r"time=([\d.]+) ms", out))
    if len(times) < min(20, count):
        raise Failed(f"only {len(times)} of {count} pings were answered")
    return times[len(times) // 2], times[int(len(times) * 0.99)]


def iperf(world, secs, options):
    """One run from b to a: iperf3's report, with the server's own under server_output_json."""
    with _iperf_server(world):
        client = world.spawn(
            f"iperf3 -c $OA -t {secs} -J --get-server-output --connect-timeout 3000 {' '.join(options)}",
            "b",
            "load",
            stdout=subprocess.PIPE,
        )
        try:
            out, _ = client.communicate(timeout=secs + 20)
        except subprocess.TimeoutExpired:
            raise Failed(f"iperf3 {' '.join(options)} did not end") from None
        finally:
            world.end(client)
    world.require_alive()
    try:
        report = json.loads(out)
    except ValueError:
        raise Failed(f"iperf3 {' '.join(options)} said nothing readable") from None
    if "error" in report or "server_output_json" not in report:
        raise Failed(f"iperf3 {' '.join(options)}: {report.get('error', 'no report from its server')}")
    return report


@contextlib.contextmanager
def _iperf_server(world):
    server = world.spawn("iperf3 -s -1 -J", "a", "load", stdout=subprocess.DEVNULL)
    try:
        world.wait_for("iperf3 server", lambda: _listens(server.pid), limit=5, every=0.01)
        yield
    finally:
        world.end(server)


def _listens(pid):
    """Whether something listens on iperf3's port in the namespace of this process."""
    with contextlib.suppress(OSError):
        if not os.readlink(f"/proc/{pid}/exe").endswith("/iperf3"):
            return False  # not in its namespace yet
        for table in "tcp", "tcp6":
            with open(f"/proc/{pid}/net/{table}") as rows:
                if any(re.search(rf":{IPERF_PORT:04X} [0-9A-F]+:0000 0A ", row) for row in rows):
                    return True
    return False
