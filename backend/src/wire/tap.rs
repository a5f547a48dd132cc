//! A TAP device of this host: its kernel is the link partner.
//!
//! Frames that the kernel sends through the interface enter, one `readv` each, straight into the buffer that
//! they stay in; frames of the card leave, one `writev` each. Before each stands a header of virtio's ([`NetHeader`]) that
//! tells what has yet to be done to it: super-frames pass whole in both directions, and checksums that the kernel left to the card come as
//! they are. The device is attached to if it exists (made persistent
//! with `ip tuntap`), else created, brought up and given the port's MTU; one that was created here goes
//! with the process. Its carrier follows the card's link. While the card has no room frames wait in the interface's queue, and
//! there the kernel drops what is too much. Dropped are frames that the kernel refuses
//! (its interface down, its queue full) and those that waited in it while there was no link.

use std::ffi::{c_int, c_short};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use log::{error, warn};
use nic_device::header::{LEGACY_HEADER, NetHeader};
use nic_model::frame::{BIG_BUFFER, Frame, Pool};
use nic_model::time::Nanos;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::uio::{readv, writev};
use nix::unistd::read;
use zerocopy::IntoBytes;

use super::Wire;

const CLONE_DEVICE: &str = "/dev/net/tun";
/// Frames that a TAP device's queue holds at most, with room to spare (its default is 1000).
const STALE_AT_ONCE: usize = 10_000;

/// What the kernel may leave to the card, and gives in one piece (TUNSETOFFLOAD; Linux: include/uapi/linux/if_tun.h).
const TUN_F_CSUM: c_int = 0x01;
const TUN_F_TSO4: c_int = 0x02;
const TUN_F_TSO6: c_int = 0x04;
const TUN_F_TSO_ECN: c_int = 0x08;
const TUN_F_USO4: c_int = 0x20;
const TUN_F_USO6: c_int = 0x40;
const OFFLOADS: c_int = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
/// Linux from 6.2 on.
const WITH_USO: c_int = OFFLOADS | TUN_F_USO4 | TUN_F_USO6;

/// Octets that the next super-frame may take in a FIFO.
const LONGEST: usize = 72 * 1024;

/// Why a TAP device cannot be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is no `/dev/net/tun`.
    #[error(
        "there is no {CLONE_DEVICE} here: load it with modprobe tun, or give it to the container with --device {CLONE_DEVICE}"
    )]
    NoDriver,
    /// No permission to open `/dev/net/tun`.
    #[error("no permission to open {CLONE_DEVICE}: run as root, or chmod it")]
    NoAccess,
    /// No permission to create or attach to the interface.
    #[error(
        "not permitted: run with CAP_NET_ADMIN, or make the interface first with ip tuntap add dev NAME mode tap user YOU"
    )]
    NotPermitted,
    /// Someone else has it.
    #[error("another process is attached to it: stop that one, or take another name")]
    Busy,
    /// Some other interface has the name.
    #[error(
        "an interface of this name exists, but is no TAP device with a single queue: take another name, or make it with ip tuntap add dev NAME mode tap"
    )]
    NotTap,
    /// Some step failed.
    #[error("cannot {what}: {source}")]
    Failed {
        /// Which step.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Whether `name` may name an interface.
pub fn is_name(name: &str) -> bool {
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b))
        && name != "."
        && name != ".."
}

/// One queue of a TAP device.
#[derive(Debug)]
pub struct Tap {
    name: String,
    device: File,
    /// Where the octets of a super-frame go that a usual buffer has no room for: where they stay, if it is one.
    rest: Frame,
    received: u64,
    sent: u64,
    /// Of those, super-frames.
    received_super: u64,
    sent_super: u64,
    /// Super-frames that there was no buffer for.
    no_buffer: u64,
    /// Frames refused because the interface is down, because its queue is full, and for any other reason.
    refused_down: u64,
    refused_full: u64,
    refused: u64,
    read_errors: u64,
    stale: u64,
    gone: bool,
}

