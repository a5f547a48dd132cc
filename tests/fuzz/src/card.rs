//! A whole card in a small memory, with a driver that does as the input says: what the targets of the card have in common.
//!
//! After each round it is asked of the card ([`oracle`]): that every chain was used exactly once, in order, with no more octets than it holds, or
//! its queue stopped with a counted fault at the first that is malformed; that nothing of memory changed but what was posted to be
//! written, and the used rings; that each frame is in one counter and each buffer in one place; and that the card comes to rest.

mod oracle;

use std::io;
use std::sync::{Arc, Mutex};

use nic_device::features::Features;
use nic_device::interrupt::Interrupt;
use nic_device::nic::Nic;
use nic_device::ring::Layout;
use nic_device::virtio_net::QueueSetup;
use nic_model::frame::{Checksum, Frame, Gso, Segmentation};
use nic_model::port::PortConfig;
use nic_model::time::Nanos;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::input::Input;
use super::memory::{Memory, address, length};
use super::packet;
use super::walk::{Buffer, Place};

/// Octets that each queue's ring may take.
const RING: u64 = 0x800;
/// Where indirect tables are.
const TABLES: u64 = 0x2800;
/// Where buffers are: behind all rings.
pub(crate) const BUFFERS: u64 = 0x3000;
/// The largest ring.
const LARGEST: u16 = 32;
/// Nanoseconds between two rounds: the line is idle by then.
const PAUSE: u64 = 100_000_000;

/// What an interrupt has the driver do at once, in the middle of a round.
type Pokes = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

/// An interrupt line whose driver acts while the card is at work.
struct Line {
    memory: Arc<GuestMemoryMmap>,
    pokes: Pokes,
}

impl Interrupt for Line {
    fn raise(&mut self) -> io::Result<()> {
        if let Some((addr, octets)) = self.pokes.lock().expect("one thread").pop() {
            let _ = self.memory.write(&octets, GuestAddress(addr));
        }
        Ok(())
    }
}

/// What the driver knows of a queue.
#[derive(Clone, Copy, Debug)]
struct Queue {
    layout: Layout,
    /// Split: how far it has made chains available.
    available: u16,
    /// Packed: where it writes next.
    place: Place,
    /// Whether the card has stopped it, since the driver broke it.
    stopped: bool,
}

/// The card and its driver.
pub(crate) struct Bed<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) nic: Nic,
    features: Features,
    queues: Vec<Queue>,
    now: Nanos,
    rx: Vec<Frame>,
    tx: Vec<Frame>,
    before: Vec<u8>,
    pokes: Pokes,
    /// Whether the last round's outcome could be told beforehand.
    foreseen: bool,
}

impl<'a> Bed<'a> {
    /// A card of `pairs` queue pairs whose driver accepted `features`.
    pub(crate) fn new(memory: &'a Memory, pairs: u16, features: Features, size: u16) -> Self {
        let config = PortConfig {
            queue_pairs: pairs,
            mac: nic_model::filter::MacAddress(packet::MAC),
            fifo: 80 * 1024,
            ..PortConfig::default()
        };
        let mut nic = Nic::new(&config, Features::supported(pairs));
        nic.port.set_super_frames(true);
        nic.device
            .set_memory(Some(memory.view.clone()))
            .expect("no queue yet");
        nic.set_features(features).expect("no queue yet");
        let mut bed = Bed {
            memory,
            nic,
            features,
            queues: Vec::new(),
            now: Nanos::ZERO,
            rx: Vec::new(),
            tx: Vec::new(),
            before: Vec::new(),
            pokes: Pokes::default(),
            foreseen: false,
        };
        for index in 0..=2 * pairs {
            let base = RING * u64::from(index);
            bed.queues.push(Queue {
                layout: bed.layout(base, size),
                available: 0,
                place: Place::from_word(0x8000),
                stopped: false,
            });
            bed.set_up(index.into());
        }
        bed
    }

    pub(crate) fn queues(&self) -> u16 {
        self.queues.len() as u16
    }

    pub(crate) fn packed(&self) -> bool {
        self.features.contains(Features::RING_PACKED)
    }

