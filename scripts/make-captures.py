#!/usr/bin/env python3
"""The parts of make-captures that need a program of their own (standard library only).

switch  relay frames between access ports and one trunk port: tags, delay, loss
echo    UDP echo server on several ports
udp     send UDP datagrams of the sizes given, wait for each answer
mcast   join multicast groups, send mDNS-like queries and a broadcast, leave again
fcs     derive with-fcs.pcap, .pcapng and .json from captures made before
table   one row of figures per capture
"""

import argparse
import heapq
import json
import random
import select
import socket
import struct
import sys
import time
import zlib
from pathlib import Path

# <linux/if_packet.h>
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC, PACKET_AUXDATA = 263, 1, 1, 8
PACKET_OUTGOING, TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID = 4, 0x10, 0x40
ETH_P_ALL, ETH_P_8021Q = 0x0003, 0x8100
SO_NO_CHECK = 11


# ---- switch ---------------------------------------------------------------------------------

class Port:
    """A packet socket on one interface."""

    def __init__(self, name):
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.sock.bind((name, ETH_P_ALL))
        member = struct.pack("iHH8s", socket.if_nametoindex(name), PACKET_MR_PROMISC, 0, b"")
        self.sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
        self.sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)

    def fileno(self):
        return self.sock.fileno()

    def receive(self):
        """The next frame that came in, with the tag that the kernel took out put back."""
        frame, control, _, source = self.sock.recvmsg(65536, 256)
        if source[2] == PACKET_OUTGOING:
            return None
        for level, kind, data in control:
            if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
                status, _, _, _, _, tci, tpid = struct.unpack("IIIHHHH", data[:20])
                if status & TP_STATUS_VLAN_VALID:
                    if not status & TP_STATUS_VLAN_TPID_VALID:
                        tpid = ETH_P_8021Q
                    frame = frame[:12] + struct.pack("!HH", tpid, tci) + frame[12:]
        return frame


def parse_tags(text):
    """`88a8:0064,8100:a005` -> the bytes of the tags, outermost first."""
    return b"".join(bytes.fromhex(t.replace(":", "")) for t in text.split(",") if t)


def tags_of(frame):
    """The bytes of all tags of a frame, priority bits cleared."""
    at, tags = 12, b""
    while frame[at:at + 2] in (b"\x81\x00", b"\x88\xa8"):
        tpid, tci = struct.unpack_from("!HH", frame, at)
        tags += struct.pack("!HH", tpid, tci & 0x0FFF)
        at += 4
    return tags


def vlan_key(tags):
    return tags_of(bytes(12) + tags)


def run_switch(args):
    trunk = Port(args.trunk)
    access = []
    for spec in args.access:
        name, _, text = spec.partition("=")
        access.append((Port(name), parse_tags(text)))
    by_vlan = {vlan_key(tags): port for port, tags in access}
    tags_by_fd = {port.fileno(): tags for port, tags in access}
    dice, queue, order = random.Random(args.seed), [], 0
    print("ready", flush=True)
    ports = [trunk] + [port for port, _ in access]
    while True:
        wait = max(0, queue[0][0] - time.monotonic()) if queue else None
        for port in select.select(ports, [], [], wait)[0]:
            frame = port.receive()
            if frame is None:
                continue
            if port is trunk:
                tags = tags_of(frame)
                out = by_vlan.get(tags)
                frame = frame[:12] + frame[12 + len(tags):]
            else:
                out = trunk
                frame = frame[:12] + tags_by_fd[port.fileno()] + frame[12:]
            if out is None or dice.random() * 100 < args.loss:
                continue
            order += 1
            heapq.heappush(queue, (time.monotonic() + args.delay_ms / 1000, order, out, frame))
        while queue and queue[0][0] <= time.monotonic():
            _, _, out, frame = heapq.heappop(queue)
            out.sock.send(frame)


# ---- traffic --------------------------------------------------------------------------------

def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def run_echo(args):
    socks = []
    for port in args.port:
        sock = socket.socket(family_of(args.bind), socket.SOCK_DGRAM)
        sock.bind((args.bind, port))
        socks.append(sock)
    print("ready", flush=True)
    while True:
        for sock in select.select(socks, [], [])[0]:
            data, peer = sock.recvfrom(65536)
            sock.sendto(data, peer)


def payload(size):
    """Byte i of a datagram is i modulo 251."""
    return bytes(i % 251 for i in range(size))


def run_udp(args):
    family = family_of(args.to)
    socks = []
    for i in range(args.sources):
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if args.no_check:
            sock.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", args.source_port + i))
        sock.settimeout(1)
        socks.append(sock)
    turn = 0
    for size in args.size:
        for port in args.port:
            sock = socks[turn % len(socks)]
            turn += 1
            sock.sendto(payload(size), (args.to, port))
            if args.answered:
                sock.recv(65536)


MDNS_QUERY = (struct.pack("!6H", 0, 0, 1, 0, 0, 0)
              + b"\x09_services\x07_dns-sd\x04_udp\x05local\x00" + struct.pack("!2H", 12, 1))