impl Tap {
    /// Attaches to the TAP device `name`, or creates it for packets of up to `mtu` octets.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &str, mtu: u16) -> Result<Self, TapError> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(CLONE_DEVICE)
            .map_err(|e| match e.kind() {
                io::ErrorKind::PermissionDenied => TapError::NoAccess,
                _ => TapError::NoDriver,
            })?;
        let existed = if_nametoindex(name).is_ok();
        ioctl::attach(&device, name).map_err(|errno| match errno {
            Errno::EPERM | Errno::EACCES => TapError::NotPermitted,
            Errno::EBUSY => TapError::Busy,
            Errno::EINVAL if existed => TapError::NotTap,
            errno => TapError::Failed {
                what: "attach to it",
                source: errno.into(),
            },
        })?;
        let tap = Tap {
            name: name.to_owned(),
            device,
            rest: Pool::new(BIG_BUFFER).take(),
            received: 0,
            sent: 0,
            received_super: 0,
            sent_super: 0,
            no_buffer: 0,
            refused_down: 0,
            refused_full: 0,
            refused: 0,
            read_errors: 0,
            stale: 0,
            gone: false,
        };
        ioctl::set_header_len(&tap.device, LEGACY_HEADER as c_int).map_err(|errno| {
            TapError::Failed {
                what: "set the length of its headers",
                source: errno.into(),
            }
        })?;
        tap.set_offloads(true);
        tap.configure(existed, mtu)?;
        Ok(tap)
    }

    /// Has the kernel give super-frames and leave checksums to the card, as far as it can, or not.
    fn set_offloads(&self, on: bool) {
        let offloads: &[c_int] = if on { &[WITH_USO, OFFLOADS, 0] } else { &[0] };
        // One that can do none of it gives whole frames.
        offloads
            .iter()
            .find(|&&offloads| ioctl::set_offloads(&self.device, offloads).is_ok());
    }

    /// Reads the next frame. `None` if none waits.
    fn read(&mut self, pool: &mut Pool) -> Option<Frame> {
        while !self.gone {
            let mut header = NetHeader::default();
            let mut frame = pool.take();
            let usual = frame.buffer_mut();
            let rest = &mut self.rest.buffer_mut()[usual.len()..];
            let outcome = readv(
                &self.device,
                &mut [
                    IoSliceMut::new(&mut header.as_mut_bytes()[..LEGACY_HEADER]),
                    IoSliceMut::new(usual),
                    IoSliceMut::new(rest),
                ],
            );
            match outcome {
                Ok(octets) if octets > LEGACY_HEADER => {
                    let len = octets - LEGACY_HEADER;
                    self.received += 1;
                    if let Some(frame) = self.finish(&header, len, frame, pool) {
                        return Some(frame);
                    }
                }
                outcome => {
                    pool.give(frame);
                    match outcome {
                        Err(Errno::EAGAIN | Errno::EINTR) => {}
                        Err(Errno::EBADFD) => self.lose(),
                        _ => self.read_errors += 1,
                    }
                    return None;
                }
            }
        }
        None
    }

    /// Makes what was read, `len` octets of it, a frame.
    #[inline]
    fn finish(
        &mut self,
        header: &NetHeader,
        len: usize,
        mut frame: Frame,
        pool: &mut Pool,
    ) -> Option<Frame> {
        if header.gso_type != 0 {
            return self.finish_super(header, len, frame, pool);
        }
        frame.set_len(len);
        frame.excess = (len - frame.len()) as u32;
        header.tell(&mut frame);
        Some(frame)
    }

    #[cold]
    fn finish_super(
        &mut self,
        header: &NetHeader,
        len: usize,
        mut frame: Frame,
        pool: &mut Pool,
    ) -> Option<Frame> {
        let Some(mut big) = pool.take_big_received() else {
            self.no_buffer += 1;
            pool.give(frame);
            return None;
        };
        frame.set_len(len);
        // Buffers change places, so that only the beginning has to be moved.
        std::mem::swap(&mut *big, &mut *self.rest);
        big.buffer_mut()[..frame.len()].copy_from_slice(frame.bytes());
        big.set_len(len);
        header.tell(&mut big);
        self.received_super += 1;
        pool.give(frame);
        Some(big)
    }

    fn configure(&self, existed: bool, mtu: u16) -> Result<(), TapError> {
        let failed = |what| {
            move |errno: Errno| TapError::Failed {
                what,
                source: errno.into(),
            }
        };
        let control = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map_err(failed("open a socket to configure it"))?;
        let flags = ioctl::flags(&control, &self.name).map_err(failed("read its state"))?;
        let its_mtu = ioctl::mtu(&control, &self.name).map_err(failed("read its MTU"))?;
        if existed && its_mtu != i32::from(mtu) {
            let name = &self.name;
            warn!(
                "TAP device {name} has MTU {its_mtu} and this NIC {mtu}: longer packets are lost"
            );
        }
        if !existed {
            ioctl::set_mtu(&control, &self.name, mtu).map_err(failed("set its MTU"))?;
            ioctl::set_flags(&control, &self.name, flags | libc::IFF_UP as c_short)
                .map_err(failed("bring it up"))?;
        } else if flags & libc::IFF_UP as c_short == 0 {
            let name = &self.name;
            warn!("TAP device {name} is down; bring it up with ip link set {name} up");
        }
        Ok(())
    }

    /// Somebody has removed the interface.
    fn lose(&mut self) {
        if !self.gone {
            let name = &self.name;
            error!(
                "TAP device {name} was removed: nothing comes or goes any more; restart the NIC"
            );
            self.gone = true;
        }
    }

    /// Discards what waits in the interface's queue: it was sent to a link that there was not.
    fn discard_stale(&mut self) {
        for _ in 0..STALE_AT_ONCE {
            // A frame that does not fit is cut off.
            if read(&self.device, &mut [0; 16]).is_err() {
                break;
            }
            self.stale += 1;
        }
    }
}