    fn layout(&self, base: u64, size: u16) -> Layout {
        let entries = u64::from(size);
        let driver = base + 16 * entries;
        let device = if self.packed() {
            driver + 4
        } else {
            (driver + 6 + 2 * entries).next_multiple_of(4)
        };
        Layout {
            size,
            descriptors: base,
            driver,
            device,
            base: None,
        }
    }

    /// The place of the ring's parts: the driver's and the device's.
    fn areas(&self, layout: &Layout) -> [(u64, u64); 3] {
        let entries = u64::from(layout.size);
        let (driver, device) = if self.packed() {
            (4, 4)
        } else {
            (6 + 2 * entries, 6 + 8 * entries)
        };
        [
            (layout.descriptors, 16 * entries),
            (layout.driver, driver),
            (layout.device, device),
        ]
    }

    fn set_up(&mut self, index: usize) {
        let line = || -> Option<Box<dyn Interrupt>> {
            Some(Box::new(Line {
                memory: self.memory.mapped.clone(),
                pokes: self.pokes.clone(),
            }))
        };
        let setup = QueueSetup {
            layout: self.queues[index].layout,
            enabled: true,
            interrupt: line(),
            error: line(),
        };
        self.queues[index].stopped = false;
        // It may be no ring.
        let _ = self.nic.rings().set_up(index, setup);
    }

    /// The driver writes a descriptor of queue `index`, or of a table.
    pub(crate) fn describe(&mut self, input: &mut Input<'_>, index: u16) {
        let queue = &mut self.queues[usize::from(index)];
        let (layout, kind) = (queue.layout, input.u8());
        let mut flags = match kind & 0xf {
            0xf => input.u16(),
            flags => u16::from(flags & 3),
        };
        let in_table = kind & 0x30 == 0x30;
        let at = if in_table {
            TABLES + 16 * u64::from(input.below(24))
        } else if self.features.contains(Features::RING_PACKED) {
            let place = queue.place;
            queue.place = place.after(1, layout.size);
            flags |= place.available();
            place.address(&layout)
        } else {
            layout.descriptors + 16 * u64::from(input.below(layout.size))
        };
        let (addr, len) = if kind & 0xc0 == 0xc0 {
            flags = 4 | (flags & 0xfffe);
            (
                TABLES + 16 * u64::from(input.below(24)),
                16 * u32::from(input.u8() % 24),
            )
        } else {
            (address(input), length(input))
        };
        let last = u16::from(input.u8());
        let fields = if self.packed() {
            [last, flags]
        } else {
            [
                flags,
                if last == 0xff {
                    last
                } else {
                    last % layout.size
                },
            ]
        };
        self.write(at, addr, len, fields);
    }

    fn write(&self, at: u64, addr: u64, len: u32, fields: [u16; 2]) {
        self.memory.put(at, &addr.to_le_bytes());
        self.memory.put(at + 8, &len.to_le_bytes());
        self.memory.put16(at + 12, fields[0]);
        self.memory.put16(at + 14, fields[1]);
    }

    /// Makes the chain at `head` of queue `index` available, if the ring is split.
    pub(crate) fn post_head(&mut self, index: u16, head: u16) {
        if self.packed() {
            return;
        }
        let queue = &mut self.queues[usize::from(index)];
        let slot = u64::from(queue.available % queue.layout.size.max(1));
        queue.available = queue.available.wrapping_add(1);
        let (driver, available) = (queue.layout.driver, queue.available);
        self.memory.put16(driver + 4 + 2 * slot, head);
        self.memory.put16(driver + 2, available);
    }

