//! The message sequences of each [`Persona`]: greeting, features, start, stop.
//!
//! Read from the front-ends' sources and from traces of them (QEMU 11.1.3, cloud-hypervisor 53,
//! crosvm, DPDK 25.11, Linux 6.12 `arch/um/drivers/virtio_uml.c`). What differs in kind rather than
//! in order (features, NEED_REPLY, addresses) is in [`super::persona`].

use vhost::vhost_user::message::{FrontendReq as Req, VhostUserProtocolFeatures as Protocol};

use super::TransportError;
use super::backend_req::BackendChannel;
use super::front_end::FrontEnd;
use super::persona::Persona;
use crate::virtio_net::features::PROTOCOL_FEATURES;

type Result<T = ()> = std::result::Result<T, TransportError>;

/// Status bits of virtio 1.3, 2.1: ACKNOWLEDGE, DRIVER and FEATURES_OK; then DRIVER_OK too.
const FEATURES_OK: u64 = 0b1011;
const DRIVER_OK: u64 = 0b1111;

impl FrontEnd {
    /// What is said before the guest runs; `again` when the backend came back.
    pub(super) fn greet(&mut self, again: bool) -> Result {
        match self.persona {
            Persona::Plain => {
                self.tell(Req::SET_OWNER, &[], &[])?;
                self.negotiate()?;
                self.ask_queue_num()?;
                self.pass_channel()
            }
            Persona::Qemu => self.greet_qemu(again),
            Persona::CloudHypervisor => {
                self.tell(Req::SET_OWNER, &[], &[])?;
                if again {
                    self.offered = self.ask_u64(Req::GET_FEATURES)?;
                    // Without asking what is offered: what was agreed on before.
                    return self.set_protocol_features(self.agreed);
                }
                self.negotiate()?;
                self.ask_queue_num()?;
                self.demand_queues(self.options.nic.pairs * 2)
            }
            Persona::Crosvm => {
                self.tell(Req::SET_OWNER, &[], &[])?;
                self.negotiate()?;
                self.pass_channel()?;
                self.ask_queue_num()
            }
            Persona::VirtioUser => {
                self.tell(Req::SET_OWNER, &[], &[])?;
                self.negotiate()
            }
            Persona::Uml => {
                self.tell(Req::SET_OWNER, &[], &[])?;
                self.negotiate()?;
                self.pass_channel()?;
                self.ask_queue_num()
            }
        }
    }

    /// QEMU negotiates once for each pair, and enables rings before any SET_FEATURES.
    fn greet_qemu(&mut self, again: bool) -> Result {
        for pair in 0..self.options.nic.pairs {
            self.negotiate()?;
            if pair == 0 {
                self.ask_queue_num()?;
                self.demand_queues(self.options.nic.pairs)?;
            }
            if self.protocol.contains(Protocol::CONFIGURE_MEM_SLOTS) {
                let slots = self.ask_u64(Req::GET_MAX_MEM_SLOTS)?;
                if (self.memory.regions().len() as u64) > slots {
                    return Err(TransportError::refused("GET_MAX_MEM_SLOTS", slots));
                }
            }
            if pair == 0 {
                self.pass_channel()?;
                self.tell(Req::SET_OWNER, &[], &[])?;
            }
            self.offered = self.ask_u64(Req::GET_FEATURES)?;
            for index in [2 * pair, 2 * pair + 1] {
                self.tell_fd(Req::SET_VRING_CALL, index)?;
                self.tell_fd(Req::SET_VRING_ERR, index)?;
            }
        }
        let rounds = if again { 1 } else { 2 };
        for _ in 0..rounds {
            if !again {
                self.reset_device()?;
            }
            self.enable_as_is()?;
        }
        Ok(())
    }

    fn negotiate(&mut self) -> Result {
        self.offered = self.ask_u64(Req::GET_FEATURES)?;
        if self.offered & PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        let offered = self.ask_u64(Req::GET_PROTOCOL_FEATURES)?;
        let wanted = self.persona.protocol_features();
        self.set_protocol_features(wanted & Protocol::from_bits_truncate(offered))
    }