impl Wire for Tap {
    fn receive(&mut self, now: Nanos, room: usize, pool: &mut Pool, frames: &mut Vec<Frame>) {
        // The port says how many usual frames surely fit. As long as a super-frame does, the next one may be one.
        let octets = room * pool.buffer_size();
        let mut taken = 0;
        for turn in 0..room {
            if turn > 0 && (taken + LONGEST > octets || pool.big_room_received() == 0) {
                break;
            }
            let Some(mut frame) = self.read(pool) else {
                break;
            };
            frame.arrival = now;
            taken += frame.len();
            frames.push(frame);
        }
    }

    fn transmit(&mut self, _: Nanos, pool: &mut Pool, frames: &mut Vec<Frame>) {
        for frame in frames.drain(..) {
            let mut header = NetHeader::default();
            if frame.is_super() {
                header.set_offloads(&frame);
            }
            let header = IoSlice::new(&header.as_bytes()[..LEGACY_HEADER]);
            match writev(&self.device, &[header, IoSlice::new(frame.bytes())]) {
                Ok(_) => {
                    self.sent += 1;
                    self.sent_super += u64::from(frame.is_super());
                }
                Err(Errno::EIO) => self.refused_down += 1,
                Err(Errno::EAGAIN | Errno::ENOBUFS) => self.refused_full += 1,
                Err(_) => self.refused += 1,
            }
            pool.give(frame);
        }
    }

    fn has_super_frames(&self) -> bool {
        true
    }

    fn waits(&self) -> bool {
        true
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.device.as_fd())
    }

    fn is_gone(&self) -> bool {
        self.gone
    }

    fn link_changed(&mut self, _: Nanos, up: bool) {
        if up {
            self.discard_stale();
        }
        // Kernels before 5.0 cannot; the interface then shows a carrier that there is not.
        let _ = ioctl::set_carrier(&self.device, up);
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("tap_received", self.received),
            ("tap_sent", self.sent),
            ("tap_received_super", self.received_super),
            ("tap_sent_super", self.sent_super),
            ("tap_no_buffer", self.no_buffer),
            ("tap_refused_down", self.refused_down),
            ("tap_refused_full", self.refused_full),
            ("tap_refused", self.refused),
            ("tap_read_errors", self.read_errors),
            ("tap_stale", self.stale),
        ]
    }
}

/// The system calls that have no safe wrapper (Linux: Documentation/networking/tuntap.rst, netdevice(7)).
mod ioctl {
    use super::{AsRawFd, File, c_int, c_short};

    nix::ioctl_write_ptr_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_int_bad!(tunsetoffload, libc::TUNSETOFFLOAD);
    nix::ioctl_write_ptr_bad!(tunsetvnethdrsz, libc::TUNSETVNETHDRSZ, c_int);
    nix::ioctl_write_ptr_bad!(tunsetcarrier, libc::TUNSETCARRIER, c_int);
    nix::ioctl_read_bad!(siocgifflags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_read_bad!(siocgifmtu, libc::SIOCGIFMTU, libc::ifreq);
    nix::ioctl_write_ptr_bad!(siocsifflags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(siocsifmtu, libc::SIOCSIFMTU, libc::ifreq);

    /// A request about the interface `name`, which is shorter than the field.
    fn request(name: &str) -> libc::ifreq {
        // SAFETY: all zeros are a valid `ifreq`: characters, integers and a null pointer.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let room = libc::IFNAMSIZ - 1;
        for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
            *to = from as _;
        }
        request
    }

    pub fn attach(device: &File, name: &str) -> nix::Result<()> {
        let mut request = request(name);
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_VNET_HDR | libc::IFF_NO_PI) as c_short;
        // SAFETY: TUNSETIFF reads one `ifreq`, and `request` is one.
        unsafe { tunsetiff(device.as_raw_fd(), &request) }.map(drop)
    }