    /// Posts `buffers` as a chain of consecutive descriptors.
    pub(crate) fn post(&mut self, index: u16, buffers: &[Buffer]) {
        let packed = self.packed();
        let queue = &mut self.queues[usize::from(index)];
        let (layout, count) = (queue.layout, buffers.len() as u16);
        if count == 0 || count > layout.size {
            return;
        }
        let first = queue.place;
        queue.place = first.after(count, layout.size);
        // The first one's flags last.
        for at in (0..count).rev() {
            let place = first.after(at, layout.size);
            let Buffer {
                addr,
                len,
                writable,
            } = buffers[usize::from(at)];
            let flags = u16::from(at + 1 < count) | if writable { 2 } else { 0 };
            let fields = if packed {
                [first.index, flags | place.available()]
            } else {
                [flags, place.after(1, layout.size).index]
            };
            self.write(place.address(&layout), addr, len, fields);
        }
        self.post_head(index, first.index);
    }

    /// Cuts `len` octets at `addr` into buffers as the input says.
    pub(crate) fn pieces(
        input: &mut Input<'_>,
        mut addr: u64,
        len: usize,
        writable: bool,
    ) -> Vec<Buffer> {
        let (mut left, mut buffers) = (len as u32, Vec::new());
        while left > 0 {
            let piece = match input.u8() {
                0 => left,
                short if buffers.len() < 6 => u32::from(short).min(left),
                _ => left,
            };
            buffers.push(Buffer {
                addr,
                len: piece,
                writable,
            });
            addr += u64::from(piece);
            left -= piece;
        }
        buffers
    }

    /// Posts buffers to receive into.
    pub(crate) fn post_receive(&mut self, input: &mut Input<'_>, index: u16) {
        let addr = BUFFERS + u64::from(input.u16()) % 0x2000;
        let len = match input.u8() {
            long @ 0xc0.. => 64 * usize::from(long - 0xbf),
            short => 8 * usize::from(short) + 1,
        };
        let buffers = Self::pieces(input, addr, len.min(0x1000), true);
        self.post(index, &buffers);
    }

    /// Posts a packet to be sent; a long one has the same octets again and again.
    pub(crate) fn post_send(&mut self, input: &mut Input<'_>, index: u16) {
        let script = input.u8();
        let mut octets = vec![0; self.features.header_len()];
        if script & 1 != 0 {
            octets[0] = script >> 7;
            for octet in &mut octets[1..10] {
                *octet = input.u8();
            }
        }
        octets.extend(packet::frame(input, 0x800));
        let addr = BUFFERS + u64::from(input.u16()) % 0x1000;
        self.memory.put(addr, &octets);
        let mut buffers = Self::pieces(input, addr, octets.len(), false);
        if script & 2 != 0 {
            let again = Buffer {
                addr: BUFFERS,
                len: 0x2000,
                writable: false,
            };
            buffers.extend(std::iter::repeat_n(again, usize::from(script >> 2) % 12));
        }
        self.post(index, &buffers);
    }

    /// Frames come from the wire, as many as the card has room for.
    pub(crate) fn arrive(&mut self, input: &mut Input<'_>) {
        self.now = Nanos(self.now.0 + PAUSE);
        let room = self.nic.port.rx_room(self.now);
        let script = input.u8();
        for _ in 0..usize::from(script & 7) + 1 {
            if self.rx.len() >= room {
                break;
            }
            let big = (script & 8 != 0)
                .then(|| self.nic.port.pool.take_big_received())
                .flatten();
            let mut frame = match big {
                Some(mut big) => {
                    big.gso = Gso {
                        kind: match input.u8() & 3 {
                            0 => Segmentation::Tcpv6,
                            1 => Segmentation::Udp,
                            _ => Segmentation::Tcpv4,
                        },
                        headers: 0,
                        size: input.u16(),
                    };
                    big
                }
                None => self.nic.port.pool.take(),
            };
            let most = if frame.is_super() { 0xffb0 } else { 1500 };
            let octets = packet::frame(input, most);
            let mut whole = frame.fill(&octets);
            if !whole {
                // Longer than a frame may be.
                let room = frame.buffer_mut().len();
                whole = frame.fill(&octets[..room]);
                frame.excess = (octets.len() - room) as u32;
            }
            assert!(whole);
            if script & 0x10 != 0 {
                let (start, offset) = (input.u16(), input.u16());
                let inside = usize::from(start) + usize::from(offset) + 2 <= frame.len();
                // What a wire's header says is looked at there.
                if inside {
                    frame.checksum = Checksum::Partial { start, offset };
                }
            }
            frame.arrival = self.now;
            self.rx.push(frame);
        }
    }

