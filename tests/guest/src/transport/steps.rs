//! The single steps that the sequences of [`super::front_end`] are made of.
//!
//! What enters: which ring, which messages. What leaves: those messages, with the persona's
//! addresses and bases. In which order they are sent is in `order.rs`.

use std::os::fd::AsRawFd;

use vhost::vhost_user::message::{FrontendReq as Req, VhostUserProtocolFeatures as Protocol};

use super::TransportError;
use super::front_end::FrontEnd;
use super::message;
use super::persona::Persona;
use crate::ring::{OffWrap, RingMemory};
use crate::virtio_net::features::{MTU, PROTOCOL_FEATURES, RING_PACKED};

type Result<T = ()> = std::result::Result<T, TransportError>;

impl FrontEnd {
    pub(super) fn data_queues(&self) -> u16 {
        2 * self.options.nic.pairs
    }

    /// Queues that the guest set up and the backend is told of.
    pub(super) fn rings(&self) -> Vec<u16> {
        let count = if self.owns_config() {
            usize::from(self.data_queues())
        } else {
            self.vrings.len()
        };
        let vrings = self.vrings.iter().take(count).enumerate();
        vrings
            .filter(|(_, vring)| vring.queue.is_some())
            .map(|(index, _)| index as u16)
            .collect()
    }

    /// Sends messages about one ring: n(um), b(ase), a(ddr), c(all), ! (err), k(ick), e(nable).
    pub(super) fn ring(&mut self, index: u16, messages: &str, again: bool) -> Result {
        let Some(queue) = self.vrings[usize::from(index)].queue else {
            return Ok(());
        };
        for letter in messages.chars() {
            match letter {
                'n' => {
                    let body = message::vring_state(index.into(), queue.size.into());
                    self.tell(Req::SET_VRING_NUM, &body, &[])?;
                }
                'b' => {
                    let base = self.base(index, queue.next, again);
                    let body = message::vring_state(index.into(), base);
                    self.tell(Req::SET_VRING_BASE, &body, &[])?;
                }
                'a' => {
                    let log = if self.persona == Persona::Uml {
                        u64::MAX
                    } else {
                        0
                    };
                    let [desc, used, avail] =
                        [queue.layout.desc, queue.layout.used, queue.layout.avail]
                            .map(|addr| self.user_addr(addr));
                    let body = message::vring_addr(index.into(), 0, desc?, used?, avail?, log);
                    self.tell(Req::SET_VRING_ADDR, &body, &[])?;
                }
                'c' => self.tell_fd(Req::SET_VRING_CALL, index)?,
                '!' => self.tell_fd(Req::SET_VRING_ERR, index)?,
                'k' => self.tell_fd(Req::SET_VRING_KICK, index)?,
                _ => self.enable(index, true)?,
            }
        }
        Ok(())
    }

    /// Where the backend is told to go on.
    pub(super) fn base(&self, index: u16, next: u32, again: bool) -> u32 {
        if self.is_packed() {
            return match self.persona {
                // It counts on the other half being taken to be the same.
                Persona::VirtioUser => OffWrap::START.0.into(),
                // It knows of split rings only, though its guest does not.
                Persona::Uml => 0,
                _ => next,
            };
        }
        let (avail, used) = self.indices(index).unwrap_or_default();
        match self.persona {
            // Buffers posted while the backend was away are skipped if it believes this.
            Persona::CloudHypervisor => avail.into(),
            Persona::VirtioUser => 0,
            _ if again => used.into(),
            _ => next,
        }
    }

    /// Whether the guest chose packed rings, whose indices no front-end finds in memory.
    pub(super) fn is_packed(&self) -> bool {
        self.chosen & RING_PACKED != 0
    }

    /// Available and used index of a split ring as they stand in memory.
    pub(super) fn indices(&self, index: u16) -> Option<(u16, u16)> {
        let queue = self.vrings.get(usize::from(index))?.queue?;
        let ring = RingMemory::at(&self.memory, queue.size, queue.layout).ok()?;
        Some((
            ring.avail.load_acquire_u16(2),
            ring.used.load_acquire_u16(2),
        ))
    }