    pub fn set_offloads(device: &File, offloads: c_int) -> nix::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
        unsafe { tunsetoffload(device.as_raw_fd(), offloads) }.map(drop)
    }

    pub fn set_header_len(device: &File, len: c_int) -> nix::Result<()> {
        // SAFETY: TUNSETVNETHDRSZ reads one `int`, and `len` is one.
        unsafe { tunsetvnethdrsz(device.as_raw_fd(), &len) }.map(drop)
    }

    pub fn set_carrier(device: &File, up: bool) -> nix::Result<()> {
        let carrier = c_int::from(up);
        // SAFETY: TUNSETCARRIER reads one `int`, and `carrier` is one.
        unsafe { tunsetcarrier(device.as_raw_fd(), &carrier) }.map(drop)
    }

    pub fn flags(control: &impl AsRawFd, name: &str) -> nix::Result<c_short> {
        let mut request = request(name);
        // SAFETY: SIOCGIFFLAGS reads the name of one `ifreq` and writes its flags.
        unsafe { siocgifflags(control.as_raw_fd(), &mut request) }?;
        // SAFETY: SIOCGIFFLAGS succeeded, so that it is the flags that the union holds.
        Ok(unsafe { request.ifr_ifru.ifru_flags })
    }

    pub fn mtu(control: &impl AsRawFd, name: &str) -> nix::Result<c_int> {
        let mut request = request(name);
        // SAFETY: SIOCGIFMTU reads the name of one `ifreq` and writes its MTU.
        unsafe { siocgifmtu(control.as_raw_fd(), &mut request) }?;
        // SAFETY: SIOCGIFMTU succeeded, so that it is the MTU that the union holds.
        Ok(unsafe { request.ifr_ifru.ifru_mtu })
    }

    pub fn set_flags(control: &impl AsRawFd, name: &str, flags: c_short) -> nix::Result<()> {
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = flags;
        // SAFETY: SIOCSIFFLAGS reads one `ifreq`, and `request` is one.
        unsafe { siocsifflags(control.as_raw_fd(), &request) }.map(drop)
    }

    pub fn set_mtu(control: &impl AsRawFd, name: &str, mtu: u16) -> nix::Result<()> {
        let mut request = request(name);
        request.ifr_ifru.ifru_mtu = mtu.into();
        // SAFETY: SIOCSIFMTU reads one `ifreq`, and `request` is one.
        unsafe { siocsifmtu(control.as_raw_fd(), &request) }.map(drop)
    }
}

