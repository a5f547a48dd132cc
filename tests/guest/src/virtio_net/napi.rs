//! The driver under a kernel: interrupts, NAPI, and frames as skbs (Linux:
//! `drivers/net/virtio_net.c`).
//!
//! Receive: used buffers become skbs, one copy each, and go to NAPI; the ring is refilled once half of
//! what a poll may take is gone. Send: skbs are copied into the ring's buffers and end when the device
//! has used them; when the ring is full the transmit queue stops, and completions wake it. Dropped and
//! counted: frames that the send ring refuses for good. A broken ring is an empty one here; the kernel's
//! step reports it.
//!
//! Virtqueues are called by number: even ones receive, odd ones send, and so do their NAPIs.

use super::VirtnetInfo;
use super::ctrl::CtrlError;
use super::features as f;
use super::header::{
    PktHashType, VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
    VirtioNetHdr,
};
use super::rx::{RxFrame, RxMode, Taken};
use crate::memory::PAGE_SIZE;
use crate::net::eth::eth_type_trans;
use crate::net::skbuff::{IpSummed, NET_SKB_PAD, SkBuff, Skb, SkbCache, skb_truesize};
use crate::net::stats::TxDrop;
use crate::net::trace::Span;
use crate::net::udp::UDPHDR_LEN;
use crate::net::xps::stripe;
use crate::net::{Ifindex, Kernel, Machine};
use crate::ring::virtqueue::Virtqueue;
use crate::transport::Transport;

/// Frames up to this length Linux copies out of their buffers; of longer ones it keeps the buffers.
const GOOD_COPY_LEN: usize = 128;

/// What Linux would charge a socket for a frame of `len` bytes in `buffers` buffers.
#[inline]
fn truesize(rx: (RxMode, usize), len: usize, buffers: usize) -> usize {
    let (mode, buf_len) = rx;
    let kept = match mode {
        RxMode::Small => return skb_truesize(NET_SKB_PAD + buf_len),
        _ if len <= GOOD_COPY_LEN => 0,
        RxMode::Mergeable => buffers * buf_len,
        RxMode::Big => len.next_multiple_of(PAGE_SIZE),
    };
    skb_truesize(NET_SKB_PAD + GOOD_COPY_LEN) + kept
}

/// Makes an skb of a received frame (`receive_mergeable`, `receive_small`): the one copy.
#[inline(always)] // on the way of each packet; called once
fn receive_buf(cache: &mut SkbCache, rx: (RxMode, usize), rxhash: bool, frame: RxFrame<'_>) -> Skb {
    let truesize = truesize(rx, frame.len(), frame.buffers());
    let mut skb = cache.alloc_charged(NET_SKB_PAD, frame.len(), truesize);
    frame.copy_to(skb.put(frame.len()));
    if rxhash {
        virtio_skb_set_hash(&mut skb, &frame.hdr);
    }
    virtio_net_hdr_to_skb(&mut skb, &frame.hdr);
    skb
}

/// Keeps the hash that the device reported; one of an unknown type is kept as that of addresses is.
#[inline]
fn virtio_skb_set_hash(skb: &mut SkBuff, hdr: &VirtioNetHdr) {
    skb.hash = hdr.hash_value;
    skb.l4_hash = hdr.hash_type() == PktHashType::L4;
}

/// Tells an skb what the device knows of its checksum and segments. The driver has checked the header.
#[inline]
fn virtio_net_hdr_to_skb(skb: &mut SkBuff, hdr: &VirtioNetHdr) {
    if hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
        skb.ip_summed = IpSummed::Partial;
        skb.csum_start = skb.headroom() + usize::from(hdr.csum_start);
        skb.csum_offset = hdr.csum_offset;
    } else if hdr.flags & VIRTIO_NET_HDR_F_DATA_VALID != 0 {
        skb.ip_summed = IpSummed::Unnecessary;
    }
    if hdr.gso_type != VIRTIO_NET_HDR_GSO_NONE {
        let info = hdr.shared_info(skb.len(), skb.data());
        (skb.gso_size, skb.gso_type) = (info.gso_size, info.gso_type);
        skb.gso_segs = info.gso_segs;
    }
}

/// The header of a frame to send.
#[inline]
fn virtio_net_hdr_from_skb(skb: &SkBuff) -> VirtioNetHdr {
    if skb.ip_summed == IpSummed::Partial {
        // Of a packet that is sent on another device may have said anything.
        let start = skb.csum_start.saturating_sub(skb.headroom());
        let hdr = VirtioNetHdr::needs_csum(start as u16, skb.csum_offset);
        if skb.gso_size == 0 {
            return hdr;
        }
        // Of all that the stack makes, datagrams alone stand for several.
        hdr.with_shared_info(&skb.shared_info(), (start + UDPHDR_LEN) as u16)
    } else {
        VirtioNetHdr::default()
    }
}

