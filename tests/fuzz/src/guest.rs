//! The guest's kernel over a device that delivers what the input says: what the targets of the guest have in common.
//!
//! The device's side of the rings is here, for both layouts; where the input wants it, it lies.

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nic_guest::memory::GuestMemory;
use nic_guest::net::{Fd, Kernel, KernelConfig, Machine, Protocol, SockType};
use nic_guest::transport::{QueueConfig, Transport, TransportError};
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeError, ProbeOptions, VirtnetInfo};

use super::input::Input;
use super::packet;
use super::walk::Place;

/// Octets of the guest's memory.
pub(crate) const MEMORY: usize = 8 << 20;
/// Entries of each ring.
const RING: u16 = 16;
/// Steps in which a kernel has to come to rest.
const STEPS: usize = 10_000;
/// The port that the kernel listens to: that of [`packet::frame`].
const PORT: u16 = 7;

/// A chain of buffers: what it is known by, its entries in the ring, its places.
type Chain = (u16, u16, Vec<(u64, u32)>);

/// The device's side of a ring.
struct Side {
    config: QueueConfig,
    next: Place,
    used: Place,
    index: u16,
    used_index: u16,
}

/// A device and the clock.
pub(crate) struct Device {
    memory: Arc<GuestMemory>,
    offered: u64,
    features: Cell<u64>,
    space: RefCell<[u8; 64]>,
    sides: RefCell<Vec<Option<Side>>>,
    interrupts: RefCell<Vec<u64>>,
    config_changed: Cell<bool>,
    /// What a control command is answered.
    pub(crate) answer: Cell<Option<u8>>,
    /// What the last segment of TCP that was sent acknowledges, and the number after it.
    pub(crate) seen: Cell<(u32, u32)>,
    now: Cell<u64>,
}

/// The device as a transport.
pub(crate) struct Nic(Rc<Device>);

/// A lie about what is used.
#[derive(Clone, Copy, Default)]
pub(crate) struct Lie {
    /// Added to the identifier.
    pub(crate) id: u32,
    /// Added to the octets written.
    pub(crate) len: u32,
    /// Added to the used index.
    pub(crate) index: u16,
    /// Added to the number of buffers.
    pub(crate) buffers: u16,
}

