//! Attaching to a TAP device, or making it.

use std::ffi::{c_int, c_short};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use log::warn;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::link::Link;
use super::{ioctl, vnet};

const CLONE_DEVICE: &str = "/dev/net/tun";

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
        "not permitted: run with CAP_NET_ADMIN, or make the interface first with ip tuntap add dev NAME mode tap user YOU, for several queues with multi_queue behind it"
    )]
    NotPermitted,
    /// Someone else has it.
    #[error("another process is attached to it: stop that one, or take another name")]
    Busy,
    /// Some other interface has the name.
    #[error(
        "an interface of this name exists, but is no TAP device: take another name, or make it with ip tuntap add dev NAME mode tap"
    )]
    NotTap,
    /// It was made for one queue, and several are asked for.
    #[error(
        "it was made for a single queue: leave out queues=, or make it anew with ip tuntap del dev NAME mode tap and ip tuntap add dev NAME mode tap multi_queue"
    )]
    SingleQueue,
    /// Some step failed.
    #[error("cannot {what}: {source}")]
    Failed {
        /// Which step.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl TapError {
    fn failed(what: &'static str) -> impl Fn(Errno) -> TapError {
        move |errno| TapError::Failed {
            what,
            source: errno.into(),
        }
    }
}

/// Attaches to `queues` queues of the TAP device `name`, with all offloads. If there is none it is made, for packets of up to `mtu`
/// octets.
///
/// # Errors
/// See [`TapError`].
pub fn attach(name: &str, mtu: u16, queues: u16) -> Result<Vec<File>, TapError> {
    let link = Link::of(name).map_err(TapError::failed("ask what it is"))?;
    // One that was made for several has to be asked for as such, even for one of them.
    let multi = match link {
        Link::Absent => queues > 1,
        Link::Other => return Err(TapError::NotTap),
        Link::Single if queues > 1 => return Err(TapError::SingleQueue),
        Link::Single => false,
        Link::Multi { attached: 0 } => true,
        Link::Multi { .. } => return Err(TapError::Busy),
    };
    let devices: Vec<File> = (0..queues)
        .map(|_| attach_one(name, multi))
        .collect::<Result<_, _>>()?;
    // These are the device's, not a queue's.
    let device = &devices[0];
    ioctl::set_header_len(device, vnet::HEADER as c_int)
        .map_err(TapError::failed("set the length of its headers"))?;
    set_offloads(device, true);
    configure(name, link != Link::Absent, mtu)?;
    Ok(devices)
}

/// Attaches to one queue.
fn attach_one(name: &str, multi: bool) -> Result<File, TapError> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(CLONE_DEVICE)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => TapError::NoAccess,
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDriver,
            _ => TapError::Failed {
                what: "open /dev/net/tun",
                source: error,
            },
        })?;
    ioctl::attach(&device, name, multi).map_err(|errno| match errno {
        Errno::EPERM | Errno::EACCES => TapError::NotPermitted,
        Errno::EBUSY => TapError::Busy,
        errno => TapError::failed("attach to it")(errno),
    })?;
    Ok(device)
}

/// Has the kernel give super-frames and leave checksums to the card, as far as it can, or not.
pub fn set_offloads(device: &File, on: bool) {
    let offloads: &[c_int] = if on { &[WITH_USO, OFFLOADS, 0] } else { &[0] };
    // One that can do none of it gives whole frames.
    offloads
        .iter()
        .find(|&&offloads| ioctl::set_offloads(device, offloads).is_ok());
}

fn configure(name: &str, existed: bool, mtu: u16) -> Result<(), TapError> {
    let control = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(TapError::failed("open a socket to configure it"))?;
    let flags = ioctl::flags(&control, name).map_err(TapError::failed("read its state"))?;
    let its_mtu = ioctl::mtu(&control, name).map_err(TapError::failed("read its MTU"))?;
    if existed && its_mtu != i32::from(mtu) {
        warn!("TAP device {name} has MTU {its_mtu} and this NIC {mtu}: longer packets are lost");
    }
    if !existed {
        ioctl::set_mtu(&control, name, mtu).map_err(TapError::failed("set its MTU"))?;
        ioctl::set_flags(&control, name, flags | libc::IFF_UP as c_short)
            .map_err(TapError::failed("bring it up"))?;
    } else if flags & libc::IFF_UP as c_short == 0 {
        warn!("TAP device {name} is down; bring it up with ip link set {name} up");
    }
    Ok(())
}
