"""Who is measured, and how each is set up: a dict of shell commands for every VPN.

    layer, crypto   for the table
    version         command whose first line of output is recorded
    need            programs it takes besides its own
    prep            commands run once, before the clock starts: keys, configuration files
    server          commands kept running from before the clock starts, in namespace a (s in a chain): coordination
                    that is no part of the tunnel; its CPU and memory are not the VPN's
    server_wait     seconds to give them, 1 if left out
    a, b            commands kept running in namespaces a and b: the VPN, measured
    dev             the device it makes
    addr            "lab" (also if left out): we give the device its address, and its `mtu` where that is there;
                    "self": the VPN does
    late            true where A has its device only once B has come
    conf_a, conf_b  commands run once the device is there
    env             variables that the commands and loads see changed
    settle          seconds until paths and their MTU are found, 2 if left out
    status          command for the JSON status of b's end (ours): its peers must be in the state measured

Commands see $W (a scratch folder, also the current one), $UA $UB (underlay addresses), $US (the server's, in a chain),
$OA $OB (overlay addresses) and $S (a or b). The tunnel MTU is 1420 wherever it can be chosen and fits in 1500.
"""

import json
import os
import re
import shutil
import subprocess

MTU = 1420
HERE = os.path.dirname(os.path.abspath(__file__))
OURS, RELAYED, RAW = "eps-actor", "eps-actor-relayed", "raw"


# -- finding them -----------------------------------------------------------------------------------------------------


# The program that decides whether a peer is here, how its dict is made, and whether every version of it is measured.
def known():
    return [
        ("wireguard-go", wireguard_go, True),
        ("boringtun-cli", boringtun, False),
        ("tincd", tinc, False),
        ("edge", n2n, False),
        ("openvpn", openvpn, False),
        ("fastd", fastd, False),
        ("vpncloud", vpncloud, False),
        ("nebula", nebula, False),
    ]


NAMES = {"boringtun-cli": "boringtun", "tincd": "tinc", "edge": "n2n"}


def find(subject, relay=False):
    """({name: dict} in the order of measuring, {name: why not}); of these, `default` names the usual ones."""
    found = {RAW: {"layer": "–", "crypto": "none", "dev": "u0", "addr": "self", "env": {"OA": "192.0.2.1"}}}
    with open(subject) as f:
        ours = json.load(f)
    found[OURS] = dict(ours, topology="pair", expect="direct")
    if relay:
        found[RELAYED] = dict(ours, topology="chain", expect="relay")
    absent = {}
    for program, make, _ in known():
        name = NAMES.get(program, program)
        versions = programs_named(program)
        for path in versions:
            suffix = os.path.basename(path).removeprefix(program)
            spec = make(suffix)
            missing = [p for p in spec.get("need", []) if not shutil.which(p)]
            if missing:
                absent[name + suffix] = f"needs {' '.join(missing)}"
            else:
                found[name + suffix] = spec
        if not versions:
            absent[name] = f"no {program} on PATH"
    return found, absent


def default(found):
    """What is measured when nobody is named: every wireguard-go, the newest of the others."""
    chosen = {}
    every = tuple(NAMES.get(program, program) for program, _, all_versions in known() if all_versions)
    for name in found:
        family = re.sub(r"-\d[\d.]*$", "", name)
        chosen[name if family in every else family] = name  # found is in order of version
    return [name for name in found if name in chosen.values()]


def programs_named(program):
    """Paths of `program` and `program-VERSION` on PATH, oldest version first; what is installed twice counts once."""
    paths = {}
    for folder in os.environ["PATH"].split(os.pathsep):
        for entry in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            path = os.path.join(folder, entry)
            if re.fullmatch(rf"{re.escape(program)}(-\d[\d.]*)?", entry) and os.access(path, os.X_OK):
                paths.setdefault(entry, path)
    versioned = {e: p for e, p in paths.items() if e != program}
    if program in paths and versioned:
        plain = first_line(f"{paths[program]} --version")
        if any(first_line(f"{p} --version") == plain for p in versioned.values()):
            del paths[program]
    return [
        paths[e] for e in sorted(paths, key=lambda e: [int(n) for n in re.findall(r"\d+", e.removeprefix(program))])
    ]