impl Device {
    fn read<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut octets = [0; N];
        // What the driver gave is in its memory; what this device wrote there itself may be anything.
        let _ = self.memory.read(addr, &mut octets);
        octets
    }

    fn read16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.read(addr))
    }

    fn packed(&self) -> bool {
        self.features.get() & f::RING_PACKED != 0
    }

    /// A descriptor: address, length, and its last two fields.
    fn descriptor(&self, at: u64) -> (u64, u32, [u16; 2]) {
        // An address that a ring says may be any, since the device may have written there.
        let behind = |octets| at.wrapping_add(octets);
        let (addr, len) = (self.read(at), self.read(behind(8)));
        let fields = [self.read16(behind(12)), self.read16(behind(14))];
        (u64::from_le_bytes(addr), u32::from_le_bytes(len), fields)
    }

    /// Takes the next chain of queue `index`, if there is one.
    fn take(&self, index: u16) -> Option<Chain> {
        let mut sides = self.sides.borrow_mut();
        let side = sides.get_mut(usize::from(index))?.as_mut()?;
        let (layout, size) = (side.config.layout, side.config.size);
        let mut places = Vec::new();
        let table = |addr: u64, len: u32, places: &mut Vec<(u64, u32)>| {
            for entry in 0..u64::from(len / 16).min(64) {
                let (addr, len, _) = self.descriptor(addr.wrapping_add(16 * entry));
                places.push((addr, len));
            }
        };
        if self.packed() {
            let mut entries = 0;
            loop {
                let at = side.next.after(entries, size);
                let (addr, len, [id, flags]) =
                    self.descriptor(layout.desc + 16 * u64::from(at.index));
                if entries == 0 && flags & 0x8080 != at.available() {
                    return None;
                }
                entries += 1;
                if flags & 4 != 0 {
                    table(addr, len, &mut places);
                } else {
                    places.push((addr, len));
                }
                if flags & 1 == 0 || entries == size {
                    side.next = side.next.after(entries, size);
                    return Some((id, entries, places));
                }
            }
        }
        if side.index == self.read16(layout.avail + 2) {
            return None;
        }
        let slot = u64::from(side.index % size);
        side.index = side.index.wrapping_add(1);
        let head = self.read16(layout.avail + 4 + 2 * slot);
        let mut at = head;
        for _ in 0..size {
            let (addr, len, [flags, next]) = self.descriptor(layout.desc + 16 * u64::from(at));
            if flags & 4 != 0 {
                table(addr, len, &mut places);
            } else {
                places.push((addr, len));
            }
            if flags & 1 == 0 {
                break;
            }
            at = next;
        }
        Some((head, 1, places))
    }

    /// Gives a chain of queue `index` back, and interrupts.
    fn put(&self, index: u16, id: u16, entries: u16, len: u32, lie: Lie) {
        let mut sides = self.sides.borrow_mut();
        let Some(Some(side)) = sides.get_mut(usize::from(index)) else {
            return;
        };
        let (layout, size) = (side.config.layout, side.config.size);
        let (id, len) = (
            u32::from(id).wrapping_add(lie.id),
            len.wrapping_add(lie.len),
        );
        if self.packed() {
            let at = side.used;
            let place = layout.desc + 16 * u64::from(at.index);
            let flags = at.used() | if len > 0 { 2 } else { 0 };
            self.write(place + 8, &len.to_le_bytes());
            self.write(place + 12, &(id as u16).to_le_bytes());
            self.write(place + 14, &flags.to_le_bytes());
            side.used = at.after(entries.wrapping_add(lie.index) % 64, size);
        } else {
            let slot = u64::from(side.used_index % size);
            self.write(layout.used + 4 + 8 * slot, &id.to_le_bytes());
            self.write(layout.used + 8 + 8 * slot, &len.to_le_bytes());
            side.used_index = side.used_index.wrapping_add(1).wrapping_add(lie.index);
            self.write(layout.used + 2, &side.used_index.to_le_bytes());
        }
        drop(sides);
        self.interrupt(index);
    }

    /// Interrupts the driver of queue `index`.
    pub(crate) fn interrupt(&self, index: u16) {
        if let Some(count) = self.interrupts.borrow_mut().get_mut(usize::from(index)) {
            *count += 1;
        }
    }

    /// The device writes to the guest's memory.
    pub(crate) fn write(&self, addr: u64, octets: &[u8]) {
        let _ = self.memory.write(addr, octets);
    }

    /// The ring of queue `index`: guest addresses of its parts.
    pub(crate) fn ring(&self, index: u16) -> Option<[u64; 3]> {
        let sides = self.sides.borrow();
        let layout = sides.get(usize::from(index))?.as_ref()?.config.layout;
        Some([layout.desc, layout.avail, layout.used])
    }

    /// Queues that were set up at some time.
    pub(crate) fn queues(&self) -> u16 {
        self.sides.borrow().len() as u16
    }

    /// Writes config space, and says so.
    pub(crate) fn configure(&self, at: usize, octets: &[u8]) {
        for (to, &from) in self.space.borrow_mut().iter_mut().skip(at).zip(octets) {
            *to = from;
        }
        self.config_changed.set(true);
    }

    /// Delivers `frame` behind `header` to queue `index`. Returns false if there are too few buffers.
    pub(crate) fn deliver(
        &self,
        index: u16,
        mut header: VirtioNetHdr,
        frame: &[u8],
        lie: Lie,
    ) -> bool {
        let features = self.features.get();
        let header_len = VirtioNetHdr::len(features);
        let mergeable = features & f::MRG_RXBUF != 0;
        let (mut chains, mut room) = (Vec::new(), 0);
        while room < header_len + frame.len()
            && (mergeable || chains.is_empty())
            && chains.len() < 64
        {
            let Some(chain) = self.take(index) else {
                break;
            };
            room += chain.2.iter().map(|&(_, len)| len as usize).sum::<usize>();
            chains.push(chain);
        }
        header.num_buffers = (chains.len() as u16).wrapping_add(lie.buffers);
        let octets = [&header.to_bytes()[..header_len], frame].concat();
        let mut rest = &octets[..];
        let any = !chains.is_empty();
        for (id, entries, places) in chains {
            let before = rest.len();
            for (addr, len) in places {
                let (here, left) = rest.split_at(rest.len().min(len as usize));
                self.write(addr, here);
                rest = left;
            }
            self.put(index, id, entries, (before - rest.len()) as u32, lie);
        }
        any
    }

    /// Takes up to `most` packets of send queue `index`, and gives their buffers back.
    pub(crate) fn transmit(&self, index: u16, most: usize, lie: Lie) {
        for _ in 0..most {
            let Some((id, entries, places)) = self.take(index) else {
                return;
            };
            self.see(&places);
            self.put(index, id, entries, 0, lie);
        }
    }

    /// Reads the numbers of a segment of TCP, if a packet is one.
    fn see(&self, places: &[(u64, u32)]) -> Option<()> {
        let mut octets = Vec::new();
        for &(addr, len) in places {
            let piece = octets.len();
            octets.resize(piece + (len as usize).min(128), 0);
            // A place may be anywhere, since the device may have written there.
            let _ = self.memory.read(addr, &mut octets[piece..]);
        }
        let frame = octets.get(VirtioNetHdr::len(self.features.get())..)?;
        let tag = if frame.get(12..14)? == [0x81, 0] {
            4
        } else {
            0
        };
        let packet = frame.get(14 + tag..)?;
        let hdr_len = usize::from(packet.first()? & 0xf) * 4;
        if frame[12 + tag..14 + tag] != [8, 0] || packet.get(9) != Some(&6) {
            return None;
        }
        let segment = packet.get(hdr_len..)?.first_chunk::<20>()?;
        let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        let headers = hdr_len + usize::from(segment[12] >> 4) * 4;
        let number = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|octet| segment[at + octet]));
        let len = total.saturating_sub(headers) as u32 + u32::from(segment[13] & 3 != 0);
        self.seen.set((number(8), number(4).wrapping_add(len)));
        Some(())
    }

    /// Time passes.
    pub(crate) fn advance(&self, ns: u64) {
        self.now.set(self.now.get() + ns);
    }
}

