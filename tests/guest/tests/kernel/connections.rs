//! TCP connections between processes of two kernels, over a wire that may lose, repeat and reorder.

use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::rc::Rc;

use nic_guest::net::file::{POLLRDHUP, PollFlags};
use nic_guest::net::{Errno, Fd, IpPmtudisc, KernelConfig};
use nic_guest::virtio_net::features as f;
use nix::sys::socket::{AddressFamily, SockFlag};
use proptest::prelude::*;

use crate::PORT;
use crate::common::world::{FEATURES, Guest, MAC, Setup, World, assert_balanced, settle};
use crate::tcp::{listener, stream};

const SECOND: u64 = 1_000_000_000;

/// Two kernels, 10.77.0.1 and 10.77.0.2, and what the wire between them does.
struct Pair {
    kernels: [(Guest, Rc<World>); 2],
    /// Of so many frames one is lost, one is repeated, and one comes late; 0 for none.
    faults: u32,
    chance: u32,
    frames: u64,
}

impl Pair {
    fn new(features: u64) -> Self {
        let boot = |host: u8| {
            let config = KernelConfig {
                addr: addr(host),
                ..KernelConfig::default()
            };
            let setup = Setup {
                features,
                config,
                ..Setup::default()
            };
            let (mut kernel, world) = setup.boot();
            kernel.neigh_add(addr(3 - host), MAC).unwrap();
            settle(&mut kernel);
            (kernel, world)
        };
        Self {
            kernels: [boot(1), boot(2)],
            faults: 0,
            chance: 1,
            frames: 0,
        }
    }

    /// A connection: the first kernel's process has asked, the second's has accepted.
    fn connected(&mut self) -> (Fd, Fd, Fd) {
        let listening = listener(&mut self.kernels[1].0, PORT, 4);
        let asking = stream(&mut self.kernels[0].0);
        let connect = self.kernels[0].0.connect(asking, to(2));
        assert_eq!(connect, Err(Errno::EINPROGRESS));
        self.until("a connection", |pair| {
            let [(a, _), (b, _)] = &mut pair.kernels;
            a.poll_writable(asking).unwrap() && b.poll(listening).unwrap()
        });
        let (accepted, from) = self.kernels[1].0.accept(listening).unwrap();
        assert_eq!(Ok(from), self.kernels[0].0.getsockname(asking));
        assert_eq!(
            self.kernels[0].0.connect(asking, to(2)),
            Err(Errno::EISCONN)
        );
        (asking, accepted, listening)
    }

    fn happens(&mut self) -> bool {
        self.chance = self
            .chance
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        self.faults > 0 && (self.chance >> 16).is_multiple_of(self.faults)
    }

    /// What both have sent reaches the other; whether there was anything.
    fn carry(&mut self) -> bool {
        let mut any = false;
        for from in 0..2 {
            let mut sent = self.kernels[from].1.take_sent();
            if sent.len() > 1 && self.happens() {
                let last = sent.len() - 1;
                sent.swap(0, last);
            }
            for frame in sent {
                any = true;
                self.frames += 1;
                let copies = match (self.happens(), self.happens()) {
                    (true, _) => 0,
                    (_, true) => 2,
                    _ => 1,
                };
                let (kernel, world) = &mut self.kernels[1 - from];
                for _ in 0..copies {
                    world.schedule_with(world_now(kernel), 0, frame.hdr, &frame.frame);
                }
            }
        }
        for (kernel, _) in &mut self.kernels {
            any |= settle(kernel) > 0;
        }
        any
    }

