//! Connections over a path that is narrower than the device, and who is believed when he says so.

use std::rc::Rc;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, SlicedPacket, TcpHeader, TcpOptionElement, TransportSlice};
use nic_guest::net::Fd;
use nic_guest::net::stats::TxDrop;
use nic_guest::virtio_net::features as f;

use crate::common::packets::{icmp, read_ip};
use crate::common::world::{FEATURES, Guest, Setup, World, assert_balanced, settle};
use crate::tcp::{listener, segment};
use crate::{PORT, resolve_peer};

const SECOND: u64 = 1_000_000_000;
/// The first octet that the peer sends has this number.
const PEER_SEQ: u32 = 1001;

/// A segment that the kernel has sent.
struct Segment {
    /// Its beginning, as an error quotes it.
    quote: Vec<u8>,
    len: usize,
    df: bool,
    seq: u32,
    payload: Vec<u8>,
}

/// Those that were sent; their checksums are right.
fn sent(world: &World) -> Vec<Segment> {
    let read = |frame: Vec<u8>| {
        let ip = read_ip(&frame);
        let (len, df) = (usize::from(ip.header.total_len), ip.header.dont_fragment);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
            panic!("no TCP: {frame:x?}");
        };
        let header = tcp.to_header();
        let check = header.calc_checksum_ipv4(&ip.header, tcp.payload());
        assert_eq!(Ok(header.checksum), check);
        let (seq, payload) = (header.sequence_number, tcp.payload().to_vec());
        Segment {
            quote: frame[14..42].to_vec(),
            len,
            df,
            seq,
            payload,
        }
    };
    let sent = world.take_sent();
    sent.into_iter().map(|sent| read(sent.frame)).collect()
}

/// The peer has got all before `number`.
fn ack(number: u32) -> impl FnOnce(&mut TcpHeader) {
    move |th| {
        (th.ack, th.acknowledgment_number) = (true, number);
        (th.sequence_number, th.window_size) = (PEER_SEQ, 60_000);
    }
}

/// A connection that the peer has asked for, and the number of the first octet on it.
fn established() -> (Guest, Rc<World>, Fd, u32) {
    let setup = Setup {
        features: FEATURES & !f::CSUM,
        ..Setup::default()
    };
    let (mut kernel, world) = setup.boot();
    resolve_peer(&mut kernel, &world);
    let listening = listener(&mut kernel, PORT, 1);
    let syn = |th: &mut TcpHeader| {
        (th.syn, th.sequence_number) = (true, PEER_SEQ - 1);
        let mss = [TcpOptionElement::MaximumSegmentSize(1460)];
        th.set_options(&mss).unwrap();
    };
    world.receive(&segment(syn, b""));
    settle(&mut kernel);
    let first = sent(&world)[0].seq + 1;
    world.receive(&segment(ack(first), b""));
    settle(&mut kernel);
    let (fd, _) = kernel.accept(listening).unwrap();
    (kernel, world, fd, first)
}

/// A router says that a packet was too long: `mtu` octets pass.
fn too_long(quoted: &[u8], mtu: u16) -> Vec<u8> {
    let header = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
    icmp(&Icmpv4Type::DestinationUnreachable(header), quoted)
}

/// What a connection sends again, once it is time to.
fn sent_again(kernel: &mut Guest, world: &World) -> Vec<Segment> {
    for _ in 0..100 {
        let again = sent(world);
        if !again.is_empty() {
            return again;
        }
        world.advance(SECOND / 10);
        settle(kernel);
    }
    panic!("nothing is sent again");
}

#[test]
fn segments_are_as_long_as_the_path_allows() {
    for (said, mtu, df) in [(600, 600, true), (1499, 1499, true), (68, 552, false)] {
        let (mut kernel, world, fd, first) = established();
        let data: Vec<u8> = (0..2920).map(|at| (at % 251) as u8).collect();
        assert_eq!(kernel.write(fd, &data), Ok(data.len()));
        let whole = sent(&world);
        assert!(whole.iter().all(|sent| sent.len == 1500 && sent.df));
        world.receive(&too_long(&whole[0].quote, said));
        settle(&mut kernel);
        // Until the peer has all of it, in its order.
        let mut got = Vec::new();
        while got.len() < data.len() {
            for sent in sent_again(&mut kernel, &world) {
                assert!(sent.len <= mtu && sent.df == df, "{} octets", sent.len);
                let next = first + got.len() as u32;
                if sent.seq == next {
                    got.extend(sent.payload);
                }
            }
            world.receive(&segment(ack(first + got.len() as u32), b""));
            settle(&mut kernel);
        }
        assert_eq!(got, data);
        assert_eq!(kernel.stats().tx_drop(TxDrop::IpFragFails), 0);
        assert_balanced(&kernel);
    }
}

#[test]
fn who_does_not_quote_what_was_sent_is_not_believed() {
    let (mut kernel, world, fd, first) = established();
    let send = |kernel: &mut Guest| {
        kernel.write(fd, &[7; 1460]).unwrap();
        sent(&world).remove(0)
    };
    let acknowledged = send(&mut kernel);
    world.receive(&segment(ack(first + 1460), b""));
    settle(&mut kernel);
    let awaited = send(&mut kernel);
    let quote = |sent: &Segment, change: fn(&mut [u8])| {
        let mut quoted = sent.quote.clone();
        change(&mut quoted);
        too_long(&quoted, 600)
    };
    for forged in [
        quote(&acknowledged, |_| {}),
        // Of another connection, from another port, with a number that is still to come.
        quote(&awaited, |quoted| quoted[23] ^= 1),
        quote(&awaited, |quoted| quoted[21] ^= 1),
        quote(&awaited, |quoted| quoted[24] ^= 0x40),
    ] {
        world.receive(&forged);
        settle(&mut kernel);
        assert_eq!(send(&mut kernel).len, 1500);
    }
    assert_eq!(kernel.stats().snmp.icmp_in_errors, 2, "no such connection");
    world.receive(&quote(&awaited, |_| {}));
    settle(&mut kernel);
    assert_eq!(send(&mut kernel).len, 600);
    assert_balanced(&kernel);
}
