//! Interrupt moderation (`ethtool -c`, `-C`, `-Q`; virtio 1.3, 5.1.6.5, "Notifications
//! Coalescing").
//!
//! In: after how many packets, or how long after the first of them, a queue is to interrupt; or that the
//! driver is to find out itself (`adaptive-rx`, see [`super::dim`]). Out: commands. What the device refuses
//! is not kept.

use super::VirtnetInfo;
use super::ctrl::{self, CtrlError};
use super::dim::{Dim, DimSample};
use super::features as f;
use crate::net::{Kernel, Machine};
use crate::transport::Transport;

/// When a queue interrupts (`struct virtnet_interrupt_coalesce`): with every packet, unless both are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IntrCoal {
    /// After so many packets,
    pub max_packets: u32,
    /// or so many microseconds after the first.
    pub max_usecs: u32,
}

impl IntrCoal {
    /// After `max_packets`, or `max_usecs` microseconds after the first.
    #[must_use]
    pub const fn new(max_packets: u32, max_usecs: u32) -> Self {
        Self {
            max_packets,
            max_usecs,
        }
    }

    fn to_bytes(self) -> Vec<u8> {
        [self.max_packets.to_le_bytes(), self.max_usecs.to_le_bytes()].concat()
    }
}

/// What all queues were told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Coalesce {
    pub rx: IntrCoal,
    pub tx: IntrCoal,
}

impl Default for Coalesce {
    fn default() -> Self {
        Self {
            rx: IntrCoal::default(),
            // Linux's idea of a driver that polls its transmit queues; the device begins with 0.
            tx: IntrCoal::new(1, 0),
        }
    }
}

/// The tuner of a receive queue.
#[derive(Debug, Clone, Default)]
pub(super) struct RxDim {
    pub enabled: bool,
    dim: Dim,
    /// Interrupts.
    pub calls: u16,
    /// Packets since the last sample.
    pub packets_in_napi: usize,
    /// Another profile waits to be put in force.
    work: bool,
}

/// The bytes of a command for one virtqueue.
fn of_queue(vqn: u16) -> Vec<u8> {
    [vqn.to_le_bytes(), [0; 2]].concat()
}

impl<T: Transport> VirtnetInfo<T> {
    fn notf_coal(&mut self, command: u8, data: &[u8]) -> Result<(), CtrlError> {
        self.send_command(ctrl::VIRTIO_NET_CTRL_NOTF_COAL, command, data)
    }

    /// Interrupt moderation of all receive queues: after `max_packets` or `max_usecs`. It ends `adaptive-rx`.
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_rx_coalesce(&mut self, max_packets: u32, max_usecs: u32) -> Result<(), CtrlError> {
        let coal = IntrCoal::new(max_packets, max_usecs);
        let command = ctrl::VIRTIO_NET_CTRL_NOTF_COAL_RX_SET;
        self.notf_coal(command, &coal.to_bytes())?;
        self.coalesce.rx = coal;
        for rq in &mut self.rq {
            rq.intr_coal = coal;
            rq.dim.enabled = false;
        }
        Ok(())
    }

    /// Interrupt moderation of all transmit queues.
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_tx_coalesce(&mut self, max_packets: u32, max_usecs: u32) -> Result<(), CtrlError> {
        let coal = IntrCoal::new(max_packets, max_usecs);
        let command = ctrl::VIRTIO_NET_CTRL_NOTF_COAL_TX_SET;
        self.notf_coal(command, &coal.to_bytes())?;
        self.coalesce.tx = coal;
        for sq in &mut self.sq {
            sq.intr_coal = coal;
        }
        Ok(())
    }

    /// Interrupt moderation of virtqueue `vqn`. It ends `adaptive-rx` there.
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_queue_coalesce(
        &mut self,
        vqn: u16,
        max_packets: u32,
        max_usecs: u32,
    ) -> Result<(), CtrlError> {
        let coal = IntrCoal::new(max_packets, max_usecs);
        self.send_ctrl_coal_vq_cmd(vqn, coal)?;
        if let Some(rq) = self.receive_queue(vqn) {
            rq.dim.enabled = false;
        }
        Ok(())
    }

    /// Sends VQ_SET, and keeps what the device accepts (`virtnet_send_ctrl_coal_vq_cmd`).
    pub(super) fn send_ctrl_coal_vq_cmd(
        &mut self,
        vqn: u16,
        coal: IntrCoal,
    ) -> Result<(), CtrlError> {
        let data = [of_queue(vqn), coal.to_bytes()].concat();
        self.notf_coal(ctrl::VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET, &data)?;
        let pair = usize::from(vqn / 2);
        if let Some(rq) = self.receive_queue(vqn) {
            rq.intr_coal = coal;
        } else if let Some(sq) = self.sq.get_mut(pair) {
            sq.intr_coal = coal;
        }
        Ok(())
    }

