//! `/proc`, to the character.

use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use etherparse::TcpHeader;
use nic_guest::net::{Ifindex, ProcFile, Protocol, SockType};
use nic_guest::virtio_net::header::VirtioNetHdr;

use crate::common::packets::{PEER, echo_request, udp};
use crate::common::world::{Guest, Setup, World, boot, settle};
use crate::tcp::{listener, segment, stream};
use crate::{PORT, peer, resolve_peer, udp_socket};

fn show(kernel: &Guest, path: &str) -> String {
    let file = ProcFile::ALL.into_iter().find(|file| file.path() == path);
    let mut text = String::new();
    kernel.proc_show(file.expect(path), &mut text).unwrap();
    text
}

/// Two queue pairs and two CPUs, a neighbour, and some traffic.
fn busy() -> (Guest, Rc<World>) {
    let mut setup = Setup {
        pairs: 2,
        ..Setup::default()
    };
    setup.config.cpus = 2;
    setup.config.gateway = Some(PEER.into());
    let (mut kernel, world) = setup.boot();
    resolve_peer(&mut kernel, &world);
    let fd = udp_socket(&mut kernel, PORT);
    kernel.set_rcvbuf(fd, 1).unwrap();
    for _ in 0..5 {
        world.schedule_with(0, 2, VirtioNetHdr::default(), &udp(PORT, b"hello"));
    }
    settle(&mut kernel);
    kernel.recvfrom(fd, &mut [0; 8]).unwrap();
    for frame in [udp(PORT + 1, b"nobody"), echo_request(1, 1, b"ping")] {
        world.receive(&frame);
    }
    settle(&mut kernel);
    let connected = udp_socket(&mut kernel, PORT + 256);
    kernel.connect(connected, peer(9)).unwrap();
    kernel.sendto(connected, b"x", None).unwrap();
    settle(&mut kernel);
    (kernel, world)
}

#[test]
fn interrupts_are_counted_where_they_were_taken() {
    let (kernel, _world) = busy();
    let text = show(&kernel, "interrupts");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "           CPU0       CPU1       ");
    assert_eq!(
        lines[3],
        " 26:          0          1   eventfd   2-edge      virtio0-input.1"
    );
    assert!(
        lines[1].ends_with("          0   eventfd   0-edge      virtio0-input.0"),
        "{text}"
    );
    assert!(
        lines[2].ends_with("  1-edge      virtio0-output.0"),
        "{text}"
    );
    assert_eq!(lines.len(), 5);
    let text = show(&kernel, "softirqs");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "                    CPU0       CPU1       ");
    assert_eq!(lines[1], "          HI:          0          0");
    let runs = kernel
        .stats()
        .cpus
        .iter()
        .map(|cpu| format!(" {:10}", cpu.net_rx_actions))
        .collect::<String>();
    assert_eq!(lines[4], format!("      NET_RX:{runs}"));
    assert_eq!(lines.len(), 11);
}

#[test]
fn each_cpu_has_its_line_of_softnet_stat() {
    let (mut kernel, world) = busy();
    kernel.set_rps_cpus(0, &[1]).unwrap();
    world.receive(&udp(PORT, b"steered"));
    settle(&mut kernel);
    let zeros = "00000000 ".repeat(6);
    assert_eq!(
        show(&kernel, "net/softnet_stat"),
        format!(
            "00000003 00000000 00000000 {zeros}00000000 00000000 00000000 00000000 00000000 00000000\n\
             00000006 00000000 00000000 {zeros}00000001 00000000 00000000 00000001 00000000 00000000\n"
        )
    );
}

#[test]
fn devices_have_a_line_each() {
    let (mut kernel, _world) = busy();
    kernel.dummy_add("dummy0", [2, 0, 0, 0, 9, 1]).unwrap();
    let eth0 = kernel.dev_get_stats(Ifindex::ETH0).unwrap();
    let text = show(&kernel, "net/dev");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "Inter-|   Receive                                                |  Transmit",
            " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed",
            "    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0",
        ]
    );
    assert_eq!(
        lines[3],
        format!(
            "  eth0: {:7} {:7}    0    0    0     0          0         0 {:8} {:7}    0    0    0     0       0          0",
            eth0.rx_bytes, eth0.rx_packets, eth0.tx_bytes, eth0.tx_packets
        )
    );
    assert!(lines[4].starts_with("dummy0:       0"), "{text}");
}