impl Machine for Device {
    fn now(&self) -> u64 {
        self.now.get()
    }

    fn spend(&self, ns: u64) {
        self.advance(ns);
    }
}

impl Transport for Nic {
    fn memory(&self) -> &Arc<GuestMemory> {
        &self.0.memory
    }

    fn device_features(&mut self) -> Result<u64, TransportError> {
        Ok(self.0.offered)
    }

    fn set_driver_features(&mut self, features: u64) -> Result<(), TransportError> {
        self.0.features.set(features);
        Ok(())
    }

    fn read_config(&mut self, offset: u32, buf: &mut [u8]) -> Result<(), TransportError> {
        let space = self.0.space.borrow();
        let at = offset as usize;
        let here = space.get(at..at + buf.len());
        buf.copy_from_slice(here.ok_or(TransportError::Unsupported("reading there"))?);
        Ok(())
    }

    fn setup_queue(&mut self, queue: &QueueConfig) -> Result<(), TransportError> {
        let at = usize::from(queue.index);
        if at > 64 {
            return Err(TransportError::Unsupported("so many queues"));
        }
        let mut sides = self.0.sides.borrow_mut();
        let len = sides.len().max(at + 1);
        sides.resize_with(len, || None);
        self.0.interrupts.borrow_mut().resize(len, 0);
        sides[at] = Some(Side {
            config: *queue,
            next: Place::from_word(queue.next as u16),
            used: Place::from_word((queue.next >> 16) as u16),
            index: queue.next as u16,
            used_index: queue.next as u16,
        });
        Ok(())
    }

    fn driver_ok(&mut self) -> Result<(), TransportError> {
        Ok(())
    }