    /// The driver writes anything anywhere; `at_once`, or when it is interrupted next.
    pub(crate) fn poke(&mut self, input: &mut Input<'_>, at_once: bool) {
        let addr = match input.u8() {
            ring @ 0..=0x9f => u64::from(ring) * 64 + u64::from(input.u8()) % 64,
            _ => address(input),
        };
        let octets = input.octets(15).to_vec();
        if at_once {
            self.memory.put(addr, &octets);
        } else {
            self.pokes.lock().expect("one thread").push((addr, octets));
        }
    }

    /// What a front-end or an operator does.
    pub(crate) fn manage(&mut self, input: &mut Input<'_>) {
        let index = input.below(self.queues());
        let at = usize::from(index);
        match input.below(12) {
            0 => {
                let position = self.nic.rings().tear_down(at);
                if let (Some(position), true) = (position, self.packed()) {
                    self.queues[at].layout.base = Some(position);
                }
            }
            1 => self.set_up(at),
            2 => self.nic.rings().enable(at, false),
            3 => self.nic.rings().enable(at, true),
            4 => {
                let memory = Some(self.memory.view.clone());
                let _ = self.nic.rings().set_memory(memory);
            }
            5 => {
                // Not the layout, which a front-end could not change either without setting rings up again.
                let layout = Features::RING_PACKED;
                let features =
                    Features::from_bits_truncate(input.u64()) & self.nic.device.offered();
                self.features = (features - layout) | (self.features & layout);
                let _ = self.nic.set_features(self.features);
            }
            6 => _ = self.nic.port.set_link(self.now, false),
            7 => _ = self.nic.port.set_link(self.now, true),
            8 => _ = self.nic.idle(self.now),
            9 => self.nic.rings().busy(),
            10 => {
                // A ring elsewhere, that may overlap others or not be in memory.
                let base = address(input);
                let size = match input.u8() {
                    0xff => input.u16(),
                    size => 1 << (size % 6),
                };
                if u64::from(size) > u64::from(LARGEST) * 4 {
                    return;
                }
                self.nic.rings().tear_down(at);
                let base = if input.u8() & 1 == 0 {
                    base & !15
                } else {
                    base
                };
                self.queues[at].layout = self.layout(base.min(u64::MAX / 2), size.max(1));
                self.queues[at].place = Place::from_word(0x8000);
                self.set_up(at);
            }
            _ => {
                self.nic.reset();
                let _ = self.nic.set_features(self.features);
                for index in 0..self.queues.len() {
                    self.queues[index].layout.base = None;
                    self.set_up(index);
                }
            }
        }
    }

    /// The driver leaves: nothing of the card's is anywhere else.
    pub(crate) fn end(&mut self) {
        self.pokes.lock().expect("one thread").clear();
        self.nic.reset();
        for _ in 0..4 {
            self.poll();
        }
        assert_eq!(
            (self.nic.queues.frames(), self.nic.port.pool.lent()),
            (0, 0),
            "frames are left"
        );
        assert!(!self.poll(), "there is something to do without a driver");
        self.memory.assert_canaries();
    }
}

/// Features: those that most drivers accept, or any.
pub(crate) fn features(input: &mut Input<'_>, pairs: u16) -> Features {
    let script = input.u8();
    let supported = Features::supported(pairs);
    let mut features = match script >> 4 {
        0..=3 => Features::VERSION_1 | Features::MRG_RXBUF | Features::CTRL_VQ | Features::CTRL_RX,
        4..=7 => supported,
        8..=11 => supported - Features::MRG_RXBUF - Features::GUEST_OFFLOADS,
        _ => Features::from_bits_truncate(input.u64()) & supported,
    };
    features.set(Features::RING_PACKED, script & 1 != 0);
    features.set(Features::INDIRECT_DESC, script & 2 != 0);
    features.set(Features::EVENT_IDX, script & 4 != 0);
    features.set(Features::IN_ORDER, script & 8 != 0);
    features
}