def first_line(command):
    try:
        out = subprocess.run(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=10,
        ).stdout
    except subprocess.TimeoutExpired:
        return "?"
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\d\.\d|v\d", line)), lines[0] if lines else "?")


# -- layer 3 ----------------------------------------------------------------------------------------------------------


def wireguard(command, version):
    # Its control socket may come some milliseconds after the device.
    configure = (
        "for i in $(seq 200); do wg set wg$S listen-port 51820 private-key {me}.key peer $(cat {other}.pub) "
        "allowed-ips 0.0.0.0/0 endpoint {endpoint}:51820 2>/dev/null && exit; sleep 0.01; done; exit 1"
    )
    return {
        "layer": 3,
        "crypto": "ChaCha20-Poly1305",
        "version": version,
        "need": ["wg"],
        "prep": ["umask 77; for n in a b; do wg genkey >$n.key; wg pubkey <$n.key >$n.pub; done"],
        "a": [command],
        "b": [command],
        "dev": "wg$S",
        "mtu": MTU,
        "conf_a": [configure.format(me="a", other="b", endpoint="$UB")],
        "conf_b": [configure.format(me="b", other="a", endpoint="$UA")],
    }


def wireguard_go(suffix):
    return wireguard(f"env LOG_LEVEL=error wireguard-go{suffix} -f wg$S", f"wireguard-go{suffix} --version")


def boringtun(suffix):
    return wireguard(f"boringtun-cli{suffix} -f --disable-drop-privileges wg$S", f"boringtun-cli{suffix} --version")


def nebula(suffix):
    config = (
        "cat >$n.yml <<END\n"
        "pki: {ca: $W/ca.crt, cert: $W/$n.crt, key: $W/$n.key}\n"
        'static_host_map: {$OA: ["$UA:4242"], $OB: ["$UB:4242"]}\n'
        "lighthouse: {am_lighthouse: false}\n"
        "listen: {host: 0.0.0.0, port: 4242}\n"
        "tun: {dev: neb0, mtu: " + str(MTU) + "}\n"
        "firewall: {outbound: [{port: any, proto: any, host: any}], inbound: [{port: any, proto: any, host: any}]}\n"
        "END\n"
    )
    cert = f"nebula-cert{suffix}"
    return {
        "layer": 3,
        "crypto": "AES-256-GCM",
        "version": f"nebula{suffix} -version",
        "need": [cert],
        "prep": [
            f"{cert} ca -name bench && {cert} sign -name a -ip $OA/24 && {cert} sign -name b -ip $OB/24",
            f"for n in a b; do {config}done",
        ],
        "a": [f"nebula{suffix} -config a.yml"],
        "b": [f"nebula{suffix} -config b.yml"],
        "dev": "neb0",
        "addr": "self",
    }


# -- layer 2 ----------------------------------------------------------------------------------------------------------


def tinc(suffix):
    tincd = f"tincd{suffix}"
    config = (
        "for n in a b; do mkdir -p $n/hosts; printf '%s\\n' \"Name = $n\" 'Mode = switch' 'DeviceType = tap' "
        "'Interface = tap0' 'AddressFamily = ipv4' >$n/tinc.conf; done; echo 'ConnectTo = a' >>b/tinc.conf; "
        'echo "Address = $UA" >a/hosts/a; echo "Address = $UB" >b/hosts/b'
    )
    return {
        "layer": 2,
        "crypto": "AES-256-CBC + HMAC-SHA256 (default)",
        "version": f"{tincd} --version",
        "prep": [
            config,
            f"for n in a b; do {tincd} -c $n -K2048 </dev/null; done",
            "cp a/hosts/a b/hosts/; cp b/hosts/b a/hosts/",
        ],
        "a": [f"{tincd} -c $W/a -D --pidfile=$W/a.pid"],
        "b": [f"{tincd} -c $W/b -D --pidfile=$W/b.pid"],
        "dev": "tap0",
        "mtu": MTU,
        "settle": 6,
    }