    /// Goes on, from timer to timer, until something is so.
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        for _ in 0..100_000 {
            if is_so(self) {
                return;
            }
            if !self.carry() {
                self.sleep(what);
            }
        }
        panic!("{what} does not come");
    }

    /// The clock goes on to the next timer.
    fn sleep(&mut self, what: &str) {
        let timers = self
            .kernels
            .iter()
            .filter_map(|(kernel, _)| kernel.next_timer());
        let at = timers
            .min()
            .unwrap_or_else(|| panic!("{what}: nobody waits for anything"));
        for (kernel, world) in &self.kernels {
            world.advance(at.saturating_sub(world_now(kernel)));
        }
        for (kernel, _) in &mut self.kernels {
            settle(kernel);
        }
    }

    /// All that can happen without time's passing.
    fn rest(&mut self) {
        while self.carry() {}
    }

    fn send(&mut self, host: usize, fd: Fd, data: &[u8]) -> Result<usize, Errno> {
        self.kernels[host - 1].0.sendto(fd, data, None)
    }

    fn recv(&mut self, host: usize, fd: Fd) -> Result<Vec<u8>, Errno> {
        let mut buf = vec![0; 10_000];
        let received = self.kernels[host - 1].0.recvfrom(fd, &mut buf)?;
        buf.truncate(received.len);
        Ok(buf)
    }

    fn kernel(&mut self, host: usize) -> &mut Guest {
        &mut self.kernels[host - 1].0
    }

    fn check(&self) {
        for (kernel, _) in &self.kernels {
            assert_balanced(kernel);
        }
    }
}

fn world_now(kernel: &Guest) -> u64 {
    nic_guest::net::Machine::now(&kernel.machine)
}

fn addr(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, host)
}

fn to(host: u8) -> SocketAddrV4 {
    SocketAddrV4::new(addr(host), PORT)
}

fn data(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at * 7 + at / 255) as u8)
        .collect()
}

/// Sends `len` bytes each way at once, closes, and sees that all came and nothing is left.
fn exchange(pair: &mut Pair, len: usize) {
    let (asking, accepted, listening) = pair.connected();
    let all = data(len);
    let ends = [(1, asking), (2, accepted)];
    let (mut sent, mut got) = ([0; 2], [Vec::new(), Vec::new()]);
    pair.until("all data", |pair| {
        for (at, (host, fd)) in ends.into_iter().enumerate() {
            while sent[at] < len {
                match pair.send(host, fd, &all[sent[at]..]) {
                    Ok(more) => sent[at] += more,
                    Err(error) => {
                        assert_eq!(error, Errno::EAGAIN);
                        break;
                    }
                }
            }
            while got[at].len() < len {
                match pair.recv(host, fd) {
                    Ok(more) => got[at].extend(more),
                    Err(error) => {
                        assert_eq!(error, Errno::EAGAIN);
                        break;
                    }
                }
            }
        }
        got.iter().all(|got| got.len() == len)
    });
    assert!(got.iter().all(|got| *got == all));
    pair.kernel(1).close(asking).unwrap();
    pair.until("the end", |pair| pair.recv(2, accepted).is_ok());
    assert_eq!(pair.recv(2, accepted), Ok(vec![]));
    pair.kernel(2).close(accepted).unwrap();
    pair.kernel(2).close(listening).unwrap();
    pair.until("silence", |pair| {
        pair.kernels
            .iter()
            .all(|(kernel, _)| kernel.next_timer().is_none())
    });
    for (kernel, _) in &pair.kernels {
        assert_eq!(kernel.stats().snmp.tcp_curr_estab, 0);
        assert_eq!(kernel.stats().snmp.tcp_estab_resets, 0);
    }
    pair.check();
}

#[test]
fn data_goes_both_ways_and_the_connection_ends() {
    for features in [
        FEATURES,
        FEATURES & !f::CSUM,
        FEATURES | f::MRG_RXBUF | f::RING_PACKED,
    ] {
        let mut pair = Pair::new(features);
        exchange(&mut pair, 300_000);
        let [a, b] = [0, 1].map(|at| pair.kernels[at].0.stats());
        assert_eq!((a.snmp.tcp_active_opens, b.snmp.tcp_passive_opens), (1, 1));
        assert_eq!((a.snmp.tcp_retrans_segs, b.snmp.tcp_retrans_segs), (0, 0));
        assert!(
            b.gro_merged > 100,
            "segments of one burst are merged: {}",
            b.gro_merged
        );
        let (segments, merged) = (a.snmp.tcp_out_segs, b.gro_merged);
        assert_eq!(segments, b.snmp.tcp_in_segs + merged);
    }
}

#[test]
fn what_is_lost_is_sent_again() {
    let mut pair = Pair::new(FEATURES);
    pair.faults = 9;
    exchange(&mut pair, 200_000);
    let again: u64 = pair
        .kernels
        .iter()
        .map(|(kernel, _)| kernel.stats().snmp.tcp_retrans_segs)
        .sum();
    assert!(again > 10, "{again}");
}

