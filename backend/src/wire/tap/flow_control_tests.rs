//! A host that takes frames slowly: what the card has no room for waits in the kernel.

use std::net::UdpSocket;

use nic_model::host::QueueIndex;
use nic_model::port::{Port, PortConfig};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{BindToDevice, Broadcast};

use super::tests::{open, statistic, unique};
use super::*;
use crate::wire::testing::pool;

/// More than the FIFO holds, and less than that and the interface's queue.
const FRAMES: usize = 600;

#[test]
fn nothing_is_lost_to_a_fifo_that_is_full() {
    let name = unique("f");
    let Some(mut tap) = open(&name, 1500) else {
        return;
    };
    let mut port = Port::new(&PortConfig::default());
    port.set_super_frames(tap.has_super_frames());
    port.set_flow_control(tap.waits());
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    setsockopt(&socket, BindToDevice, &name.clone().into()).expect("it is bound");
    setsockopt(&socket, Broadcast, &true).expect("it may");
    tap.link_changed(Nanos::ZERO, true);
    for number in 0..FRAMES {
        let datagram = [&number.to_be_bytes()[..], &[0; 1400]].concat();
        let sent = socket.send_to(&datagram, "255.255.255.255:9");
        sent.expect("the interface's queue has room");
    }
    let (mut now, mut burst, mut fifo) = (Nanos::ZERO, Vec::new(), Vec::new());
    let (mut seen, mut pauses) = (Vec::new(), 0);
    loop {
        // The card takes what it can, and then the host one frame.
        loop {
            now += std::time::Duration::from_millis(10);
            let room = port.rx_room(now);
            if room > 0 {
                tap.receive(now, room, &mut port.pool, &mut burst);
            } else {
                assert!(port.wire_is_paused());
                pauses += 1;
            }
            if burst.is_empty() {
                break;
            }
            port.receive(now, &mut burst);
            fifo.append(&mut burst);
        }
        let Some(frame) = fifo.first() else {
            break;
        };
        // The kernel may have sent something of its own.
        if let Some(payload) = frame.bytes().get(14 + 20 + 8..)
            && payload.len() == 8 + 1400
        {
            let number = payload.first_chunk().expect("a number");
            seen.push(usize::from_be_bytes(*number));
        }
        port.release(QueueIndex(0), fifo.drain(..1));
    }
    assert!(pauses > 0, "the FIFO was never full");
    assert!(seen.iter().copied().eq(0..FRAMES));
    let drops = port.counters(&[]).drops;
    assert_eq!((drops.total(), port.pool.lent()), (0, 0), "{drops:?}");
    assert_eq!(statistic(&name, "statistics/tx_dropped"), 0);
    assert!(!port.wire_is_paused());
}

#[test]
fn nothing_is_read_while_no_buffer_could_take_a_super_frame() {
    let name = unique("g");
    let Some(mut tap) = open(&name, 1500) else {
        return;
    };
    let mut pool = pool(1500);
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    setsockopt(&socket, BindToDevice, &name.clone().into()).expect("it is bound");
    setsockopt(&socket, Broadcast, &true).expect("it may");
    tap.link_changed(Nanos::ZERO, true);
    let sent = socket.send_to(b"patience", "255.255.255.255:9");
    sent.expect("the interface's queue has room");
    let big: Vec<_> = std::iter::from_fn(|| pool.take_big_received()).collect();
    let mut frames = Vec::new();
    tap.receive(Nanos::ZERO, 64, &mut pool, &mut frames);
    assert!(frames.is_empty() && !tap.is_gone());
    pool.give_all(big);
    // The kernel may have sent something of its own, too.
    tap.receive(Nanos::ZERO, 64, &mut pool, &mut frames);
    assert!(frames.iter().any(|f| f.bytes().ends_with(b"patience")));
    pool.give_all(frames);
    assert_eq!((pool.lent(), tap.read_errors), (0, 0));
}