    fn receive_queue(&mut self, vqn: u16) -> Option<&mut super::rx::ReceiveQueue> {
        let rq = self.rq.get_mut(usize::from(vqn / 2));
        rq.filter(|_| vqn.is_multiple_of(2))
    }

    /// Interrupt moderation of virtqueue `vqn` as the device has it: packets and microseconds.
    ///
    /// # Errors
    /// [`CtrlError::ShortReply`], else as [`Self::send_command`].
    pub fn queue_coalesce(&mut self, vqn: u16) -> Result<(u32, u32), CtrlError> {
        let mut reply = [0; 8];
        let class = ctrl::VIRTIO_NET_CTRL_NOTF_COAL;
        let command = ctrl::VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET;
        let len = self.send_command_reply(class, command, &of_queue(vqn), &mut reply)?;
        if len < reply.len() {
            return Err(CtrlError::ShortReply(len));
        }
        let reply = u64::from_le_bytes(reply);
        Ok((reply as u32, (reply >> 32) as u32))
    }

    /// Has the driver tune the moderation of all receive queues, or no longer (`ethtool -C DEV adaptive-rx`);
    /// then they get back what they were told last. Only a [`Kernel`] tunes: it knows the time.
    ///
    /// # Errors
    /// [`CtrlError::NotNegotiated`] without VQ_NOTF_COAL, else as [`Self::send_command`].
    pub fn set_adaptive_rx(&mut self, on: bool) -> Result<(), CtrlError> {
        if self.features & f::VQ_NOTF_COAL == 0 {
            return Err(CtrlError::NotNegotiated("VQ_NOTF_COAL"));
        }
        if on {
            for rq in &mut self.rq {
                rq.dim.enabled = true;
            }
            return Ok(());
        }
        let IntrCoal {
            max_packets,
            max_usecs,
        } = self.coalesce.rx;
        if self.features & f::NOTF_COAL != 0 {
            return self.set_rx_coalesce(max_packets, max_usecs);
        }
        for pair in 0..self.curr_queue_pairs {
            self.set_queue_coalesce(2 * pair, max_packets, max_usecs)?;
        }
        for rq in &mut self.rq {
            rq.dim.enabled = false;
        }
        Ok(())
    }

    /// Whether the driver tunes the moderation of a pair's receive queue.
    #[must_use]
    pub fn adaptive_rx(&self, pair: u16) -> bool {
        self.rq[usize::from(pair)].dim.enabled
    }

    /// Interrupt moderation of virtqueue `vqn` as the driver has it: what the device accepted last.
    ///
    /// # Panics
    /// When no such queue was set up.
    #[must_use]
    pub fn intr_coal(&self, vqn: u16) -> IntrCoal {
        let pair = usize::from(vqn / 2);
        if vqn.is_multiple_of(2) {
            self.rq[pair].intr_coal
        } else {
            self.sq[pair].intr_coal
        }
    }

    /// Puts the profiles in force that the tuners chose (`virtnet_rx_dim_work`). A device that refuses
    /// goes on as before.
    fn rx_dim_work(&mut self) {
        for pair in 0..self.rq.len() {
            let rq = &mut self.rq[pair];
            if !std::mem::take(&mut rq.dim.work) {
                continue;
            }
            let (profile, vqn) = (rq.dim.dim.profile(), rq.index());
            if rq.dim.enabled
                && profile != rq.intr_coal
                && let Err(error) = self.send_ctrl_coal_vq_cmd(vqn, profile)
            {
                log::debug!("failed to send dim parameters on rxq{pair}: {error}");
            }
            self.rq[pair].dim.dim.applied();
        }
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// A receive poll has ended with interrupts on: the tuner takes a sample.
    pub(super) fn virtnet_rx_dim_update(&mut self, pair: usize) {
        let time = self.machine.now() / 1000;
        let rq = &mut self.dev.rq[pair];
        if std::mem::take(&mut rq.dim.packets_in_napi) == 0 {
            return;
        }
        let sample = DimSample {
            time,
            pkt_ctr: rq.stats.packets,
            byte_ctr: rq.stats.bytes,
            event_ctr: rq.dim.calls,
        };
        if rq.dim.dim.net_dim(sample) {
            rq.dim.work = true;
            self.work = true;
        }
    }

    /// Does what was left to a worker, because it waits for the device; whether there was anything.
    #[inline]
    pub(crate) fn process_work(&mut self) -> bool {
        let work = std::mem::take(&mut self.work);
        if work {
            self.dev.rx_dim_work();
        }
        work
    }
}