#[test]
fn protocols_count_what_happened() {
    let (kernel, _world) = busy();
    let text = show(&kernel, "net/snmp");
    let expected = "\
Ip: Forwarding DefaultTTL InReceives InHdrErrors InAddrErrors ForwDatagrams InUnknownProtos InDiscards InDelivers OutRequests OutDiscards OutNoRoutes ReasmTimeout ReasmReqds ReasmOKs ReasmFails FragOKs FragFails FragCreates OutTransmits
Ip: 2 64 7 0 0 0 0 0 7 4 0 0 0 0 0 0 0 0 0 4
Icmp: InMsgs InErrors InCsumErrors InDestUnreachs InTimeExcds InParmProbs InSrcQuenchs InRedirects InEchos InEchoReps InTimestamps InTimestampReps InAddrMasks InAddrMaskReps OutMsgs OutErrors OutRateLimitGlobal OutRateLimitHost OutDestUnreachs OutTimeExcds OutParmProbs OutSrcQuenchs OutRedirects OutEchos OutEchoReps OutTimestamps OutTimestampReps OutAddrMasks OutAddrMaskReps
Icmp: 1 0 0 0 0 0 0 0 1 0 0 0 0 0 2 0 0 0 1 0 0 0 0 0 1 0 0 0 0
IcmpMsg: InType8 OutType0 OutType3
IcmpMsg: 1 1 1
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors
Tcp: 1 200 120000 -1 0 0 0 0 0 0 0 0 0 0 0
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
Udp: 1 1 3 2 3 0 0 0 0
UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
UdpLite: 0 0 0 0 0 0 0 0 0
";
    assert_eq!(text, expected);
}

#[test]
fn sockets_are_shown_with_their_queues() {
    let (kernel, _world) = busy();
    let text = show(&kernel, "net/udp");
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.iter().all(|line| line.len() == 127), "{text}");
    assert_eq!(
        lines[0].trim_end(),
        "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops"
    );
    let columns: Vec<Vec<_>> = lines[1..]
        .iter()
        .map(|line| line.split_whitespace().collect())
        .collect();
    // The connected one has a higher score, so it is found first.
    assert_eq!(
        columns[0][..5],
        [
            "88:",
            "02004D0A:1C58",
            "01004D0A:0009",
            "01",
            "00000000:00000000"
        ]
    );
    assert_eq!(
        columns[1][..4],
        ["88:", "00000000:1B58", "00000000:0000", "07"]
    );
    let waiting = u64::from_str_radix(columns[1][4].split_once(':').unwrap().1, 16).unwrap();
    assert_eq!(waiting, 2176, "truesize of the one that waits");
    assert_eq!(columns[1].last(), Some(&"3"), "they had no room");
    assert_eq!(columns.len(), 2);
}

#[test]
fn neighbours_and_routes_are_shown() {
    let (mut kernel, world) = busy();
    let dummy = kernel.dummy_add("dummy0", [2, 0, 0, 0, 9, 1]).unwrap();
    kernel
        .inet_addr_add(dummy, Ipv4Addr::new(192, 168, 9, 1), 24)
        .unwrap();
    let host = (Ipv4Addr::new(198, 51, 100, 7), 32);
    kernel
        .ip_route_add(host, Some(PEER.into()), Ifindex::ETH0)
        .unwrap();
    kernel
        .neigh_add(Ipv4Addr::new(10, 77, 0, 9), [2, 0, 0, 0, 0x77, 9])
        .unwrap();
    let fd = udp_socket(&mut kernel, 1);
    let unknown = std::net::SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 50), 9);
    kernel.sendto(fd, b"x", Some(unknown)).unwrap();
    world.advance(Duration::from_millis(1).as_nanos() as u64);
    settle(&mut kernel);
    assert_eq!(
        show(&kernel, "net/arp"),
        "\
IP address       HW type     Flags       HW address            Mask     Device
10.77.0.1        0x1         0x2         02:00:00:00:77:01     *        eth0
10.77.0.9        0x1         0x6         02:00:00:00:77:09     *        eth0
10.77.0.50       0x1         0x0         00:00:00:00:00:00     *        eth0
"
    );
    let text = show(&kernel, "net/route");
    assert!(text.lines().all(|line| line.len() == 127), "{text}");
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    assert_eq!(
        lines,
        [
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT",
            "eth0\t00000000\t01004D0A\t0003\t0\t0\t0\t00000000\t0\t0\t0",
            "eth0\t00004D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0",
            "dummy0\t0009A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0",
            "eth0\t076433C6\t01004D0A\t0007\t0\t0\t0\tFFFFFFFF\t0\t0\t0",
        ]
    );
}

#[test]
fn protocols_count_their_sockets() {
    let (kernel, _world) = busy();
    let text = show(&kernel, "net/protocols");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[0],
        "protocol  size sockets  memory press maxhdr  slab module     cl co di ac io in de sh ss gs se re bi br ha uh gp em"
    );
    let ends = [
        (
            "PACKET",
            "n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n",
        ),
        (
            "PINGv6",
            "y  y  y  n  n  y  n  n  y  y  y  y  y  y  n  y  y  n",
        ),
        (
            "UDPv6",
            "y  y  y  n  y  y  y  n  y  y  y  y  n  n  y  y  y  n",
        ),
        (
            "PING",
            "y  y  y  n  n  y  n  n  y  y  y  y  y  y  n  y  y  n",
        ),
        (
            "RAW",
            "y  y  y  n  y  y  y  n  y  y  y  y  y  y  y  y  n  n",
        ),
        (
            "UDP",
            "y  y  y  n  y  y  y  n  y  y  y  y  n  n  y  y  y  n",
        ),
        (
            "TCP",
            "y  y  y  y  y  y  y  y  y  y  y  y  n  y  y  y  y  y",
        ),
    ];
    assert_eq!(lines.len(), 1 + ends.len());
    for ((name, functions), line) in ends.iter().zip(&lines[1..]) {
        assert!(line.starts_with(&format!("{name:<9} ")), "{text}");
        assert!(
            line.ends_with(&format!(" kernel      {functions}")),
            "{text}"
        );
        assert_eq!(line.len(), lines[0].len(), "columns are below their names");
    }
    assert_eq!(
        &lines[6][14..56],
        "      2       0   NI       0   yes  kernel",
        "{text}"
    );
}