#[test]
fn a_lost_fin_is_sent_again_after_repeated_acknowledgements() {
    let mut pair = Pair::new(FEATURES);
    (pair.chance, pair.faults) = (3_244_981_574, 23);
    exchange(&mut pair, 49_641);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_the_wire_does(seed in any::<u32>(), faults in 4..40u32, len in 0..60_000usize) {
        let mut pair = Pair::new(FEATURES);
        (pair.chance, pair.faults) = (seed, faults);
        exchange(&mut pair, len);
    }
}

#[test]
fn a_closed_port_refuses() {
    let mut pair = Pair::new(FEATURES);
    let fd = stream(pair.kernel(1));
    assert_eq!(pair.kernel(1).connect(fd, to(2)), Err(Errno::EINPROGRESS));
    assert_eq!(pair.kernel(1).connect(fd, to(2)), Err(Errno::EALREADY));
    assert_eq!(pair.kernel(1).poll_writable(fd), Ok(false));
    assert_eq!(pair.send(1, fd, b"early"), Err(Errno::EAGAIN));
    pair.rest();
    assert_eq!(pair.kernel(1).poll_writable(fd), Ok(true));
    assert_eq!(pair.kernel(1).poll(fd), Ok(true));
    assert_eq!(pair.recv(1, fd), Err(Errno::ECONNREFUSED));
    assert_eq!(pair.recv(1, fd), Ok(vec![]), "told once");
    assert_eq!(pair.send(1, fd, b"late"), Err(Errno::EPIPE));
    assert_eq!(pair.kernel(1).stats().snmp.tcp_attempt_fails, 1);
    pair.kernel(1).close(fd).unwrap();
    assert_eq!(pair.kernel(1).next_timer(), None);
    pair.check();
}

#[test]
fn a_silent_peer_is_given_up() {
    let mut pair = Pair::new(FEATURES);
    let fd = stream(pair.kernel(1));
    pair.faults = 1;
    assert_eq!(pair.kernel(1).connect(fd, to(2)), Err(Errno::EINPROGRESS));
    pair.until("an error", |pair| pair.kernel(1).poll(fd).unwrap());
    assert_eq!(pair.recv(1, fd), Err(Errno::ETIMEDOUT));
    let now = world_now(pair.kernel(1));
    assert_eq!(now / SECOND, 127);
    // The SYN, and seven more: after 1, 3, 7, 15, 31, 63 and 123 seconds. No pause is longer than a minute.
    assert_eq!(pair.kernel(1).stats().snmp.tcp_retrans_segs, 7);
    // One that falls silent later: what it does not acknowledge is repeated for a quarter of an hour.
    let mut pair = Pair::new(FEATURES);
    let (asking, accepted, _) = pair.connected();
    pair.faults = 1;
    let begin = world_now(pair.kernel(1));
    pair.send(1, asking, b"anybody there?").unwrap();
    pair.until("an error", |pair| pair.kernel(1).poll(asking).unwrap());
    assert_eq!(pair.recv(1, asking), Err(Errno::ETIMEDOUT));
    let took = world_now(pair.kernel(1)) - begin;
    assert_eq!(took / SECOND, 924);
    assert_eq!(pair.kernel(1).stats().snmp.tcp_curr_estab, 0);
    // Who has nothing to send does not find out.
    assert_eq!(pair.kernel(2).poll(accepted), Ok(false));
    assert_eq!(pair.kernel(2).stats().snmp.tcp_curr_estab, 1);
    pair.check();
}

#[test]
fn one_direction_ends_before_the_other() {
    let mut pair = Pair::new(FEATURES);
    let (asking, accepted, _) = pair.connected();
    pair.send(1, asking, b"request").unwrap();
    pair.kernel(1).shutdown(asking, Shutdown::Write).unwrap();
    assert_eq!(pair.send(1, asking, b"more"), Err(Errno::EPIPE));
    pair.rest();
    assert_eq!(pair.recv(2, accepted), Ok(b"request".to_vec()));
    assert_eq!(pair.recv(2, accepted), Ok(vec![]));
    assert_eq!(pair.recv(1, asking), Err(Errno::EAGAIN));
    pair.send(2, accepted, b"answer").unwrap();
    pair.kernel(2).close(accepted).unwrap();
    pair.rest();
    let mut buf = [0; 100];
    let peeked = pair.kernel(1).recvmsg_peek(asking, &mut buf).unwrap();
    assert_eq!(&buf[..peeked.len], b"answer");
    assert_eq!(peeked.from, to(2));
    assert_eq!(pair.recv(1, asking), Ok(b"answer".to_vec()));
    assert_eq!(pair.recv(1, asking), Ok(vec![]));
    pair.check();
}