def n2n(suffix):
    newer = suffix and float(suffix[1:]) >= 2
    cipher = "-A3" if newer else ""
    edge = f"edge{suffix} -d tap0 -c bench -k secret {cipher} -l $UA:7654 -M 1400 -f -a "
    supernode = f"supernode{suffix} -p 7654 -f" if newer else f"supernode{suffix} -l 7654 -f"
    return {
        "layer": 2,
        "crypto": "AES-256-CBC, no MAC (default)" if newer else "Twofish-CBC, no MAC",
        "version": f"edge{suffix} -h",
        "need": [f"supernode{suffix}"],
        "server": [supernode],
        "a": [edge + "$OA"],
        "b": [edge + "$OB"],
        "dev": "tap0",
        "addr": "self",
        "settle": 8,
    }


def openvpn(suffix):
    certificate = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=$n "
        "-keyout $n.key -out $n.crt 2>/dev/null; "
        "openssl x509 -in $n.crt -noout -fingerprint -sha256 | cut -d= -f2 >$n.fingerprint"
    )
    line = (
        "openvpn{suffix} --dev tap0 --dev-type tap --proto udp --port 1194 --tun-mtu {mtu} --dh none --verb 1 "
        "--cert {me}.crt --key {me}.key --peer-fingerprint $(cat {other}.fingerprint) --data-ciphers AES-256-GCM "
        "--ifconfig {address} 255.255.255.0 "
    )
    a = line.format(suffix=suffix, mtu=MTU, me="a", other="b", address="$OA") + "--tls-server"
    b = line.format(suffix=suffix, mtu=MTU, me="b", other="a", address="$OB") + "--tls-client --remote $UA"
    return {
        "layer": 2,
        "crypto": "AES-256-GCM",
        "version": f"openvpn{suffix} --version",
        "need": ["openssl"],
        "prep": [f"umask 77; for n in a b; do {certificate}; done"],
        "a": [a],
        "b": [b],
        "dev": "tap0",
        "addr": "self",
    }


def fastd(suffix):
    program = f"fastd{suffix}"
    keys = (
        f'umask 77; for n in a b; do echo "secret \\"$({program} --generate-key --machine-readable)\\";" >$n.secret; '
        f"{program} --show-key --machine-readable -c $n.secret >$n.public; done"
    )
    config = (
        "printf '%s\\n' 'mode tap;' 'interface \"tap0\";' 'mtu {mtu};' 'method \"salsa2012+umac\";' "
        '"bind {bind}:10000;" \'include "{me}.secret";\' '
        '"peer \\"{other}\\" {{ key \\"$(cat {other}.public)\\"; remote {remote}:10000; }}" >{me}.conf'
    )
    return {
        "layer": 2,
        "crypto": "Salsa20/12 + UMAC (recommended)",
        "version": f"{program} --version",
        "prep": [
            keys,
            config.format(mtu=MTU, me="a", other="b", bind="$UA", remote="$UB"),
            config.format(mtu=MTU, me="b", other="a", bind="$UB", remote="$UA"),
        ],
        "a": [f"{program} -c a.conf"],
        "b": [f"{program} -c b.conf"],
        "dev": "tap0",
        "mtu": MTU,
    }


def vpncloud(suffix):
    # Built with a newer Rust it sets a wrong address on its device, so that is left to us; its own choice of MTU stays.
    line = f"vpncloud{suffix} -d vc0 -t tap -m switch -p secret -l 3210 --no-port-forwarding "
    return {
        "layer": 2,
        "crypto": "the fastest at its start (AES-128-GCM)",
        "version": f"vpncloud{suffix} --version",
        "a": [line],
        "b": [line + "-c $UA:3210"],
        "dev": "vc0",
    }