#[test]
fn sockets_of_each_kind_are_counted() {
    let (mut kernel, world) = boot();
    let inuse = |kernel: &Guest| {
        let text = show(kernel, "net/protocols");
        let words = text.lines().skip(1).map(|line| line.split_whitespace());
        words
            .map(|mut words| words.nth(2).unwrap().parse().unwrap())
            .collect::<Vec<u32>>()
    };
    assert_eq!(inuse(&kernel), [0; 7]);
    kernel.packet_socket(None).unwrap();
    kernel.socket(SockType::Raw, Protocol::Raw(6)).unwrap();
    assert_eq!(inuse(&kernel), [1, 0, 0, 0, 1, 0, 0]);
    // Of TCP those that can be found: not one that is not even bound, and no request.
    stream(&mut kernel);
    assert_eq!(inuse(&kernel), [1, 0, 0, 0, 1, 0, 0]);
    listener(&mut kernel, PORT, 8);
    assert_eq!(inuse(&kernel), [1, 0, 0, 0, 1, 0, 1]);
    resolve_peer(&mut kernel, &world);
    world.receive(&segment(|th| th.syn = true, b""));
    settle(&mut kernel);
    assert_eq!(inuse(&kernel), [1, 0, 0, 0, 1, 0, 1]);
    let ack = world.take_sent()[0].frame[38..42].try_into().unwrap();
    let ack = u32::from_be_bytes(ack).wrapping_add(1);
    let established = |th: &mut TcpHeader| {
        (th.ack, th.sequence_number, th.acknowledgment_number) = (true, 1001, ack);
    };
    world.receive(&segment(established, b""));
    settle(&mut kernel);
    assert_eq!(
        inuse(&kernel),
        [1, 0, 0, 0, 1, 0, 2],
        "nobody has accepted it yet"
    );
}

/// What this machine's kernel shows; of later and earlier ones some columns differ.
fn host(path: &str) -> String {
    std::fs::read_to_string(format!("/proc/{path}")).unwrap()
}

#[test]
fn columns_are_named_as_by_the_kernel_of_this_machine() {
    let (kernel, _world) = busy();
    for (path, lines) in [
        ("net/dev", 2),
        ("net/udp", 1),
        ("net/arp", 1),
        ("net/route", 1),
        ("net/protocols", 1),
    ] {
        let (ours, theirs) = (show(&kernel, path), host(path));
        let heading = |text: &str| {
            text.lines()
                .take(lines)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(heading(&ours), heading(&theirs), "{path}");
    }
    let names = |text: &str| {
        let words = text
            .lines()
            .map(|line| line.split_whitespace().next().unwrap());
        words.skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let (ours, theirs) = (show(&kernel, "softirqs"), host("softirqs"));
    assert_eq!(names(&ours), names(&theirs));
    let columns = |text: &str| text.lines().next().unwrap().split(' ').count();
    assert!(columns(&show(&kernel, "net/softnet_stat")) >= columns(&host("net/softnet_stat")));
}

#[test]
fn protocols_have_the_functions_that_they_have_on_this_machine() {
    let (kernel, _world) = busy();
    let (ours, theirs) = (show(&kernel, "net/protocols"), host("net/protocols"));
    let mut found = 0;
    for line in ours.lines().skip(1) {
        let name = line.split(' ').next().unwrap();
        let same = |other: &&str| other.split(' ').next() == Some(name);
        let Some(other) = theirs.lines().find(same) else {
            continue;
        };
        let functions = |line: &str| line[line.find("kernel").unwrap()..].to_owned();
        assert_eq!(functions(line), functions(other), "{name}");
        found += 1;
    }
    assert!(found >= 2, "UDP and TCP at least");
}

#[test]
fn counters_have_the_places_that_they_have_on_this_machine() {
    let (kernel, _world) = busy();
    let (ours, theirs) = (show(&kernel, "net/snmp"), host("net/snmp"));
    for group in ["Ip:", "Icmp:", "Tcp:", "Udp:", "UdpLite:"] {
        let names = |text: &str| {
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("{group} ")));
            line.unwrap()
                .split(' ')
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let (ours, theirs) = (names(&ours), names(&theirs));
        let both: Vec<_> = ours.iter().filter(|name| theirs.contains(name)).collect();
        assert_eq!(both, theirs.iter().collect::<Vec<_>>(), "{group}");
    }
}
