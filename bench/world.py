"""The stage of a measurement: network namespaces joined by veths, and the processes that run in them.

A World is a context manager, and leaving it leaves nothing behind: every process in its namespaces is ended by id, the
namespaces go and so does the scratch folder. What a killed run could not clean up, the next run does.

    pair    a ===== b             192.0.2.1 and .2 on one veth, MTU 1500
    chain   a ===== s ===== b     the ends reach s only: 192.0.2.0/24 and 198.51.100.0/24, no forwarding in s

The end of the underlay is `u0` in a and in b. TCP and pings go from b to a.
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PREFIX = "epsbench"
TICKS = os.sysconf("SC_CLK_TCK")
HERE = os.path.dirname(os.path.abspath(__file__))
FIRST_REPLY = os.path.join(HERE, "first_reply.py")
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1

ADDRESSES = {
    "pair": {"UA": "192.0.2.1", "UB": "192.0.2.2"},
    "chain": {"UA": "192.0.2.1", "UB": "198.51.100.1", "US": "192.0.2.254,198.51.100.254"},
}
OVERLAY = {"OA": "10.99.0.1", "OB": "10.99.0.2"}


class Failed(Exception):
    """A peer did not do what it should; the words are for the report."""


class World:
    def __init__(self, topology="pair", offload="veth", loss=0.0):
        self.topology, self.offload, self.loss = topology, offload, loss
        self.sides = "ab" if topology == "pair" else "abs"
        self.ns = {side: f"{PREFIX}{os.getpid()}{side}" for side in self.sides}
        self.processes = {group: [] for group in ("a", "b", "server", "load")}
        self.env = dict(os.environ, **OVERLAY, **ADDRESSES[topology])

    def __enter__(self):
        self.scratch = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}.")
        self.env["W"] = self.scratch
        self.log = open(os.path.join(self.scratch, "log"), "wb")
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        with uninterrupted():
            for ns in self.ns.values():
                clear_namespace(ns)
            for group in self.processes.values():
                for process in group:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(2)
            self.log.close()
            shutil.rmtree(self.scratch, ignore_errors=True)

    # -- the underlay -------------------------------------------------------------------------------------------------

    def _build(self):
        for ns in self.ns.values():
            self.run(f"ip netns add {ns}")
        for side in self.sides:
            self.run("ip link set lo up; sysctl -qw net.ipv4.ip_forward=0", side)
        if self.topology == "pair":
            self._cable("a", "u0", "192.0.2.1", "b", "u0", "192.0.2.2")
        else:
            self._cable("a", "u0", "192.0.2.1", "s", "ua", "192.0.2.254")
            self._cable("b", "u0", "198.51.100.1", "s", "ub", "198.51.100.254")
        for side in "ab":
            # Some programs want a default route; this one leads nowhere.
            self.run("ip link add gw0 type veth peer name gw1; ip link set gw0 up; ip route add default dev gw0", side)

    def _cable(self, side, device, address, other, other_device, other_address):
        self.run(
            f"ip link add {device} netns {self.ns[side]} mtu 1500 type veth "
            f"peer name {other_device} netns {self.ns[other]} mtu 1500"
        )
        for s, d, a in (side, device, address), (other, other_device, other_address):
            self.run(f"ip addr add {a}/24 dev {d}; ip link set {d} up", s)
            if self.offload == "cut":
                # A super-datagram that GRO put together again would be lost whole, as one packet.
                gro = "off" if self.loss else "on"
                self.run(f"ethtool -K {d} tso off gso off tx-udp-segmentation off gro {gro}", s)
            if self.loss:
                self._lose(s, d)

    def _lose(self, side, device):
        """Drops arriving packets at random, before anything looks at them."""
        per_100000 = round(self.loss * 1000)
        rules = (
            f"table ip loss {{ chain in {{ type filter hook prerouting priority raw; "
            f'iifname "{device}" numgen random mod 100000 < {per_100000} counter drop; }} }}'
        )
        statistic = f"-m statistic --mode random --probability {self.loss / 100}"
        self.run(f"nft '{rules}' 2>/dev/null || iptables -t raw -A PREROUTING -i {device} {statistic} -j DROP", side)

    # -- processes ----------------------------------------------------------------------------------------------------

    def run(self, command, side=None, check=True, timeout=60):
        """Runs a shell command to its end and returns what it printed."""
        inside = ["ip", "netns", "exec", self.ns[side]] if side else []
        done = subprocess.run(
            [*inside, "bash", "-c", command],
            env=dict(self.env, S=side or ""),
            cwd=self.scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )
        if check and done.returncode:
            raise Failed(f"`{shorten(command)}` gave {done.returncode}: {shorten(done.stdout)}")
        return done.stdout

    def spawn(self, command, side, group, stdout=None):
        """Starts a shell command that keeps running, as a session of its own."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.ns[side], "bash", "-c", f"exec {command}"],
            env=dict(self.env, S=side),
            cwd=self.scratch,
            stdin=subprocess.DEVNULL,
            stdout=stdout or self.log,
            stderr=self.log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self.processes[group].append(process)
        return process

    def end(self, process):
        for how in signal.SIGTERM, signal.SIGKILL:
            for pid in sessions([process]):
                with contextlib.suppress(OSError):
                    os.kill(pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
                return

    def cpu(self, *groups):
        """Seconds of user and system time that the groups' processes have used."""
        return sum(cpu for group in groups for cpu in sessions(self.processes[group]).values())

    def memory(self, field):
        """A field of /proc/PID/status in bytes, VmHWM or VmRSS, of the end of the VPN that has more of it."""
        return max(sum(status_bytes(pid, field) for pid in sessions(self.processes[side])) for side in "ab")

    def require_alive(self):
        for side in "ab":
            for process in self.processes[side]:
                if process.poll() is not None:
                    raise Failed(f"its process in {side} ended with {process.returncode}: {self.last_words()}")

    def last_words(self):
        self.log.flush()
        with open(self.log.name, errors="replace") as log:
            return shorten(log.read()[-400:]) or "it said nothing"

    def wait_for(self, what, ready, limit=40, every=0.002):
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if got := ready():
                return got
            self.require_alive()
            time.sleep(every)
        raise Failed(f"no {what} in {limit} s: {self.last_words()}")

    # -- a VPN --------------------------------------------------------------------------------------------------------

    def start(self, spec):
        """Brings the VPN up, A first; returns the seconds from B's start to its first reply through the tunnel."""
        self.env |= spec.get("env", {})
        for command in spec.get("prep", []):
            self.run(command)
        for command in spec.get("server", []):
            self.spawn(command, "a" if self.topology == "pair" else "s", "server")
        if spec.get("server"):
            time.sleep(spec.get("server_wait", 1))
        self._start_end(spec, "a", configure=not spec.get("late"))
        if not spec.get("a"):
            self._start_end(spec, "b")
            return None
        time.sleep(2)
        first_reply = self.spawn(
            f"{sys.executable} {FIRST_REPLY} $OA {spec['dev']}", "b", "load", stdout=subprocess.PIPE
        )
        first_reply.stdout.readline()  # it is ready
        began = time.monotonic()
        self._start_end(spec, "b")
        if spec.get("late"):
            self._configure(spec, "a")
        arrived = first_reply.communicate(timeout=90)[0].strip()
        self.require_alive()
        if not arrived:
            raise Failed(f"no reply to a ping in 60 s: {self.last_words()}")
        time.sleep(spec.get("settle", 2))
        return float(arrived) - began

    def _start_end(self, spec, side, configure=True):
        for command in spec.get(side, []):
            self.spawn(command, side, side)
        if configure:
            self._configure(spec, side)

    def _configure(self, spec, side):
        device = spec["dev"].replace("$S", side)
        path = f"/sys/class/net/{device}"
        self.wait_for(f"device {device} in {side}", lambda: self.run(f"test -e {path} && echo yes", side, check=False))
        self.run(f"sysctl -qw net.ipv4.neigh.{device}.retrans_time_ms=20", side, check=False)  # see first_reply.py
        for command in spec.get(f"conf_{side}", []):
            self.run(command, side)
        if spec.get("addr", "lab") == "lab":
            address = OVERLAY["O" + side.upper()]
            mtu = f"mtu {spec['mtu']}" if "mtu" in spec else ""
            self.run(f"ip addr add {address}/24 dev {device} && ip link set {device} {mtu} up", side)

    def mtu(self):
        """Of the device that leads from b to the overlay address of a."""
        device = self.run("ip -o route get $OA", "b").split(" dev ")[1].split()[0]
        return int(self.run(f"cat /sys/class/net/{device}/mtu", "b"))

    def fragments(self):
        """IP fragments made on the underlay so far: more than a few mean that a tunnel MTU is too large."""
        made = 0
        for side in "ab":
            names, values = re.findall(r"^Ip: (.*)$", self.run("cat /proc/net/snmp", side), re.M)
            made += int(dict(zip(names.split(), values.split()))["FragCreates"])
        return made


def sessions(processes):
    """{pid: CPU seconds} of every process in the sessions that these lead."""
    leaders, found = {process.pid for process in processes}, {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if int(fields[3]) in leaders:
            found[int(pid)] = (int(fields[11]) + int(fields[12])) / TICKS
    return found


def status_bytes(pid, field):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as status:
        if found := re.search(rf"^{field}:\s+(\d+) kB", status.read(), re.M):
            return int(found[1]) * 1024
    return 0


def die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def uninterrupted():
    """Cleaning up is not cut short by a second Ctrl-C."""
    kept = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for s, handler in kept.items():
            signal.signal(s, handler)


def clear_namespace(ns):
    """Ends every process in one of our namespaces, by id, and deletes it."""
    if not os.path.exists(f"/run/netns/{ns}"):
        return
    for how in signal.SIGTERM, signal.SIGKILL:
        deadline = time.monotonic() + 2
        while pids := inhabitants(ns):
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, how)
            time.sleep(0.1)
            if time.monotonic() > deadline:
                break
    subprocess.run(["ip", "netns", "del", ns], stderr=subprocess.DEVNULL)


def inhabitants(ns):
    out = subprocess.run(
        ["ip", "netns", "pids", ns], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout
    return [int(pid) for pid in out.split() if not is_zombie(pid)]


def is_zombie(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def clear_leftovers():
    """Removes what runs that were killed outright left: their processes died with them."""
    for folder, remove in ("/run/netns", clear_namespace), (tempfile.gettempdir(), remove_scratch):
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(folder):
                owner = re.fullmatch(rf"{PREFIX}(\d+)([abs]|\..*)", name)
                if owner and not os.path.exists(f"/proc/{owner[1]}"):
                    remove(name)


def remove_scratch(name):
    shutil.rmtree(os.path.join(tempfile.gettempdir(), name), ignore_errors=True)


def shorten(text, limit=240):
    text = " / ".join(line.strip() for line in text.strip().splitlines() if line.strip())
    return text if len(text) <= limit else "…" + text[-limit:]