    fn set_protocol_features(&mut self, features: Protocol) -> Result {
        // User-mode Linux wants an acknowledgement of this very message already.
        if self.persona == Persona::Uml {
            self.protocol = features;
        }
        self.tell(
            Req::SET_PROTOCOL_FEATURES,
            &features.bits().to_ne_bytes(),
            &[],
        )?;
        self.protocol = features;
        self.agreed = features;
        Ok(())
    }

    fn ask_queue_num(&mut self) -> Result {
        if self.protocol.contains(Protocol::MQ) {
            let count = self.ask_u64(Req::GET_QUEUE_NUM)?;
            self.max_queues = Some(u16::try_from(count).unwrap_or(u16::MAX));
        }
        Ok(())
    }

    /// QEMU compares pairs with the answer, cloud-hypervisor virtqueues.
    fn demand_queues(&self, wanted: u16) -> Result {
        match self.max_queues {
            Some(count) if count < wanted => {
                let why = format!("{count} where this VMM needs {wanted}");
                Err(TransportError::refused("GET_QUEUE_NUM", why))
            }
            _ => Ok(()),
        }
    }

    fn pass_channel(&mut self) -> Result {
        if !self.protocol.contains(Protocol::BACKEND_REQ) {
            return Ok(());
        }
        let channel = BackendChannel::new()?;
        self.waiter.watch(channel.fd_to_watch())?;
        self.tell(Req::SET_BACKEND_REQ_FD, &[], &[channel.fd_to_send()])?;
        self.channel = Some(channel);
        Ok(())
    }

    fn reset_device(&mut self) -> Result {
        if self.protocol.contains(Protocol::RESET_DEVICE) {
            self.tell(Req::RESET_DEVICE, &[], &[])?;
        }
        Ok(())
    }

    fn set_status(&mut self, status: u64) -> Result {
        if self.protocol.contains(Protocol::STATUS) {
            self.tell(Req::SET_STATUS, &status.to_ne_bytes(), &[])?;
        }
        Ok(())
    }

    /// What is said when the guest's driver chose its features.
    pub(super) fn choose_features(&mut self) -> Result {
        match self.persona {
            Persona::Qemu | Persona::CloudHypervisor => Ok(()),
            Persona::Plain => {
                self.set_features(self.chosen)?;
                self.set_status(FEATURES_OK)?;
                self.send_memory()
            }
            Persona::Uml => self.set_features(self.chosen),
            Persona::Crosvm => {
                // The guest writes 32 bits at a time, and each write is passed on.
                self.set_features(self.chosen & 0xffff_ffff)?;
                self.set_features(self.chosen)
            }
            Persona::VirtioUser => {
                for index in 0..self.data_queues() {
                    self.tell_fd(Req::SET_VRING_CALL, index)?;
                }
                self.set_features(self.chosen)?;
                self.set_status(FEATURES_OK)
            }
        }
    }

    fn set_features(&mut self, features: u64) -> Result {
        self.tell(Req::SET_FEATURES, &features.to_ne_bytes(), &[])
    }

