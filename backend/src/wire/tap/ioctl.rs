//! The system calls that have no safe wrapper (Linux: Documentation/networking/tuntap.rst, netdevice(7)).

use std::ffi::{c_int, c_short};
use std::fs::File;
use std::os::fd::AsRawFd;

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

/// Attaches `device` to a queue of the TAP device `name`, which is one for several queues if it is `multi`.
pub fn attach(device: &File, name: &str, multi: bool) -> nix::Result<()> {
    let mut request = request(name);
    let multi = if multi { libc::IFF_MULTI_QUEUE } else { 0 };
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_VNET_HDR | libc::IFF_NO_PI | multi) as c_short;
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
