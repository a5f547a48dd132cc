//! Sockets as files: descriptors, read and write, messages in several buffers, poll.

use std::io::{IoSlice, IoSliceMut};

use nic_guest::net::file::{MsgFlags, Msghdr, PollFlags};
use nic_guest::net::{Errno, Fd, Protocol, SockType};

use crate::common::packets::{icmp, udp, udp_between};
use crate::common::world::{MAC, assert_balanced, boot, settle};
use crate::{PORT, peer, read_all, resolve_peer, udp_socket};

#[test]
fn a_socket_lives_until_its_last_descriptor_is_closed() {
    let (mut kernel, world) = boot();
    let fd = udp_socket(&mut kernel, PORT);
    let other = kernel.dup(fd).unwrap();
    assert_ne!(fd, other);
    world.receive(&udp(PORT, b"one"));
    settle(&mut kernel);
    kernel.close(fd).unwrap();
    assert_eq!(kernel.recvfrom(fd, &mut [0; 8]), Err(Errno::EBADF));
    world.receive(&udp(PORT, b"two"));
    settle(&mut kernel);
    assert_eq!(read_all(&mut kernel, other), [b"one", b"two"]);
    // The number is free, the place of the socket is not: who comes next gets a socket of his own.
    let next = udp_socket(&mut kernel, PORT + 1);
    assert_eq!(next, fd);
    assert_eq!(kernel.getsockname(next).unwrap().port(), PORT + 1);
    assert_eq!(kernel.getsockname(other).unwrap().port(), PORT);
    kernel.close(other).unwrap();
    assert_eq!(kernel.close(other), Err(Errno::EBADF));
    assert_eq!(kernel.dup(other), Err(Errno::EBADF));
    // Its port is free again.
    udp_socket(&mut kernel, PORT);
    assert_balanced(&kernel);
}

#[test]
fn descriptors_end_before_sockets_leak() {
    let (mut kernel, _world) = boot();
    for _ in 0..1024 {
        kernel.socket(SockType::Dgram, Protocol::Udp).unwrap();
    }
    for _ in 0..3 {
        let more = kernel.socket(SockType::Dgram, Protocol::Udp);
        assert_eq!(more, Err(Errno::EMFILE));
    }
    kernel.close(Fd(500)).unwrap();
    assert_eq!(udp_socket(&mut kernel, PORT), Fd(500));
}

#[test]
fn a_connected_socket_is_read_and_written_as_a_file() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = udp_socket(&mut kernel, PORT);
    assert_eq!(kernel.write(fd, b"nowhere"), Err(Errno::EDESTADDRREQ));
    kernel.connect(fd, peer(9000)).unwrap();
    assert_eq!(kernel.write(fd, b"hello"), Ok(5));
    let sent = world.take_sent();
    assert_eq!(&sent[0].frame[42..47], b"hello");
    assert_eq!(kernel.read(fd, &mut [0; 8]), Err(Errno::EAGAIN));
    world.receive(&udp(PORT, b"an answer"));
    settle(&mut kernel);
    let mut buf = [0; 4];
    assert_eq!(kernel.read(fd, &mut buf), Ok(4));
    assert_eq!(&buf, b"an a");
    assert_eq!(
        kernel.read(fd, &mut buf),
        Err(Errno::EAGAIN),
        "the rest is lost"
    );
    assert_eq!(kernel.read(Fd(99), &mut buf), Err(Errno::EBADF));
    assert_eq!(kernel.write(Fd(99), &buf), Err(Errno::EBADF));
}

#[test]
fn a_message_is_gathered_and_scattered() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = udp_socket(&mut kernel, PORT);
    for pieces in [&["one piece"][..], &["in ", "", "three"], &[]] {
        let iov: Vec<_> = pieces.iter().map(|p| IoSlice::new(p.as_bytes())).collect();
        let whole = pieces.concat();
        let sent = kernel.sendmsg(fd, &Msghdr::new(Some(peer(9)), &iov));
        assert_eq!(sent, Ok(whole.len()));
        let frame = world.take_sent().remove(0).frame;
        assert_eq!(&frame[42..42 + whole.len()], whole.as_bytes());
        assert_eq!(frame[39], 8 + whole.len() as u8);
    }
    let nowhere = Msghdr::new(None, &[][..]);
    assert_eq!(kernel.sendmsg(fd, &nowhere), Err(Errno::EDESTADDRREQ));

    world.receive(&udp_between(5, (MAC, [10, 77, 0, 2], PORT), b"abcdefgh"));
    settle(&mut kernel);
    let (mut a, mut b, mut c) = ([0; 3], [0; 3], [0; 9]);
    let mut iov = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
    let mut msg = Msghdr::new(None, &mut iov[..]);
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
    assert_eq!(
        kernel.recvmsg(fd, &mut msg, flags),
        Ok(8),
        "all that it has"
    );
    assert_eq!(msg.msg_name, Some(peer(5)));
    assert_eq!(msg.msg_flags, MsgFlags::MSG_TRUNC);
    assert_eq!((&a, &b), (b"abc", b"def"));
    let mut iov = [IoSliceMut::new(&mut b), IoSliceMut::new(&mut c)];
    let mut msg = Msghdr::new(None, &mut iov[..]);
    assert_eq!(kernel.recvmsg(fd, &mut msg, MsgFlags::empty()), Ok(8));
    assert_eq!(msg.msg_flags, MsgFlags::empty());
    assert_eq!((&b, &c[..5]), (b"abc", &b"defgh"[..]));
    let mut iov = [IoSliceMut::new(&mut c)];
    let mut msg = Msghdr::new(None, &mut iov[..]);
    let read = kernel.recvmsg(fd, &mut msg, MsgFlags::empty());
    assert_eq!(read, Err(Errno::EAGAIN));
}

#[test]
fn poll_tells_what_needs_no_waiting() {
    let (mut kernel, world) = boot();
    resolve_peer(&mut kernel, &world);
    let fd = udp_socket(&mut kernel, PORT);
    let all = PollFlags::POLLIN | PollFlags::POLLOUT;
    assert_eq!(kernel.vfs_poll(fd, all), PollFlags::POLLOUT);
    world.receive(&udp(PORT, b"x"));
    settle(&mut kernel);
    assert_eq!(kernel.vfs_poll(fd, all), all);
    assert_eq!(kernel.vfs_poll(fd, PollFlags::POLLIN), PollFlags::POLLIN);
    // Half of the send buffer is taken.
    world.hold.set(true);
    kernel.set_sndbuf(fd, 4000).unwrap();
    for _ in 0..6 {
        kernel.sendto(fd, b"x", Some(peer(9))).unwrap();
    }
    assert_eq!(kernel.vfs_poll(fd, all), PollFlags::POLLIN);
    // Somebody's answer is told, asked for or not.
    kernel.connect(fd, peer(9)).unwrap();
    world.transmit(0, 10);
    let quoted = world.take_sent().remove(0).frame;
    let unreachable = etherparse::Icmpv4Type::DestinationUnreachable(
        etherparse::icmpv4::DestUnreachableHeader::Port,
    );
    world.receive(&icmp(&unreachable, &quoted[14..42]));
    settle(&mut kernel);
    let told = kernel.vfs_poll(fd, PollFlags::empty());
    assert_eq!(told, PollFlags::POLLERR);
    assert_eq!(kernel.vfs_poll(Fd(99), all), PollFlags::POLLNVAL);
}