    /// What is said at DRIVER_OK; `again` when the backend came back.
    pub(super) fn activate(&mut self, again: bool) -> Result {
        let rings = self.rings();
        match self.persona {
            Persona::Plain => {
                for &index in &rings {
                    self.ring(index, "nbac!k", again)?;
                }
                self.enable_as_is()?;
                self.set_status(DRIVER_OK)
            }
            Persona::Qemu => {
                for pair in 0..self.options.nic.pairs {
                    self.set_features(self.chosen)?;
                    if pair == 0 {
                        self.send_memory()?;
                        self.send_mtu()?;
                    }
                    for &index in rings.iter().filter(|&&index| index / 2 == pair) {
                        self.ring(index, "nbakc", again)?;
                    }
                }
                self.enable_as_is()?;
                self.set_status(DRIVER_OK)
            }
            Persona::CloudHypervisor => {
                self.set_features(self.chosen)?;
                self.send_memory()?;
                for &index in &rings {
                    self.ring(index, "n", again)?;
                }
                self.share_inflight(&rings)?;
                for &index in &rings {
                    self.ring(index, "abck", again)?;
                }
                rings
                    .iter()
                    .try_for_each(|&index| self.ring(index, "e", again))
            }
            Persona::Crosvm => {
                self.send_memory()?;
                rings
                    .iter()
                    .try_for_each(|&index| self.ring(index, "nabcke", again))
            }
            Persona::VirtioUser => {
                self.send_memory()?;
                for &index in &rings {
                    self.ring(index, "nbak", again)?;
                }
                for &index in &rings {
                    if self.vrings[usize::from(index)].enabled {
                        self.ring(index, "e", again)?;
                    }
                }
                self.set_status(DRIVER_OK)
            }
            Persona::Uml => {
                self.send_memory()?;
                for &index in &rings {
                    self.ring(index, "cnba", again)?;
                }
                rings
                    .iter()
                    .try_for_each(|&index| self.ring(index, "ke", again))
            }
        }
    }

    /// Sets one more queue up while others run.
    pub(super) fn start_one(&mut self, index: u16) -> Result {
        if self.rings().contains(&index) {
            self.ring(index, "nbac!ke", false)?;
        }
        Ok(())
    }

    /// What is said to stop one queue; the next available index.
    pub(super) fn stop_one(&mut self, index: u16) -> Result<u32> {
        match self.persona {
            Persona::Plain | Persona::Qemu => self.get_base(index),
            Persona::Crosvm | Persona::VirtioUser => {
                self.enable(index, false)?;
                self.get_base(index)
            }
            Persona::CloudHypervisor | Persona::Uml => {
                if self.is_packed() {
                    return Err(TransportError::Unsupported("stopping one packed ring"));
                }
                self.enable(index, false)?;
                // A message with a reply, so that the one before was handled.
                self.ask_u64(Req::GET_FEATURES)?;
                Ok(self.indices(index).map_or(0, |(_, used)| used.into()))
            }
        }
    }

    /// What is said when the driver resets the device, or the VMM ends in order.
    pub(super) fn deactivate(&mut self) -> Result {
        let rings = if self.started {
            self.rings()
        } else {
            Vec::new()
        };
        if self.owns_config() {
            // One pair again, until the next driver asks for more.
            let vrings = self.vrings.iter_mut().enumerate();
            vrings.for_each(|(index, vring)| vring.enabled = index < 2);
        }
        match self.persona {
            Persona::Plain => {
                rings
                    .iter()
                    .try_for_each(|&index| self.get_base(index).map(drop))?;
                self.reset_device()?;
                self.set_status(0)
            }
            Persona::Qemu => {
                rings
                    .iter()
                    .try_for_each(|&index| self.get_base(index).map(drop))?;
                self.set_status(0)?;
                self.reset_device()?;
                self.enable_as_is()
            }
            Persona::CloudHypervisor => rings
                .iter()
                .try_for_each(|&index| self.enable(index, false)),
            Persona::Crosvm => rings
                .iter()
                .try_for_each(|&index| self.stop_one(index).map(drop)),
            Persona::VirtioUser => {
                rings
                    .iter()
                    .try_for_each(|&index| self.enable(index, false))?;
                rings
                    .iter()
                    .try_for_each(|&index| self.get_base(index).map(drop))?;
                self.set_status(0)
            }
            Persona::Uml => {
                rings
                    .iter()
                    .rev()
                    .try_for_each(|&index| self.enable(index, false))?;
                self.ask_u64(Req::GET_FEATURES).map(drop)
            }
        }
    }

    /// The guest asked for `pairs` queue pairs of a VMM that owns the control queue.
    pub(super) fn use_pairs(&mut self, pairs: u16) -> Result {
        if self.persona == Persona::CloudHypervisor {
            return Ok(());
        }
        for index in 0..self.data_queues() {
            let enabled = index < 2 * pairs;
            self.vrings[usize::from(index)].enabled = enabled;
            self.enable(index, enabled)?;
        }
        Ok(())
    }
}