def run_mcast(args):
    index = socket.if_nametoindex(args.interface)
    v4 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    v4.bind(("0.0.0.0", 5353))
    v4.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    v4.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, args.interface.encode())
    v4.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
    v4.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(args.address))
    for group in ("224.0.0.251", "239.1.2.3"):
        request = socket.inet_aton(group) + socket.inet_aton(args.address)
        v4.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
    v6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    v6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    v6.bind(("::", 5353))
    v6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    v6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    for group in ("ff02::fb", "ff15::1234"):
        request = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", index)
        v6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
    for _ in range(3):
        v4.sendto(MDNS_QUERY, ("224.0.0.251", 5353))
        v6.sendto(MDNS_QUERY, ("ff02::fb", 5353))
        v4.sendto(payload(300), ("239.1.2.3", 6000))
        v4.sendto(payload(120), ("255.255.255.255", 6001))
        v4.sendto(payload(40), (args.broadcast, 6001))
        time.sleep(1)


# ---- capture files --------------------------------------------------------------------------

PCAP_MAGICS = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}


def read_pcap(path):
    """[(nanoseconds, frame)] of a little-endian classic pcap."""
    data = Path(path).read_bytes()
    magic, _, _, _, _, _, link = struct.unpack_from("<IHHiIII", data)
    unit, out, at = PCAP_MAGICS[magic], [], 24
    assert link == 1, f"{path}: not Ethernet without FCS"
    while at < len(data):
        sec, sub, kept, length = struct.unpack_from("<4I", data, at)
        assert kept == length, f"{path}: truncated frame"
        out.append((sec * 10**9 + sub * unit, data[at + 16:at + 16 + kept]))
        at += 16 + kept
    return out


