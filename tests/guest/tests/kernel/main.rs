//! The kernel against a NIC in virtual time: what goes up, what goes down, and what ends where.

#[path = "../common/mod.rs"]
mod common;

mod announce;
mod bridge;
mod connections;
mod cork;
mod devices;
mod dim;
mod errors;
mod files;
mod forward;
mod fragmentation;
mod fragments;
mod frames;
mod gro;
mod hash;
mod icmp;
mod ipv6;
mod ipv6_sockets;
mod multicast;
mod napi;
mod neighbours;
mod netfilter;
mod options;
mod path_mtu;
mod polling;
mod procfs;
mod qdisc;
mod queues;
mod raw;
mod segments;
mod stages;
mod steering;
mod taps;
mod tcp;
mod transmit;
mod udp;
mod vlan;

use std::net::{Ipv4Addr, SocketAddrV4};

use common::packets::{PEER, arp_reply};
use common::world::{Guest, World, settle};
use nic_guest::net::{Errno, Fd, Protocol, SockType};

const PORT: u16 = 7000;

/// A bound UDP socket.
fn udp_socket(kernel: &mut Guest, port: u16) -> Fd {
    let fd = kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    kernel.bind(fd, any).unwrap();
    fd
}

fn peer(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(PEER.into(), port)
}

/// All datagrams that wait at a socket.
fn read_all(kernel: &mut Guest, fd: Fd) -> Vec<Vec<u8>> {
    let (mut all, mut buf) = (Vec::new(), [0; 2048]);
    loop {
        match kernel.recvfrom(fd, &mut buf) {
            Ok(received) => all.push(buf[..received.len].to_vec()),
            Err(error) => {
                assert_eq!(error, Errno::EAGAIN);
                return all;
            }
        }
    }
}

/// Has the kernel learn the peer's address.
fn resolve_peer(kernel: &mut Guest, world: &World) {
    let fd = udp_socket(kernel, 1);
    kernel.sendto(fd, b"hello", Some(peer(9))).unwrap();
    world.receive(&arp_reply(PEER));
    settle(kernel);
    kernel.close(fd).unwrap();
    world.take_sent();
}