    fn enable_queue(&mut self, _index: u16, _enable: bool) -> Result<(), TransportError> {
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<u32, TransportError> {
        let side = self
            .0
            .sides
            .borrow_mut()
            .get_mut(usize::from(index))
            .and_then(Option::take);
        let side = side.ok_or(TransportError::Unsupported("stopping it"))?;
        Ok(if self.0.packed() {
            u32::from(side.next.word()) | u32::from(side.used.word()) << 16
        } else {
            side.index.into()
        })
    }

    fn reset(&mut self) -> Result<(), TransportError> {
        self.0.sides.borrow_mut().clear();
        Ok(())
    }

    fn kick(&self, _index: u16) {}

    fn take_interrupt(&self, index: u16) -> u64 {
        let mut interrupts = self.0.interrupts.borrow_mut();
        interrupts
            .get_mut(usize::from(index))
            .map_or(0, std::mem::take)
    }

    fn wait_interrupt(&self, index: u16, _timeout: Duration) -> bool {
        self.0
            .interrupts
            .borrow()
            .get(usize::from(index))
            .is_some_and(|&count| count > 0)
    }

    fn wait(&self, _timeout: Duration) -> bool {
        true
    }

    fn take_config_change(&mut self) -> bool {
        self.0.config_changed.take()
    }

    fn vmm_control(&mut self, _class: u8, _command: u8, _data: &[u8]) -> Option<u8> {
        self.0.answer.get()
    }
}

/// A kernel, its device, and a socket.
pub(crate) struct Bed {
    pub(crate) kernel: Kernel<Nic, Rc<Device>>,
    pub(crate) device: Rc<Device>,
    socket: Fd,
    ping: Fd,
}

impl Bed {
    /// A guest with a device that offers `offered`, whose config space is `space`.
    ///
    /// # Errors
    /// The driver does not take it.
    pub(crate) fn new(offered: u64, space: [u8; 64], pairs: u16) -> Result<Self, ProbeError> {
        Self::with(offered, space, pairs, KernelConfig::default())
    }

    /// The same with a kernel that is set so.
    ///
    /// # Errors
    /// The driver does not take it.
    pub(crate) fn with(
        offered: u64,
        space: [u8; 64],
        pairs: u16,
        config: KernelConfig,
    ) -> Result<Self, ProbeError> {
        let device = Rc::new(Device {
            memory: GuestMemory::new(MEMORY).expect("memory"),
            offered,
            features: Cell::new(0),
            space: RefCell::new(space),
            sides: RefCell::default(),
            interrupts: RefCell::default(),
            config_changed: Cell::new(false),
            answer: Cell::new(Some(0)),
            seen: Cell::default(),
            now: Cell::new(1_000_000_000),
        });
        // It writes where it has nothing to write: that is what is tried.
        device.memory.dma_debug().tolerate();
        let options = ProbeOptions {
            queue_size: RING,
            queue_pairs: pairs,
            rss_key: Some([0x6d; 40]),
            ctrl_timeout: Duration::ZERO,
            ..ProbeOptions::default()
        }
        .with(f::RING_PACKED | f::IN_ORDER);
        let driver = VirtnetInfo::probe(Nic(device.clone()), &options)?;
        let mut kernel = Kernel::new(driver, device.clone(), config);
        let socket = kernel
            .socket(SockType::Dgram, Protocol::Udp)
            .expect("the first");
        kernel
            .bind(socket, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT))
            .expect("it is free");
        let ping = kernel
            .socket(SockType::Dgram, Protocol::Icmp)
            .expect("the second");
        Ok(Bed {
            kernel,
            device,
            socket,
            ping,
        })
    }

    /// The kernel does what is pending. Returns whether no ring was found broken.
    pub(crate) fn rest(&mut self) -> bool {
        let mut sound = true;
        for _ in 0..STEPS {
            match self.kernel.step() {
                Ok(true) => {}
                Ok(false) => return sound,
                Err(_) => sound = false,
            }
        }
        panic!("the kernel does not come to rest");
    }