def write_pcap(path, frames):
    """Classic pcap, microseconds, whose link type word says: FCS present, 2 units of 16 bits."""
    link = 0x2 << 28 | 1 << 26 | 1
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, link)
    for at, frame in frames:
        micros = at // 1000
        out += struct.pack("<4I", micros // 10**6, micros % 10**6, len(frame), len(frame)) + frame
    Path(path).write_bytes(out)


def block(kind, body):
    body += bytes(-len(body) % 4)
    total = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + total + body + total


def write_pcapng(path, frames):
    """pcapng, microseconds, whose one interface has if_fcslen = 4."""
    if_fcslen = struct.pack("<HHB3x", 13, 1, 4)
    end_of_options = bytes(4)
    out = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    out += block(1, struct.pack("<HHI", 1, 0, 262144) + if_fcslen + end_of_options)
    for at, frame in frames:
        micros = at // 1000
        head = (0, micros >> 32, micros & 0xFFFFFFFF, len(frame), len(frame))
        out += block(6, struct.pack("<5I", *head) + frame)
    Path(path).write_bytes(out)


MIN_FRAME, MAX_FRAME = 64, 1522  # with FCS; the longest is 1518 and one VLAN tag


def fcs(frame):
    return struct.pack("<I", zlib.crc32(frame))


def good(frame):
    """The frame as a MAC would send it: padded to 60 bytes, then the FCS."""
    frame = frame.ljust(MIN_FRAME - 4, b"\0")
    return frame + fcs(frame)


def resized(frame, size):
    """The frame cut or continued with a trailer, so that with FCS it has `size` bytes."""
    return frame[:size - 4].ljust(size - 4, b"\xa5")


def flip(wire, at):
    wire = bytearray(wire)
    wire[at] ^= 0x10
    return bytes(wire)


def damages(giant):
    """(kind, what was done, the function that does it), in the order they are placed."""
    def cut(size):
        return lambda f: resized(f, size) + fcs(resized(f, size))

    def collided(size):
        return lambda f: flip(cut(size)(f), size - 1)

    def giant_of(size):
        def make(_):
            body = giant if size is None else giant[:size - 4]
            return body + fcs(body)
        return make

    def jabbering(size):
        return lambda f: flip(giant_of(size)(f), 700)

    return [
        ("fcs", "one bit of the destination address flipped", lambda f: flip(good(f), 0)),
        ("undersize", "63 bytes: one short of the minimum", cut(63)),
        ("fcs", "one bit in the middle of the frame flipped", lambda f: flip(good(f), len(good(f)) // 2)),
        ("oversize", "1523 bytes with a trailer: one above the maximum", cut(1523)),
        ("fragment", "63 bytes, one bit of the FCS flipped", collided(63)),
        ("fcs", "one bit of the FCS flipped", lambda f: flip(good(f), -1)),
        ("oversize", "a jumbo frame as it was", giant_of(None)),
        ("jabber", "a jumbo frame, one bit flipped", jabbering(None)),
        ("undersize", "46 bytes: an ARP frame's length without padding", cut(46)),
        ("fcs", "FCS replaced by zeros", lambda f: good(f)[:-4] + bytes(4)),
        ("fragment", "32 bytes: cut short by a collision", collided(32)),
        ("oversize", "2048 bytes of a jumbo frame, FCS made anew", giant_of(2048)),
        ("jabber", "1523 bytes of a jumbo frame, one bit flipped", jabbering(1523)),
        ("undersize", "18 bytes: an Ethernet header and an FCS", cut(18)),
        ("fragment", "12 bytes: less than an Ethernet header", collided(12)),
        ("fcs", "FCS in the wrong byte order", lambda f: good(f)[:-4] + good(f)[:-5:-1]),
        ("jabber", "4096 bytes of a jumbo frame, one bit flipped", jabbering(4096)),
    ]


def kind_of(wire):
    """What a MAC's counters would call it. Independent of how the frame was made."""
    whole = len(wire) > 4 and fcs(wire[:-4]) == wire[-4:]
    if len(wire) < MIN_FRAME:
        return "undersize" if whole else "fragment"
    if len(wire) > MAX_FRAME:
        return "oversize" if whole else "jabber"
    return "good" if whole else "fcs"


def run_fcs(args):
    folder = args.directory
    frames = read_pcap(folder / "mixed.pcap")
    tagged = max((f for _, f in read_pcap(folder / "vlan.pcap") if len(f) == MAX_FRAME - 4), default=None)
    giant = max((f for _, f in read_pcap(folder / "jumbo.pcap")), key=len)
    assert tagged, "vlan.pcap has no frame of 1518 bytes: the longest good one would be missing"
    plan = damages(giant)
    step = len(frames) // (len(plan) + 1)
    out, damaged = [], []
    for index, (at, frame) in enumerate(frames):
        turn, rest = divmod(index, step)
        if index == 1:
            wire = good(tagged)
        elif rest == 0 and 1 <= turn <= len(plan):
            kind, how, make = plan[turn - 1]
            wire = make(frame)
            damaged.append({"index": index, "kind": kind, "length": len(wire), "how": how})
        else:
            wire = good(frame)
        out.append((at, wire))
    told = {d["index"]: d["kind"] for d in damaged}
    for index, (_, wire) in enumerate(out):
        assert kind_of(wire) == told.get(index, "good"), f"frame {index} is not what it should be"
    write_pcap(folder / "with-fcs.pcap", out)
    write_pcapng(folder / "with-fcs.pcapng", out)
    head = {"fcs_bytes": 4, "shortest": MIN_FRAME, "longest": MAX_FRAME, "frames": len(out),
            "good": len(out) - len(damaged)}
    rows = ",\n".join("    " + json.dumps(d) for d in damaged)
    text = json.dumps(head, indent=2)[:-2] + ',\n  "damaged": [\n' + rows + "\n  ]\n}\n"
    assert json.loads(text)["damaged"] == damaged
    (folder / "with-fcs.json").write_text(text)


def lengths(path):
    """Frame lengths of a classic pcap or a pcapng (both little-endian)."""
    data, at, out = path.read_bytes(), 0, []
    if path.suffix == ".pcap":
        at = 24
        while at < len(data):
            kept, length = struct.unpack_from("<2I", data, at + 8)
            assert kept == length, f"{path}: truncated frame"
            out.append(length)
            at += 16 + kept
        return out
    while at < len(data):
        kind, total = struct.unpack_from("<2I", data, at)
        if kind == 6:
            kept, length = struct.unpack_from("<2I", data, at + 20)
            assert kept == length, f"{path}: truncated frame"
            out.append(length)
        at += total
    return out


def run_table(args):
    print("| File | Frames | Bytes | Smallest, largest frame |\n|---|---|---|---|")
    for path in sorted(args.directory.glob("*.pcap*")):
        sizes = lengths(path)
        print(f"| {path.name} | {len(sizes):,} | {path.stat().st_size:,} | {min(sizes):,}, {max(sizes):,} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    sub = parser.add_subparsers(required=True)

    def command(name, run):
        p = sub.add_parser(name)
        p.set_defaults(run=run)
        return p

    p = command("switch", run_switch)
    p.add_argument("trunk")
    p.add_argument("access", nargs="+", help="INTERFACE=TAGS, e.g. s1=8100:a005 or s2= (untagged)")
    p.add_argument("--delay-ms", type=float, default=0)
    p.add_argument("--loss", type=float, default=0, help="percent, either way")
    p.add_argument("--seed", type=int, default=1)

    p = command("echo", run_echo)
    p.add_argument("bind")
    p.add_argument("port", nargs="+", type=int)

    p = command("udp", run_udp)
    p.add_argument("to")
    p.add_argument("--port", nargs="+", type=int, required=True)
    p.add_argument("--size", nargs="+", type=int, required=True)
    p.add_argument("--sources", type=int, default=1, help="how many sockets take turns")
    p.add_argument("--source-port", type=int, default=40000)
    p.add_argument("--no-check", action="store_true", help="UDP checksum 0")
    p.add_argument("--answered", action="store_true", help="wait for each answer")

    p = command("mcast", run_mcast)
    p.add_argument("interface")
    p.add_argument("address")
    p.add_argument("broadcast")

    for name, run in (("fcs", run_fcs), ("table", run_table)):
        command(name, run).add_argument("directory", type=Path)

    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