#[test]
fn what_was_not_read_resets_the_connection() {
    let mut pair = Pair::new(FEATURES);
    let (asking, accepted, _) = pair.connected();
    pair.send(1, asking, b"unread").unwrap();
    pair.send(2, accepted, b"came before").unwrap();
    pair.rest();
    pair.kernel(2).close(accepted).unwrap();
    pair.rest();
    assert_eq!(pair.recv(1, asking), Ok(b"came before".to_vec()));
    assert_eq!(pair.recv(1, asking), Err(Errno::ECONNRESET));
    assert_eq!(pair.recv(1, asking), Ok(vec![]));
    assert_eq!(pair.kernel(1).stats().snmp.tcp_estab_resets, 1);
    assert_eq!(pair.kernel(2).stats().snmp.tcp_out_rsts, 1);
    pair.check();
}

#[test]
fn who_does_not_read_holds_up_who_sends() {
    let mut pair = Pair::new(FEATURES);
    let (asking, accepted, _) = pair.connected();
    let all = data(1 << 20);
    let mut sent = 0;
    for _ in 0..100 {
        while let Ok(more) = pair.send(1, asking, &all[sent..]) {
            sent += more;
        }
        pair.rest();
        pair.sleep("a full buffer");
    }
    let config = KernelConfig::default();
    assert_eq!(sent, config.tcp_rmem + config.tcp_wmem);
    assert_eq!(pair.kernel(1).poll_writable(asking), Ok(false));
    let mut got = Vec::new();
    pair.until("all that was sent", |pair| {
        while let Ok(more) = pair.recv(2, accepted) {
            got.extend(more);
        }
        got.len() == sent
    });
    assert_eq!(got, all[..sent]);
    assert_eq!(pair.kernel(1).poll_writable(asking), Ok(true));
    pair.check();
}

#[test]
fn a_peer_that_never_closes_is_left_to_itself() {
    let mut pair = Pair::new(FEATURES);
    let (asking, accepted, _) = pair.connected();
    pair.kernel(1).close(asking).unwrap();
    pair.rest();
    assert_eq!(pair.recv(2, accepted), Ok(vec![]));
    let due = pair.kernel(1).next_timer().unwrap();
    assert_eq!(due, 60 * SECOND);
    pair.sleep("the end of an orphan");
    assert_eq!(pair.kernel(1).next_timer(), None);
    // What comes later finds nothing.
    pair.send(2, accepted, b"late").unwrap();
    pair.rest();
    assert_eq!(pair.recv(2, accepted), Err(Errno::EPIPE));
    pair.check();
}

#[test]
fn what_nobody_will_read_resets_the_connection() {
    let mut pair = Pair::new(FEATURES);
    let (asking, accepted, _) = pair.connected();
    pair.kernel(1).close(asking).unwrap();
    pair.rest();
    pair.send(2, accepted, b"to nobody").unwrap();
    pair.rest();
    assert_eq!(pair.kernel(1).next_timer(), None, "it is gone");
    assert_eq!(pair.recv(2, accepted), Err(Errno::EPIPE));
    pair.check();
}

#[test]
fn connections_without_a_process_are_bounded() {
    let mut pair = Pair::new(FEATURES);
    let listening = listener(pair.kernel(2), PORT, 4);
    for _ in 0..300 {
        let fd = stream(pair.kernel(1));
        assert_eq!(pair.kernel(1).connect(fd, to(2)), Err(Errno::EINPROGRESS));
        pair.rest();
        pair.kernel(2).accept(listening).unwrap();
        pair.kernel(1).close(fd).unwrap();
        pair.rest();
    }
    // 256 wait for a FIN that does not come; beyond that connections are reset.
    assert_eq!(pair.kernel(1).stats().snmp.tcp_out_rsts, 300 - 256);
    pair.check();
}