impl<T: Transport> VirtnetInfo<T> {
    #[inline]
    fn vq(&mut self, vq: usize) -> &mut Virtqueue {
        if vq.is_multiple_of(2) {
            &mut self.rq[vq / 2].vq
        } else {
            &mut self.sq[vq / 2].vq
        }
    }

    /// Interrupts of one virtqueue since the last call, counted.
    #[inline]
    pub(crate) fn take_queue_interrupt(&mut self, vq: usize) -> u64 {
        let raised = self.transport.take_interrupt(vq as u16);
        if vq.is_multiple_of(2) {
            self.rq[vq / 2].stats.interrupts += raised;
        } else {
            self.sq[vq / 2].stats.interrupts += raised;
        }
        raised
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Opens the device: NAPI is switched on.
    pub(crate) fn virtnet_open(&mut self) {
        for vq in 0..self.napi.len() {
            self.virtnet_napi_enable(vq);
        }
    }

    /// A queue is polled from now on. What was used before would never interrupt, so it is polled once.
    pub(super) fn virtnet_napi_enable(&mut self, vq: usize) {
        let cpu = std::mem::replace(&mut self.cpu, self.napi[vq].cpu);
        if vq.is_multiple_of(2) && !self.config.rx_napi {
            self.virtnet_interrupt_rx(vq / 2);
        } else {
            self.virtqueue_napi_schedule(vq);
        }
        self.local_bh_enable();
        self.cpu = cpu;
    }

    /// Gives each queue pair in use CPUs of its own, as far as there are any: the first of them is
    /// interrupted, all of them send there. Those out of use stay where they are.
    pub(crate) fn virtnet_set_affinity(&mut self) {
        let cpus = self.softnet.len();
        let masks = stripe(cpus, usize::from(self.dev.curr_queue_pairs()));
        for (napi, mask) in self.napi.chunks_mut(2).zip(&masks) {
            napi.iter_mut().for_each(|napi| napi.cpu = mask[0]);
        }
        self.xps.set(cpus, &masks);
    }

    /// Config space was read: the driver announces itself where the device asks for it. One that then
    /// refuses the acknowledgement asks again.
    pub(crate) fn virtnet_config_changed_work(&mut self) {
        if self.dev.features() & f::GUEST_ANNOUNCE == 0 || !self.dev.config.announce() {
            return;
        }
        self.netdev_notify_peers(Ifindex::ETH0);
        if let Err(error) = self.dev.ack_link_announce() {
            log::warn!("failed to ack link announce: {error}");
        }
    }

    /// Changes the interface's hardware address (`ip link set DEV address`, `virtnet_set_mac_address`), and with it that of
    /// its VLANs. Neighbours are forgotten: they are asked again, and so learn it.
    ///
    /// # Errors
    /// As [`VirtnetInfo::set_mac_address`]; then the old one stays.
    pub fn dev_set_mac_address(&mut self, mac: [u8; 6]) -> Result<(), CtrlError> {
        self.dev.set_mac_address(mac)?;
        self.dev_addr_changed(Ifindex::ETH0, mac);
        Ok(())
    }

    /// A hard interrupt of a virtqueue.
    pub(crate) fn vring_interrupt(&mut self, vq: usize) {
        let _stage = self.stage("vring_interrupt");
        if !self.dev.vq(vq).more_used() {
            self.napi[vq].stats.spurious += 1;
            return;
        }
        self.napi[vq].stats.interrupts += 1;
        if vq.is_multiple_of(2) {
            self.skb_recv_done(vq);
        } else {
            self.skb_xmit_done(vq);
        }
    }

    fn skb_recv_done(&mut self, vq: usize) {
        let _stage = self.stage("skb_recv_done");
        let calls = &mut self.dev.rq[vq / 2].dim.calls;
        *calls = calls.wrapping_add(1);
        if !self.config.rx_napi {
            return self.virtnet_interrupt_rx(vq / 2);
        }
        self.virtqueue_napi_schedule(vq);
    }

    fn skb_xmit_done(&mut self, vq: usize) {
        let _stage = self.stage("skb_xmit_done");
        self.virtqueue_disable_cb(vq);
        self.virtqueue_napi_schedule(vq);
    }

    fn virtqueue_napi_schedule(&mut self, vq: usize) {
        if self.napi_schedule_prep(vq) {
            self.virtqueue_disable_cb(vq);
            self.__napi_schedule(vq);
        }
    }

    /// Ends a poll with interrupts on, and looks once more at what came before they were; whether
    /// that was nothing.
    fn virtqueue_napi_complete(&mut self, vq: usize, processed: usize) -> bool {
        let enabling = self.stage("virtqueue_enable_cb_prepare");
        let opaque = self.dev.vq(vq).enable_cb_prepare();
        drop(enabling);
        if self.napi_complete_done(vq, processed) {
            self.napi[vq].stats.completes += 1;
            let polling = self.stage("virtqueue_poll");
            if !self.dev.vq(vq).poll(opaque) {
                return true;
            }
            drop(polling);
            self.napi[vq].stats.repolls += 1;
            self.virtqueue_napi_schedule(vq);
        } else {
            self.virtqueue_disable_cb(vq);
        }
        false
    }

    /// The receive poll; how many frames it took, at most `budget`.
    pub(crate) fn virtnet_poll(&mut self, vq: usize, budget: usize) -> usize {
        let _stage = self.stage("virtnet_poll");
        let pair = vq / 2;
        // Whoever polls without an interrupt has not masked it.
        self.virtqueue_disable_cb(vq);
        self.virtnet_poll_cleantx(pair);
        let received = self.virtnet_receive(pair, budget);
        self.dev.rq[pair].dim.packets_in_napi += received;
        if received < budget
            && self.virtqueue_napi_complete(vq, received)
            && self.dev.rq[pair].dim.enabled
        {
            self.virtnet_rx_dim_update(pair);
        }
        received
    }

    /// Takes back what the pair's other ring has sent, while we are here.
    fn virtnet_poll_cleantx(&mut self, pair: usize) {
        loop {
            self.virtqueue_disable_cb(2 * pair + 1);
            self.free_old_xmit(pair);
            if self.virtqueue_enable_cb_delayed(pair) {
                break;
            }
        }
        self.wake_if_room(pair);
    }

    fn virtnet_receive(&mut self, pair: usize, budget: usize) -> usize {
        let mut received = 0;
        let rx = (self.dev.rq[pair].mode(), self.dev.rq[pair].buf_len());
        let rxhash = self.dev.rss().reports();
        // Without NAPI the backlog's poll does the work.
        let cost = if self.config.rx_napi {
            self.costs.packet
        } else {
            0
        };
        while received < budget {
            let getting = self.stage("virtqueue_get_buf_ctx");
            let (cache, tracer, cpu) = (&mut self.skb_cache, self.machine.tracer(), self.cpu);
            let taken = self.dev.rq[pair].receive_one(|frame| {
                drop(getting);
                let _stage = Span::of(tracer, "napi_alloc_skb", cpu);
                receive_buf(cache, rx, rxhash, frame)
            });
            let skb = match self.note_fault(taken) {
                Some(Taken::Frame(skb)) => Some(skb),
                Some(Taken::Bad) => None,
                Some(Taken::Empty) | None => break,
            };
            received += 1;
            self.spend(cost);
            if let Some(skb) = skb {
                self.virtnet_receive_done(pair, skb);
            }
        }
        let sizing = self.stage("virtqueue_get_vring_size");
        let size = usize::from(self.dev.rq[pair].vq.size());
        drop(sizing);
        if usize::from(self.dev.rq[pair].vq.num_free()) > budget.min(size) / 2 {
            self.try_fill_recv(pair);
        }
        received
    }

    fn try_fill_recv(&mut self, pair: usize) {
        let _stage = self.stage("try_fill_recv");
        let rq = &mut self.dev.rq[pair];
        let added = rq.try_fill_recv();
        if added > 0 {
            rq.kick(&self.dev.transport);
        }
        self.changed("buffers posted", || added.to_string());
    }

    #[inline]
    fn virtnet_receive_done(&mut self, pair: usize, mut skb: Skb) {
        let _stage = self.stage("virtnet_receive_done");
        eth_type_trans(&mut skb, &self.netdevs[Ifindex::ETH0]);
        self.changed("skb", || {
            format!(
                "{} octets of {:#06x}, {:?}, {:?}",
                skb.len(),
                skb.protocol,
                skb.pkt_type,
                skb.ip_summed
            )
        });
        skb.queue_mapping = pair as u16 + 1;
        if self.config.rx_napi {
            self.napi_gro_receive(2 * pair, skb);
        } else {
            self.netif_rx(skb);
        }
    }

    /// A receive queue's interrupt without NAPI: takes all there is, until nothing came before the interrupt was on
    /// again. A device that is faster than the CPU keeps it here: the livelock that NAPI was made against.
    pub(super) fn virtnet_interrupt_rx(&mut self, pair: usize) {
        let _stage = self.stage("virtnet_interrupt_rx");
        let vq = 2 * pair;
        loop {
            self.virtqueue_disable_cb(vq);
            let size = usize::from(self.dev.rq[pair].vq.size());
            self.virtnet_receive(pair, size);
            let vq = self.dev.vq(vq);
            let opaque = vq.enable_cb_prepare();
            if !vq.poll(opaque) {
                return;
            }
        }
    }

    /// The transmit poll.
    pub(crate) fn virtnet_poll_tx(&mut self, vq: usize) -> usize {
        let _stage = self.stage("virtnet_poll_tx");
        let pair = vq / 2;
        self.virtqueue_disable_cb(vq);
        self.free_old_xmit(pair);
        self.wake_if_room(pair);
        self.virtqueue_napi_complete(vq, 0);
        0
    }

    /// Skbs that the device has sent end here.
    #[inline]
    pub(super) fn free_old_xmit(&mut self, pair: usize) {
        let mut bytes = 0;
        loop {
            let getting = self.stage("virtqueue_get_buf");
            let sent = self.dev.sq[pair].get_sent();
            drop(getting);
            let Some(Some(slot)) = self.note_fault(sent) else {
                break;
            };
            if let Some(skb) = self.txq[pair].in_flight[slot as usize].take() {
                bytes += skb.len();
                self.napi_consume_skb(skb);
            }
        }
        self.netdev_tx_completed_queue(pair, bytes);
    }

    #[inline]
    fn wake_if_room(&mut self, pair: usize) {
        if self.dev.sq[pair].has_room() {
            self.netif_tx_wake_queue(pair);
        }
    }

    /// Sends an skb that has all its headers; with `xmit_more` the kick is left to the next one.
    ///
    /// Linux stops the queue while there may be no room for a frame in 17 pieces; our frames are laid
    /// into their descriptors by the driver's own option, so it stops when one such frame has no room.
    pub(crate) fn start_xmit(&mut self, pair: usize, skb: Skb, xmit_more: bool) {
        let _stage = self.stage("start_xmit");
        loop {
            self.virtqueue_disable_cb(2 * pair + 1);
            self.free_old_xmit(pair);
            if xmit_more || self.virtqueue_enable_cb_delayed(pair) {
                break;
            }
        }
        let (hdr, len) = (virtio_net_hdr_from_skb(&skb), skb.len());
        let adding = self.stage("virtqueue_add_outbuf");
        let added = self.dev.sq[pair].xmit(skb.data(), &hdr);
        self.changed("descriptors", || {
            let free = self.dev.sq[pair].vq.num_free();
            format!("{} octets added, {free} free", skb.len())
        });
        drop(adding);
        let bytes = if added.is_ok() { len } else { 0 };
        match added {
            Ok(slot) => self.txq[pair].in_flight[slot as usize] = Some(skb),
            // Not Busy: the queue would have been stopped.
            Err(_) => self.drop_tx(skb, TxDrop::TxFifoErrors),
        }
        self.check_sq_full_and_disable(pair);
        if self.netdev_tx_sent_queue(pair, bytes, xmit_more) {
            self.virtqueue_kick(pair);
        }
    }

    /// Shows the device what was added and kicks it, if it wants that.
    fn virtqueue_kick(&mut self, pair: usize) {
        let preparing = self.stage("virtqueue_kick_prepare");
        let wanted = self.dev.sq[pair].vq.kick_prepare();
        drop(preparing);
        if wanted {
            let _stage = self.stage("virtqueue_notify");
            self.dev.sq[pair].notify(&self.dev.transport);
        }
    }

    #[inline]
    fn virtqueue_disable_cb(&mut self, vq: usize) {
        let _stage = self.stage("virtqueue_disable_cb");
        self.dev.vq(vq).disable_cb();
    }

    /// Asks for an interrupt once most of what a pair has to send is sent; whether there is nothing to take back
    /// meanwhile, or never will be.
    #[inline]
    fn virtqueue_enable_cb_delayed(&mut self, pair: usize) -> bool {
        let _stage = self.stage("virtqueue_enable_cb_delayed");
        let vq = &mut self.dev.sq[pair].vq;
        vq.enable_cb_delayed() || vq.fault().is_some()
    }

    /// Stops the queue when the next frame may have no room, and has completions wake it.
    fn check_sq_full_and_disable(&mut self, pair: usize) {
        let sq = &mut self.dev.sq[pair];
        if sq.has_room() || sq.vq.fault().is_some() {
            return;
        }
        let vq = 2 * pair + 1;
        self.netif_tx_stop_queue(pair);
        if !self.dev.vq(vq).enable_cb_delayed() {
            self.virtqueue_napi_schedule(vq);
        }
    }
}