#[cfg(test)]
mod flow_control_tests;
#[cfg(test)]
mod super_frame_tests;
#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{frame, pool};
    use nix::sys::socket::setsockopt;
    use nix::sys::socket::sockopt::{BindToDevice, Broadcast};
    use std::fs;
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    /// A name that no other test or process has.
    pub(super) fn unique(tag: &str) -> String {
        format!("nic{tag}{}", std::process::id() % 10_000_000)
    }

    /// A TAP device, where this process may have one.
    pub(super) fn open(name: &str, mtu: u16) -> Option<Tap> {
        match Tap::open(name, mtu) {
            Err(reason @ (TapError::NoDriver | TapError::NoAccess | TapError::NotPermitted)) => {
                eprintln!("not tested: {reason}");
                None
            }
            opened => Some(opened.unwrap()),
        }
    }

    pub(super) fn statistic(name: &str, what: &str) -> u64 {
        let path = format!("/sys/class/net/{name}/{what}");
        let text = fs::read_to_string(&path).unwrap();
        text.trim().parse().unwrap()
    }

    fn count(tap: &Tap, counter: &str) -> u64 {
        let all = tap.counters();
        all.iter().find(|(name, _)| *name == counter).unwrap().1
    }

    #[test]
    fn names_are_those_of_interfaces() {
        assert!(is_name("tap0") && is_name("abcdefghijklmno"));
        for name in [
            "",
            "abcdefghijklmnop",
            "a b",
            "a/b",
            "tap%d",
            "a:b",
            "..",
            "ö",
        ] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn frames_pass_both_ways() {
        let name = unique("a");
        let Some(mut tap) = open(&name, 1400) else {
            return;
        };
        let mut pool = pool(1400);
        tap.link_changed(Nanos(0), true);
        assert_eq!(statistic(&name, "mtu"), 1400);
        assert_eq!(statistic(&name, "carrier"), 1);

        let before = statistic(&name, "statistics/rx_packets");
        let mut frames = (0..3).map(|_| frame(&mut pool, 0, &[0xff; 60])).collect();
        tap.transmit(Nanos(1), &mut pool, &mut frames);
        assert_eq!(statistic(&name, "statistics/rx_packets"), before + 3);
        assert_eq!(count(&tap, "tap_sent"), 3);

        // A datagram to everyone on the interface needs no address on it.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        setsockopt(&socket, BindToDevice, &name.clone().into()).unwrap();
        setsockopt(&socket, Broadcast, &true).unwrap();
        socket
            .send_to(b"over the TAP", "255.255.255.255:9")
            .unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        // The kernel may have sent something of its own before.
        let ours = |f: &Frame| f.bytes().ends_with(b"over the TAP");
        while !frames.iter().any(ours) && Instant::now() < end {
            tap.receive(Nanos(7), 64, &mut pool, &mut frames);
        }
        let came = frames.iter().find(|f| ours(f)).expect("the datagram");
        assert_eq!(came.arrival, Nanos(7));
        assert_eq!(came.len(), 14 + 20 + 8 + 12);
        let waiting = frames.len();
        pool.give_all(frames.drain(..));
        assert_eq!(
            (pool.lent(), count(&tap, "tap_received")),
            (0, waiting as u64)
        );

        tap.link_changed(Nanos(8), false);
        assert_eq!(statistic(&name, "carrier"), 0);
        drop(tap);
        // Another test's child has our descriptors until it starts its own program.
        let start = Instant::now();
        while if_nametoindex(name.as_str()).is_ok() {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "it goes with its owner"
            );
        }
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let name = unique("b");
        let Some(tap) = open(&name, 1500) else {
            return;
        };
        assert!(matches!(Tap::open(&name, 1500), Err(TapError::Busy)));
        drop(tap);
        assert!(matches!(Tap::open("lo", 1500), Err(TapError::NotTap)));
    }

    #[test]
    fn what_waited_without_a_link_is_discarded_and_what_is_refused_counted() {
        let name = unique("c");
        let Some(mut tap) = open(&name, 1500) else {
            return;
        };
        let mut pool = pool(1500);
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        setsockopt(&socket, BindToDevice, &name.clone().into()).unwrap();
        setsockopt(&socket, Broadcast, &true).unwrap();
        socket.send_to(b"too early", "255.255.255.255:9").unwrap();
        tap.link_changed(Nanos(0), true);
        assert!(count(&tap, "tap_stale") >= 1);

        let control = UdpSocket::bind("0.0.0.0:0").unwrap();
        ioctl::set_flags(&control, &name, 0).unwrap();
        // The second is no frame.
        let mut frames = vec![
            frame(&mut pool, 0, &[0xff; 60]),
            frame(&mut pool, 0, &[1; 3]),
        ];
        tap.transmit(Nanos(1), &mut pool, &mut frames);
        assert_eq!(count(&tap, "tap_refused_down"), 1);
        assert_eq!(count(&tap, "tap_refused"), 1);
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn an_interface_that_is_removed_is_noticed() {
        let name = unique("r");
        let Some(mut tap) = open(&name, 1500) else {
            return;
        };
        let mut pool = pool(1500);
        let mut frames = Vec::new();
        tap.receive(Nanos::ZERO, 1, &mut pool, &mut frames);
        pool.give_all(frames.drain(..));
        assert!(!tap.is_gone());
        let removed = std::process::Command::new("ip")
            .args(["link", "delete", &name])
            .status()
            .unwrap();
        assert!(removed.success());
        tap.receive(Nanos::ZERO, 1, &mut pool, &mut frames);
        assert!(tap.is_gone() && frames.is_empty());
        assert_eq!(pool.lent(), 0);
    }
}