    /// What processes do.
    pub(crate) fn process(&mut self, input: &mut Input<'_>) {
        let script = input.u8();
        let peer = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, script >> 4), u16::from(input.u8()));
        let octets = input.octets(200);
        let mut buffer = [0; 2048];
        // Each of them may fail.
        let _ = match script & 7 {
            0 => self.kernel.sendto(self.socket, octets, Some(peer)),
            1 => {
                let echo = [&[8, 0, 0, 0, 0, 0, 0, 1], octets].concat();
                self.kernel.sendto(self.ping, &echo, Some(peer))
            }
            2 => {
                let (octets, size) = (octets.repeat(8), input.u8().into());
                (self.kernel).sendto_segments(self.socket, &octets, Some(peer), size)
            }
            3 => (self.kernel.recvfrom(self.socket, &mut buffer)).map(|received| received.len),
            4 => (self.kernel.recvfrom(self.ping, &mut buffer)).map(|received| received.len),
            5 => self.kernel.connect(self.socket, peer).map(|()| 0),
            6 => {
                let on = script & 0x10 != 0;
                self.kernel.set_udp_gro(self.socket, on).map(|()| 0)
            }
            _ => {
                self.device.advance(u64::from(input.u16()) * 1_000_000);
                let _ = self.kernel.wait(Duration::ZERO);
                Ok(0)
            }
        };
    }

    /// Each packet that came in is accounted for.
    pub(crate) fn balance(&self) {
        let stats = self.kernel.stats();
        let (came, ended) = stats.rx_balance();
        assert_eq!(came, ended, "{stats:#?}");
    }
}

/// A frame: ARP, ICMP, or what the card gets ([`packet::frame`]).
pub(crate) fn frame(input: &mut Input<'_>, most: u16) -> Vec<u8> {
    let kind = input.u8();
    let mut frame = match kind & 3 {
        0 => {
            let peer = input.u8();
            let mut arp = [&packet::MAC[..], &[2, 0, 0, 0, 0, peer, 8, 6]].concat();
            arp.extend([
                0,
                1,
                8,
                0,
                6,
                4,
                0,
                1 + (kind >> 2 & 1),
                2,
                0,
                0,
                0,
                0,
                peer,
                10,
                77,
                0,
                peer,
            ]);
            arp.extend(packet::MAC);
            arp.extend([10, 77, 0, 2]);
            arp
        }
        1 => {
            let inner = input.octets(100);
            let mut icmp = vec![input.u8() & 15, input.u8() & 3, 0, 0];
            icmp.extend([0, 0, 0, 1]);
            icmp.extend(inner);
            let sum = packet::checksum(&icmp, 0);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            packet::ipv4(1, input.u8(), &icmp)
        }
        _ => return packet::frame(input, most),
    };
    if kind & 0x80 != 0 {
        for _ in 0..input.u8() % 4 {
            let at = usize::from(input.u8()) % frame.len();
            frame[at] = input.u8();
        }
        frame.truncate(frame.len() - usize::from(input.u8()) % frame.len());
    }
    frame
}

/// A header: nothing, or anything.
pub(crate) fn header(input: &mut Input<'_>) -> VirtioNetHdr {
    if input.u8() & 1 == 0 {
        return VirtioNetHdr::default();
    }
    let mut header = VirtioNetHdr {
        flags: input.u8(),
        gso_type: input.u8(),
        hdr_len: input.u8().into(),
        gso_size: input.u16(),
        csum_start: input.u8().into(),
        csum_offset: input.u8().into(),
        ..VirtioNetHdr::default()
    };
    if header.flags & 0x80 != 0 {
        (header.csum_start, header.csum_offset) = (input.u16(), input.u16());
    }
    header
}

/// Config space as it should be.
pub(crate) fn space(pairs: u8) -> [u8; 64] {
    let mut space = [0; 64];
    space[..6].copy_from_slice(&packet::MAC);
    (space[6], space[8], space[10], space[11]) = (1, pairs, 0xdc, 5);
    (space[17], space[18], space[20]) = (40, 128, 0x3f);
    space
}
