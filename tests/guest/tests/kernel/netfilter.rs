//! The packet filter's hooks: where packets meet them, and what comes of a verdict.

use nic_guest::net::Errno;
use nic_guest::net::netfilter::{NfHook, NfProto, NftChain, NftRule, Verdict};
use nic_guest::net::stats::{RxDrop, TxDrop};

use crate::common::packets::udp;
use crate::common::world::{Guest, Setup, assert_balanced, settle};
use crate::{PORT, peer, read_all, resolve_peer, udp_socket};

/// A chain that drops datagrams to `dport`, and accepts all else.
fn dropping(hook: NfHook, dport: u16) -> NftChain {
    let rule = NftRule {
        protocol: Some(17),
        dport: Some(dport),
        verdict: Some(Verdict::Drop),
        ..NftRule::default()
    };
    NftChain {
        family: NfProto::Ipv4,
        hook,
        priority: 0,
        rules: vec![rule],
        policy: Verdict::Accept,
    }
}

/// Packets that each chain's first rule has counted.
fn counted(kernel: &Guest) -> Vec<(NfHook, u64)> {
    let chains = kernel.nft_chains().iter();
    chains
        .map(|chain| (chain.hook, chain.rules[0].packets))
        .collect()
}

#[test]
fn a_packet_meets_the_hooks_of_its_way() {
    let (mut kernel, world) = Setup::default().boot();
    resolve_peer(&mut kernel, &world);
    for hook in NfHook::ALL {
        kernel.nf_register_net_hook(NftChain::counting(hook));
    }
    let fd = udp_socket(&mut kernel, PORT);
    world.receive(&udp(PORT, b"in"));
    settle(&mut kernel);
    assert_eq!(read_all(&mut kernel, fd), [b"in"]);
    kernel.sendto(fd, b"out", Some(peer(9))).unwrap();
    let want = [
        (NfHook::PreRouting, 1),
        (NfHook::LocalIn, 1),
        (NfHook::Forward, 0),
        (NfHook::LocalOut, 1),
        (NfHook::PostRouting, 1),
    ];
    assert_eq!(counted(&kernel), want);
}

#[test]
fn what_is_dropped_on_its_way_in_is_counted_and_the_rest_keeps_its_order() {
    for hook in [NfHook::PreRouting, NfHook::LocalIn] {
        let (mut kernel, world) = Setup::default().boot();
        kernel.nf_register_net_hook(dropping(hook, PORT + 1));
        let fd = udp_socket(&mut kernel, PORT);
        let other = udp_socket(&mut kernel, PORT + 1);
        for number in 0..8_u8 {
            let port = PORT + u16::from(number % 3 == 1);
            world.schedule(0, &udp(port, &[number]));
        }
        settle(&mut kernel);
        assert_eq!(
            read_all(&mut kernel, fd),
            [[0], [2], [3], [5], [6]],
            "{hook:?}"
        );
        assert!(read_all(&mut kernel, other).is_empty());
        assert_eq!(kernel.stats().rx_drop(RxDrop::NetfilterDrop), 3);
        assert_eq!(counted(&kernel), [(hook, 3)]);
        assert_balanced(&kernel);
        kernel.nf_unregister_net_hooks();
        world.receive(&udp(PORT + 1, b"free"));
        settle(&mut kernel);
        assert_eq!(read_all(&mut kernel, other), [b"free"]);
    }
}

#[test]
fn who_sends_what_is_dropped_hears_of_it() {
    for hook in [NfHook::LocalOut, NfHook::PostRouting] {
        let (mut kernel, world) = Setup::default().boot();
        resolve_peer(&mut kernel, &world);
        kernel.nf_register_net_hook(dropping(hook, 9));
        let fd = udp_socket(&mut kernel, PORT);
        let sent = |kernel: &Guest| kernel.stats().snmp.udp_out_datagrams;
        let before = sent(&kernel);
        for _ in 0..1000 {
            // More than the send buffer holds: who is told is charged no longer.
            assert_eq!(
                kernel.sendto(fd, &[7; 1000], Some(peer(9))),
                Err(Errno::EPERM)
            );
        }
        assert_eq!(kernel.sendto(fd, b"free", Some(peer(10))), Ok(4));
        assert_eq!(kernel.stats().tx_drop(TxDrop::NetfilterOutDrop), 1000);
        assert_eq!(sent(&kernel), before + 1);
        assert_eq!(counted(&kernel), [(hook, 1000)]);
        settle(&mut kernel);
    }
}

#[test]
fn chains_are_asked_by_priority_until_one_drops() {
    let (mut kernel, world) = Setup::default().boot();
    for (priority, policy) in [
        (10, Verdict::Accept),
        (-10, Verdict::Accept),
        (0, Verdict::Drop),
    ] {
        kernel.nf_register_net_hook(NftChain {
            family: NfProto::Ipv4,
            hook: NfHook::LocalIn,
            priority,
            rules: vec![NftRule::default()],
            policy,
        });
    }
    let fd = udp_socket(&mut kernel, PORT);
    world.receive(&udp(PORT, b"in"));
    settle(&mut kernel);
    assert!(read_all(&mut kernel, fd).is_empty());
    let chains = kernel.nft_chains().iter();
    let asked: Vec<_> = chains
        .map(|chain| (chain.priority, chain.rules[0].packets))
        .collect();
    assert_eq!(asked, [(-10, 1), (0, 1), (10, 0)]);
}
