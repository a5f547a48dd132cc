//! A guest in Rust, to test any vhost-user-net backend with.
//!
//! It has guest memory in memfds, front-ends that speak vhost-user as QEMU, cloud-hypervisor,
//! crosvm, DPDK and User-mode Linux do, and a virtio-net driver with rings of its own. It depends
//! on no crate of this repository's NIC and shares no ring code with it, nor does it use
//! `virtio-queue`: a bug would have to be made twice to go unseen. Names are Linux's.
//!
//! ```text
//! net (Kernel: interrupts, NAPI, IPv4, UDP, TCP and ping sockets)
//!     |
//! virtio_net (VirtnetInfo: probe, start_xmit, poll, commands)
//!     | rings and buffers            | features, config space, kicks, interrupts
//!   ring (Virtqueue, RawRing)      transport (VhostUser, FrontEnd, or one of your own)
//!   dma (DmaSlice, DmaDebug)         | regions, eventfds
//!     |                              |
//!   memory (GuestMemory, GuestSlice)
//! ```
//!
//! # As a dev-dependency
//!
//! ```no_run
//! use std::path::Path;
//! use std::time::Duration;
//!
//! use nic_guest::memory::GuestMemory;
//! use nic_guest::transport::vhost_user::VhostUser;
//! use nic_guest::virtio_net::header::VirtioNetHdr;
//! use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = GuestMemory::new(64 << 20)?;
//! let transport = VhostUser::connect(Path::new("/tmp/nic.sock"), memory)?;
//! let mut nic = VirtnetInfo::probe(transport, &ProbeOptions::default())?;
//!
//! let mut frame = vec![0; 60];
//! frame[..6].fill(0xff);
//! frame[6..12].copy_from_slice(&nic.mac());
//! nic.start_xmit(0, &frame, &VirtioNetHdr::default())?;
//! nic.flush(0); // one kick for all that was sent
//!
//! nic.wait(Duration::from_secs(1));
//! nic.poll(0, 64, |frame| println!("{} bytes, {:?}", frame.len(), frame.hdr))?;
//! nic.remove()?; // resets the device
//! # Ok(())
//! # }
//! ```
//!
//! The same as another VMM would do it, and again after the backend was killed and restarted:
//!
//! ```no_run
//! # use std::path::Path;
//! # use nic_guest::memory::GuestMemory;
//! # use nic_guest::transport::front_end::{FrontEnd, FrontEndOptions};
//! # use nic_guest::transport::persona::Persona;
//! # use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A hole below 4 GiB, as on a PC.
//! let memory = GuestMemory::builder().region(0, 32 << 20).region(1 << 32, 32 << 20).build()?;
//! let path = Path::new("/tmp/nic.sock");
//! let qemu = FrontEnd::connect(Persona::Qemu, path, memory, FrontEndOptions::default())?;
//! let mut nic = VirtnetInfo::probe(qemu, &ProbeOptions::default())?;
//! // ... the backend dies and comes back ...
//! nic.transport.reattach()?;
//! # Ok(())
//! # }
//! ```
//!
//! A whole host on top of it, with interrupts, NAPI, UDP and TCP sockets ([`net`]):
//!
//! ```no_run
//! # use std::path::Path;
//! # use std::time::{Duration, Instant};
//! # use nic_guest::memory::GuestMemory;
//! # use nic_guest::net::{Kernel, KernelConfig, Machine, Protocol, SockType};
//! # use nic_guest::transport::Transport;
//! # use nic_guest::transport::vhost_user::VhostUser;
//! # use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};
//! struct ThisComputer(Instant);
//!
//! impl Machine for ThisComputer {
//!     fn now(&self) -> u64 {
//!         self.0.elapsed().as_nanos() as u64
//!     }
//!     fn spend(&self, _ns: u64) {}
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let transport = VhostUser::connect(Path::new("/tmp/nic.sock"), GuestMemory::new(64 << 20)?)?;
//! let nic = VirtnetInfo::probe(transport, &ProbeOptions::default())?;
//! let machine = ThisComputer(Instant::now());
//! let mut kernel = Kernel::new(nic, machine, KernelConfig::default()); // 10.77.0.2/24
//! let fd = kernel.socket(SockType::Dgram, Protocol::Udp)?;
//! kernel.sendto(fd, b"hello", Some("10.77.0.1:7".parse()?))?; // asks for the neighbour first
//! let mut buf = [0; 1500];
//! loop {
//!     while kernel.step()? {}
//!     if let Ok(received) = kernel.recvfrom(fd, &mut buf) {
//!         println!("{:?} from {}", &buf[..received.len], received.from);
//!         break;
//!     }
//!     kernel.dev.transport.wait(Duration::from_millis(100));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Steering
//!
//! With RSS the driver tells the device how to hash; [`virtio_net::rss::RssConfig::steer`] says what a
//! device is to make of a frame then, by a Toeplitz of its own:
//!
//! ```
//! use nic_guest::virtio_net::rss::RssConfig;
//! use nic_guest::virtio_net::toeplitz::VERIFICATION_KEY;
//!
//! let rss = RssConfig {
//!     hash_types: 0x3f,
//!     indirection_table: vec![0, 1, 2, 3],
//!     key: VERIFICATION_KEY.to_vec(),
//!     ..RssConfig::default()
//! };
//! let mut frame = [0; 60];
//! frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]); // IPv4
//! frame[17] = 46;
//! frame[26..34].copy_from_slice(&[66, 9, 149, 187, 161, 142, 100, 80]);
//! let steered = rss.steer(&frame);
//! assert_eq!((steered.hash_value, steered.pair), (0x323e_8fc2, 2));
//! ```
//!
//! # Ring layouts, and frames that stand for several
//!
//! The driver takes what a device offers of INDIRECT_DESC, EVENT_IDX, MRG_RXBUF and the segmentation offloads;
//! packed rings and IN_ORDER only where it is told to, as QEMU's command line has it:
//!
//! ```
//! use nic_guest::virtio_net::{ProbeOptions, features};
//!
//! let options = ProbeOptions {
//!     queue_size: 200, // of a packed ring it need be no power of two
//!     ..ProbeOptions::default()
//! };
//! let packed = options
//!     .with(features::RING_PACKED | features::IN_ORDER)
//!     .without(features::INDIRECT_DESC);
//! # assert_eq!(packed.features & features::INDIRECT_DESC, 0);
//! ```
//!
//! [`virtio_net::gso`] has what is known of segments: [`virtio_net::gso::super_frame`] makes a TCP or UDP frame one
//! that the device cuts up, [`virtio_net::rx::RxFrame::shared_info`] says what a received one stands for. The
//! kernel's UDP sockets send and receive such ([`net::Kernel::sendto_segments`], [`net::Kernel::set_udp_gro`]).
//!
//! # Being hostile
//!
//! [`ring::raw::RawRing`] and [`ring::raw_packed::RawPackedRing`] write any descriptor, index or used element;
//! [`transport::message::Connection`] sends any bytes with any descriptors, also one byte at a
//! time; [`virtio_net::ProbeOptions::exact`] takes features that nobody offered. The driver in turn
//! survives devices that lie: a ring whose used elements make no sense is given up
//! ([`ring::RingFault`]), a frame whose header or length does is dropped and counted.
//!
//! # Limits
//!
//! No IOMMU, no notification data; a packed ring does not survive its backend. Nothing runs in the background: a
//! config change is noticed when it is asked for.

#![deny(unsafe_code)]

mod allocator;
pub mod dma;
#[allow(unsafe_code)]
pub mod memory;
#[cfg(test)]
mod memory_tests;
pub mod net;
pub mod ring;
pub mod transport;
pub mod virtio_net;