#[test]
fn calls_that_make_no_sense_are_refused() {
    let mut pair = Pair::new(FEATURES);
    let (asking, accepted, listening) = pair.connected();
    let fresh = stream(pair.kernel(1));
    assert_eq!(pair.kernel(1).accept(fresh).err(), Some(Errno::EINVAL));
    assert_eq!(pair.send(1, fresh, b"x"), Err(Errno::EPIPE));
    assert_eq!(pair.recv(1, fresh), Err(Errno::ENOTCONN));
    assert_eq!(
        pair.kernel(1).shutdown(fresh, Shutdown::Both),
        Err(Errno::ENOTCONN)
    );
    assert_eq!(
        pair.kernel(1).connect(fresh, SocketAddrV4::new(addr(2), 0)),
        Err(Errno::EADDRNOTAVAIL)
    );
    let broadcast = SocketAddrV4::new(addr(255), 9);
    assert_eq!(
        pair.kernel(1).connect(fresh, broadcast),
        Err(Errno::ENETUNREACH)
    );
    assert_eq!(pair.kernel(1).listen(asking, 1), Err(Errno::EINVAL));
    assert_eq!(pair.kernel(2).accept(listening).err(), Some(Errno::EAGAIN));
    assert_eq!(
        pair.kernel(2).connect(listening, to(1)),
        Err(Errno::EISCONN)
    );
    let other = stream(pair.kernel(2));
    assert_eq!(pair.kernel(2).bind(other, to(2)), Err(Errno::EADDRINUSE));
    pair.kernel(2).close(other).unwrap();
    assert_eq!(pair.kernel(2).listen(other, 1), Err(Errno::EBADF));
    let udp = crate::udp_socket(pair.kernel(1), 9);
    assert_eq!(pair.kernel(1).listen(udp, 1), Err(Errno::EOPNOTSUPP));
    // A second connection from another port; the first is still there.
    assert_eq!(
        pair.kernel(1).connect(fresh, to(2)),
        Err(Errno::EINPROGRESS)
    );
    pair.rest();
    let (second, _) = pair.kernel(2).accept(listening).unwrap();
    pair.send(1, fresh, b"two").unwrap();
    pair.send(1, asking, b"one").unwrap();
    pair.rest();
    assert_eq!(pair.recv(2, second), Ok(b"two".to_vec()));
    assert_eq!(pair.recv(2, accepted), Ok(b"one".to_vec()));
    pair.check();
}

#[test]
fn a_port_in_time_wait_may_be_asked_again() {
    let mut pair = Pair::new(FEATURES);
    let (asking, accepted, listening) = pair.connected();
    let from = pair.kernel(1).getsockname(asking).unwrap();
    // The listener's side closes first, so that it is the one that waits.
    pair.kernel(2).close(accepted).unwrap();
    pair.rest();
    pair.kernel(1).close(asking).unwrap();
    pair.rest();
    assert!(pair.kernel(2).next_timer().is_some(), "TIME_WAIT");
    let again = stream(pair.kernel(1));
    pair.kernel(1).bind(again, from).unwrap();
    assert_eq!(
        pair.kernel(1).connect(again, to(2)),
        Err(Errno::EINPROGRESS)
    );
    pair.rest();
    let (_, who) = pair.kernel(2).accept(listening).unwrap();
    assert_eq!(who, from);
    pair.check();
}

#[test]
fn a_host_may_talk_to_itself() {
    let mut pair = Pair::new(FEATURES);
    let listening = listener(pair.kernel(2), PORT, 4);
    for addr in [addr(2), Ipv4Addr::LOCALHOST] {
        let kernel = pair.kernel(2);
        let fd = stream(kernel);
        let to = SocketAddrV4::new(addr, PORT);
        assert_eq!(kernel.connect(fd, to), Err(Errno::EINPROGRESS));
        settle(kernel);
        let (other, from) = kernel.accept(listening).unwrap();
        assert_eq!(from.ip(), &addr);
        assert_eq!(kernel.sendto(fd, b"to myself", None), Ok(9));
        settle(kernel);
        assert_eq!(pair.recv(2, other), Ok(b"to myself".to_vec()));
        pair.kernel(2).close(other).unwrap();
        settle(pair.kernel(2));
        assert_eq!(pair.recv(2, fd), Ok(vec![]));
        pair.kernel(2).close(fd).unwrap();
        settle(pair.kernel(2));
    }
    assert!(pair.kernels[1].1.take_sent().is_empty(), "nothing leaves");
    pair.check();
}

