//! Merged packets on their way to a socket. (What is merged is tested beside the code.)

use nic_guest::net::stats::RxDrop;
use nic_guest::virtio_net::features as f;

use crate::common::packets::udp;
use crate::common::world::{FEATURES, Guest, Setup, World, assert_balanced, boot, settle};
use crate::{PORT, read_all, udp_socket};

/// Datagrams of one flow whose identifications count.
fn burst(world: &World, port: u16, count: u16, len: usize) {
    for id in 0..count {
        let mut frame = udp(port, &vec![id as u8; len]);
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame[24..26].fill(0);
        let sum = frame[14..34].chunks(2).fold(0u32, |sum, pair| {
            sum + u32::from(pair[0]) * 256 + u32::from(pair[1])
        });
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        world.receive(&frame);
    }
}

fn asked(kernel: &mut Guest, port: u16) -> nic_guest::net::Fd {
    let fd = udp_socket(kernel, port);
    kernel.set_udp_gro(fd, true).unwrap();
    fd
}

#[test]
fn datagrams_of_one_poll_are_one_for_who_asked() {
    for buffers in [0, f::MRG_RXBUF, f::RING_PACKED] {
        let setup = Setup {
            features: FEATURES | buffers,
            ..Setup::default()
        };
        let (mut kernel, world) = setup.boot();
        let fd = asked(&mut kernel, PORT);
        burst(&world, PORT, 10, 100);
        settle(&mut kernel);
        let mut buf = [0; 2000];
        let seen = kernel.recvmsg_peek(fd, &mut buf).unwrap();
        let received = kernel.recvfrom(fd, &mut buf).unwrap();
        assert_eq!(seen, received);
        assert_eq!((received.len, received.gso_size), (1000, 100));
        let want: Vec<u8> = (0..10).flat_map(|id| [id; 100]).collect();
        assert_eq!(buf[..1000], want);
        let stats = kernel.stats();
        assert_eq!(
            (stats.rx_packets, stats.gro_merged, stats.queued),
            (10, 9, 1)
        );
        assert_balanced(&kernel);
        // A short buffer gets as much as it holds.
        burst(&world, PORT, 3, 100);
        settle(&mut kernel);
        let received = kernel.recvfrom(fd, &mut buf[..150]).unwrap();
        assert_eq!(received.len, 150);
        assert_eq!(buf[..150], want[..150]);
    }
}

#[test]
fn others_get_each() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, PORT);
    burst(&world, PORT, 5, 100);
    settle(&mut kernel);
    asked(&mut kernel, PORT + 1);
    burst(&world, PORT, 5, 100);
    settle(&mut kernel);
    assert_eq!(read_all(&mut kernel, fd).len(), 10);
    assert_eq!(kernel.stats().gro_merged, 0);
    assert_balanced(&kernel);
}

#[test]
fn a_poll_parts_what_would_be_one() {
    let (mut kernel, world) = boot();
    let fd = asked(&mut kernel, PORT);
    burst(&world, PORT, 70, 10);
    settle(&mut kernel);
    let lens: Vec<_> = read_all(&mut kernel, fd).iter().map(Vec::len).collect();
    assert_eq!(lens, [10 * 64, 10 * 6]);
    assert_balanced(&kernel);
}

#[test]
fn without_a_socket_nothing_is_merged() {
    let (mut kernel, world) = boot();
    let fd = asked(&mut kernel, PORT);
    kernel.close(fd).unwrap();
    burst(&world, PORT, 4, 100);
    settle(&mut kernel);
    assert_eq!(kernel.stats().rx_drop(RxDrop::UdpNoPorts), 4);
    assert_balanced(&kernel);
}
