//! What the driver asks of the device over the control queue.
//!
//! Each function is one command of virtio 1.3, 5.1.6.5, sent and waited for. Where the front-end
//! owns the control queue (QEMU, cloud-hypervisor, DPDK), it answers instead of the device.

use std::time::Duration;

use super::VirtnetInfo;
use super::ctrl::{self, Answer, CtrlError};
use crate::transport::Transport;

/// A command's timeout is spent in this many waits, because one may end early for nothing.
const WAITS: u32 = 50;

impl<T: Transport> VirtnetInfo<T> {
    /// Sends a command and waits for its ack (`virtnet_send_command`).
    ///
    /// # Errors
    /// When there is no control queue, the device refuses, or does not answer in time.
    pub fn send_command(&mut self, class: u8, command: u8, data: &[u8]) -> Result<(), CtrlError> {
        self.send_command_reply(class, command, data, &mut [])
            .map(drop)
    }

    /// Sends a command that has a reply; how many bytes of it the device wrote.
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn send_command_reply(
        &mut self,
        class: u8,
        command: u8,
        data: &[u8],
        reply: &mut [u8],
    ) -> Result<usize, CtrlError> {
        let Answer { ack, len } = match self.transport.vmm_control(class, command, data) {
            Some(ack) => Answer { ack, len: 0 },
            None => self.ask_device(class, command, data, reply)?,
        };
        if ack == ctrl::VIRTIO_NET_OK {
            Ok(len)
        } else {
            Err(CtrlError::Refused(ack))
        }
    }

    fn ask_device(
        &mut self,
        class: u8,
        command: u8,
        data: &[u8],
        reply: &mut [u8],
    ) -> Result<Answer, CtrlError> {
        let timeout: Duration = self.ctrl_timeout;
        let cvq = self.cvq.as_mut().ok_or(CtrlError::NoQueue)?;
        let ticket = cvq.submit(class, command, data, reply.len())?;
        if cvq.vq.kick_prepare() {
            self.transport.kick(cvq.index());
        }
        for _ in 0..WAITS {
            if let Some(answer) = cvq.poll(ticket, reply)? {
                return Ok(answer);
            }
            self.transport.wait_interrupt(cvq.index(), timeout / WAITS);
            self.transport.take_interrupt(cvq.index());
        }
        match cvq.poll(ticket, reply)? {
            Some(answer) => Ok(answer),
            None => {
                cvq.abandon(ticket);
                Err(CtrlError::TimedOut)
            }
        }
    }

    /// Switches one receive mode (`VIRTIO_NET_CTRL_RX_*`).
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_rx_mode(&mut self, mode: u8, on: bool) -> Result<(), CtrlError> {
        self.send_command(ctrl::VIRTIO_NET_CTRL_RX, mode, &[on.into()])
    }

    /// Promiscuous mode.
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_promisc(&mut self, on: bool) -> Result<(), CtrlError> {
        self.set_rx_mode(ctrl::VIRTIO_NET_CTRL_RX_PROMISC, on)
    }

    /// All multicast.
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_allmulti(&mut self, on: bool) -> Result<(), CtrlError> {
        self.set_rx_mode(ctrl::VIRTIO_NET_CTRL_RX_ALLMULTI, on)
    }

    /// All unicast (CTRL_RX_EXTRA).
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_alluni(&mut self, on: bool) -> Result<(), CtrlError> {
        self.set_rx_mode(ctrl::VIRTIO_NET_CTRL_RX_ALLUNI, on)
    }

    /// No multicast (CTRL_RX_EXTRA).
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_nomulti(&mut self, on: bool) -> Result<(), CtrlError> {
        self.set_rx_mode(ctrl::VIRTIO_NET_CTRL_RX_NOMULTI, on)
    }

    /// No unicast (CTRL_RX_EXTRA).
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_nouni(&mut self, on: bool) -> Result<(), CtrlError> {
        self.set_rx_mode(ctrl::VIRTIO_NET_CTRL_RX_NOUNI, on)
    }

    /// No broadcast (CTRL_RX_EXTRA).
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_nobcast(&mut self, on: bool) -> Result<(), CtrlError> {
        self.set_rx_mode(ctrl::VIRTIO_NET_CTRL_RX_NOBCAST, on)
    }

    /// Sets the filter table.
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_mac_table(
        &mut self,
        unicast: &[[u8; 6]],
        multicast: &[[u8; 6]],
    ) -> Result<(), CtrlError> {
        let mut data = Vec::new();
        for table in [unicast, multicast] {
            data.extend((table.len() as u32).to_le_bytes());
            data.extend(table.iter().flatten());
        }
        let (class, command) = (
            ctrl::VIRTIO_NET_CTRL_MAC,
            ctrl::VIRTIO_NET_CTRL_MAC_TABLE_SET,
        );
        self.send_command(class, command, &data)
    }

    /// Sets the MAC address.
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_mac_address(&mut self, mac: [u8; 6]) -> Result<(), CtrlError> {
        let (class, command) = (
            ctrl::VIRTIO_NET_CTRL_MAC,
            ctrl::VIRTIO_NET_CTRL_MAC_ADDR_SET,
        );
        self.send_command(class, command, &mac)?;
        self.config.mac = Some(mac);
        Ok(())
    }

    /// Lets a VLAN in (`virtnet_vlan_rx_add_vid`).
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn vlan_rx_add_vid(&mut self, vid: u16) -> Result<(), CtrlError> {
        let (class, command) = (ctrl::VIRTIO_NET_CTRL_VLAN, ctrl::VIRTIO_NET_CTRL_VLAN_ADD);
        self.send_command(class, command, &vid.to_le_bytes())
    }

    /// Lets a VLAN in no longer (`virtnet_vlan_rx_kill_vid`).
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn vlan_rx_kill_vid(&mut self, vid: u16) -> Result<(), CtrlError> {
        let (class, command) = (ctrl::VIRTIO_NET_CTRL_VLAN, ctrl::VIRTIO_NET_CTRL_VLAN_DEL);
        self.send_command(class, command, &vid.to_le_bytes())
    }

    /// Says that the driver has announced itself.
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn ack_link_announce(&mut self) -> Result<(), CtrlError> {
        let (class, command) = (
            ctrl::VIRTIO_NET_CTRL_ANNOUNCE,
            ctrl::VIRTIO_NET_CTRL_ANNOUNCE_ACK,
        );
        self.send_command(class, command, &[])
    }

    /// Chooses the receive offloads in use, as bits of the features (`virtnet_set_guest_offloads`).
    ///
    /// # Errors
    /// As [`Self::send_command`].
    pub fn set_guest_offloads(&mut self, offloads: u64) -> Result<(), CtrlError> {
        let class = ctrl::VIRTIO_NET_CTRL_GUEST_OFFLOADS;
        let command = ctrl::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET;
        self.send_command(class, command, &offloads.to_le_bytes())?;
        self.guest_offloads = offloads;
        Ok(())
    }
}