/// What `poll` tells of a socket of this machine.
fn host_poll(fd: &impl AsRawFd, events: PollFlags) -> PollFlags {
    let mut fds = [libc::pollfd {
        fd: fd.as_raw_fd(),
        events: events.bits(),
        revents: 0,
    }];
    // SAFETY: one descriptor is asked about, and there is room for its answer.
    assert!(unsafe { libc::poll(fds.as_mut_ptr(), 1, 0) } >= 0);
    PollFlags::from_bits_retain(fds[0].revents)
}

#[test]
fn poll_tells_of_the_end_as_sockets_of_this_machine_do() {
    let events = PollFlags::POLLIN | PollFlags::POLLOUT | POLLRDHUP;
    let mut pair = Pair::new(FEATURES);
    let ours = |pair: &mut Pair, which: usize, fd| pair.kernel(which).vfs_poll(fd, events);
    let kind = nix::sys::socket::SockType::Stream;
    let fresh = nix::sys::socket::socket(AddressFamily::Inet, kind, SockFlag::empty(), None);
    let of_pair = stream(pair.kernel(1));
    let theirs = host_poll(&fresh.unwrap(), events);
    assert_eq!(ours(&mut pair, 1, of_pair), theirs, "fresh");
    assert_eq!(theirs, PollFlags::POLLOUT | PollFlags::POLLHUP);
    let listening = TcpListener::bind("127.0.0.1:0").unwrap();
    for order in [[0, 1], [1, 0]] {
        let mut pair = Pair::new(FEATURES);
        let (asking, accepted, listener) = pair.connected();
        assert_eq!(
            ours(&mut pair, 2, listener),
            host_poll(&listening, events),
            "listens"
        );
        let asks = TcpStream::connect(listening.local_addr().unwrap()).unwrap();
        let (accepts, _) = listening.accept().unwrap();
        let sockets = [(1, asking, &asks), (2, accepted, &accepts)];
        let check = |pair: &mut Pair, when: &str| {
            pair.rest();
            // What was sent over lo has arrived.
            for (which, fd, theirs) in sockets {
                let told = ours(pair, which, fd);
                assert_eq!(
                    told,
                    host_poll(theirs, events),
                    "{when}, {which}, {order:?}"
                );
            }
        };
        check(&mut pair, "connected");
        for (nth, end) in order.into_iter().enumerate() {
            let (which, fd, theirs) = sockets[end];
            pair.kernel(which).shutdown(fd, Shutdown::Write).unwrap();
            theirs.shutdown(Shutdown::Write).unwrap();
            check(&mut pair, ["one has ended", "both have"][nth]);
        }
    }
}

#[test]
fn an_accepted_socket_is_what_its_listener_is() {
    let mut pair = Pair::new(FEATURES);
    let (asking, accepted, listening) = pair.connected();
    assert_eq!(pair.kernel(2).reuse(accepted), Ok((false, false)));
    pair.kernel(2).set_reuseaddr(listening, true).unwrap();
    pair.kernel(2).set_reuseport(listening, true).unwrap();
    pair.kernel(2).set_tos(listening, 0x10).unwrap();
    let interface = IpPmtudisc::Interface;
    pair.kernel(2)
        .set_mtu_discover(listening, interface)
        .unwrap();
    let again = stream(pair.kernel(1));
    assert_eq!(
        pair.kernel(1).connect(again, to(2)),
        Err(Errno::EINPROGRESS)
    );
    pair.until("another", |pair| pair.kernel(2).poll(listening).unwrap());
    // As it was when the handshake ended, except for the priority.
    pair.kernel(2).set_reuseaddr(listening, false).unwrap();
    pair.kernel(2).set_tos(listening, 0).unwrap();
    let (accepted, _) = pair.kernel(2).accept(listening).unwrap();
    assert_eq!(pair.kernel(2).reuse(accepted), Ok((true, true)));
    let treatment = pair.kernel(2).treatment(accepted);
    assert_eq!(treatment, Ok((0, 0x10, interface)));
    assert_eq!(pair.kernel(1).reuse(asking), Ok((false, false)));
}