    pub(super) fn get_base(&mut self, index: u16) -> Result<u32> {
        let reply = self.ask(Req::GET_VRING_BASE, &message::vring_state(index.into(), 0))?;
        let bits = if self.is_packed() { 32 } else { 16 };
        match <[u8; 8]>::try_from(reply.payload.as_slice()).map(u64::from_ne_bytes) {
            Ok(state) if state as u32 == u32::from(index) && state >> 32 >> bits == 0 => {
                Ok((state >> 32) as u32)
            }
            _ => Err(TransportError::refused(
                "GET_VRING_BASE",
                format!("{:x?}", reply.payload),
            )),
        }
    }

    pub(super) fn enable(&mut self, index: u16, enable: bool) -> Result {
        if self.offered & PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        let body = message::vring_state(index.into(), enable.into());
        self.tell(Req::SET_VRING_ENABLE, &body, &[])
    }

    /// Enables what is in use and disables the rest: of all its pairs for QEMU, of the rings that
    /// exist for others.
    pub(super) fn enable_as_is(&mut self) -> Result {
        let rings = match self.persona {
            Persona::Qemu => (0..self.data_queues()).collect(),
            _ => self.rings(),
        };
        for index in rings {
            let enabled = self.vrings[usize::from(index)].enabled;
            self.enable(index, enabled)?;
        }
        Ok(())
    }

    pub(super) fn send_memory(&mut self) -> Result {
        let regions = self.memory.regions();
        let bodies = regions.iter().map(|region| {
            Ok(message::memory_region(
                region,
                self.user_addr(region.guest_addr)?,
            ))
        });
        let bodies = bodies.collect::<Result<Vec<_>>>()?;
        if self.protocol.contains(Protocol::CONFIGURE_MEM_SLOTS) && self.persona == Persona::Qemu {
            for (region, body) in regions.iter().zip(&bodies) {
                self.tell(
                    Req::ADD_MEM_REG,
                    &message::single_region(body),
                    &[region.fd],
                )?;
            }
            return Ok(());
        }
        let fds: Vec<_> = regions.iter().map(|region| region.fd).collect();
        self.tell(Req::SET_MEM_TABLE, &message::memory_table(&bodies), &fds)
    }

    pub(super) fn send_mtu(&mut self) -> Result {
        match self.options.nic.mtu {
            Some(mtu) if self.chosen & MTU != 0 && self.protocol.contains(Protocol::MTU) => {
                self.tell(Req::NET_SET_MTU, &u64::from(mtu).to_ne_bytes(), &[])
            }
            _ => Ok(()),
        }
    }

    /// cloud-hypervisor has the backend make the in-flight area, and keeps it over a reconnect.
    pub(super) fn share_inflight(&mut self, rings: &[u16]) -> Result {
        if !self.protocol.contains(Protocol::INFLIGHT_SHMFD) {
            return Ok(());
        }
        if self.inflight.is_none() {
            let size = rings
                .first()
                .and_then(|&index| self.vrings[usize::from(index)].queue);
            let mut body = vec![0; 16];
            body.extend_from_slice(&(rings.len() as u16).to_ne_bytes());
            body.extend_from_slice(&size.map_or(0, |queue| queue.size).to_ne_bytes());
            // Both the C structure and the crate's are padded to 24 bytes.
            body.extend_from_slice(&[0; 4]);
            let reply = self.ask(Req::GET_INFLIGHT_FD, &body)?;
            let Some(file) = reply.file else {
                return Err(TransportError::refused("GET_INFLIGHT_FD", "no descriptor"));
            };
            self.inflight = Some((reply.payload, file));
        }
        if let Some((body, file)) = self.inflight.take() {
            let fd = file.as_raw_fd();
            self.tell(Req::SET_INFLIGHT_FD, &body, &[fd])?;
            self.inflight = Some((body, file));
        }
        Ok(())
    }
}
