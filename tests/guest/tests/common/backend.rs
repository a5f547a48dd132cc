//! The smallest vhost-user-net backend: sends every frame back, and writes down what it is told.
//!
//! It runs in this process and uses the guest's memory object instead of mapping the descriptors;
//! its rings it walks by itself, when kicked. It goes on from the used index whatever base it is
//! given.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nic_guest::memory::GuestMemory;
use nic_guest::ring::raw::Descriptor;
use nic_guest::ring::{RingLayout, RingMemory};
use nic_guest::transport::QueueConfig;
use nic_guest::transport::message::{
    Connection, FLAG_NEED_REPLY, Message, MessageError, vring_state,
};
use nic_guest::virtio_net::features as f;
use vhost::vhost_user::message::FrontendReq as Req;

use super::rings::DeviceRing;

/// What a backend offers.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    pub features: u64,
    pub protocol: u64,
    pub pairs: u16,
    /// Flags of every reply; 5 is right.
    pub reply_flags: u32,
}

#[derive(Default)]
struct Vring {
    num: u16,
    ring: Option<DeviceRing>,
    addr: Option<RingLayout>,
    base: u32,
    call: Option<File>,
    kick: Option<File>,
    /// There may be something in the ring: it was kicked, or just started.
    pending: bool,
    enabled: bool,
}

/// A running backend.
pub struct Backend {
    thread: JoinHandle<Vec<String>>,
    die: Arc<AtomicBool>,
}

impl Backend {
    /// Serves one connection: the other end of it.
    pub fn start(memory: &Arc<GuestMemory>, offer: Offer) -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let die = Arc::new(AtomicBool::new(false));
        let state = State {
            connection: Connection::new(ours, Duration::from_millis(1)).unwrap(),
            memory: Arc::clone(memory),
            offer,
            vrings: (0..=2 * offer.pairs).map(|_| Vring::default()).collect(),
            log: Vec::new(),
            features: 0,
            channel: None,
        };
        let stop = Arc::clone(&die);
        let thread = std::thread::spawn(move || state.serve(&stop));
        (Self { thread, die }, theirs)
    }

    /// Dies as by SIGKILL; what it was told.
    pub fn kill(self) -> Vec<String> {
        self.die.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }

    /// Waits until the front-end closes; what it was told.
    pub fn finish(self) -> Vec<String> {
        self.thread.join().unwrap()
    }
}

struct State {
    connection: Connection,
    memory: Arc<GuestMemory>,
    offer: Offer,
    vrings: Vec<Vring>,
    log: Vec<String>,
    features: u64,
    channel: Option<File>,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl State {
    fn serve(mut self, die: &AtomicBool) -> Vec<String> {
        while !die.load(Ordering::Acquire) {
            match self.connection.recv() {
                Ok(message) => self.handle(&message),
                Err(MessageError::TimedOut) => {}
                Err(_) => break,
            }
            for pair in 0..usize::from(self.offer.pairs) {
                if self.has_work(2 * pair + 1) {
                    self.send_back(2 * pair, 2 * pair + 1);
                }
            }
            let control = 2 * usize::from(self.offer.pairs);
            if self.has_work(control) {
                self.answer_control(control);
            }
        }
        self.log
    }

    fn reply(&self, message: &Message, payload: &[u8]) {
        let flags = self.offer.reply_flags;
        let _ = self.connection.send(message.request, flags, payload, &[]);
    }

    /// Ring addresses may be guest addresses (User-mode Linux) or this process's.
    fn guest_addr(&self, addr: u64) -> u64 {
        let regions = self.memory.regions();
        let host = regions
            .iter()
            .find(|r| addr >= r.host_addr && addr < r.host_addr + r.size);
        host.map_or(addr, |region| addr - region.host_addr + region.guest_addr)
    }

    fn handle(&mut self, message: &Message) {
        let request = Req::try_from(message.request).unwrap();
        let body = &message.payload;
        let index = body.first().map_or(0, |&byte| usize::from(byte));
        let num = body
            .get(4..)
            .and_then(|bytes| bytes.first_chunk())
            .map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let mut line = format!("{request:?}");
        match request {
            Req::GET_FEATURES => self.reply(message, &self.offer.features.to_ne_bytes()),
            Req::GET_PROTOCOL_FEATURES => self.reply(message, &self.offer.protocol.to_ne_bytes()),
            Req::GET_QUEUE_NUM => {
                let count = 2 * u64::from(self.offer.pairs) + 1;
                self.reply(message, &count.to_ne_bytes());
            }
            Req::GET_MAX_MEM_SLOTS => self.reply(message, &32u64.to_ne_bytes()),
            Req::GET_CONFIG => {
                let mut config = [0; 64];
                config[..6].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
                config[6] = 1;
                config[8] = self.offer.pairs as u8;
                config[10..12].copy_from_slice(&1500u16.to_le_bytes());
                let (offset, len) = (word(body, 0) as u32 as usize, body.len() - 12);
                let answer = [&body[..12], &config[offset..offset + len]].concat();
                self.reply(message, &answer);
            }
            Req::GET_VRING_BASE => {
                line += &format!(" {index}");
                let vring = &mut self.vrings[index];
                vring.kick = None;
                let base = vring.ring.as_ref().map_or(vring.base, DeviceRing::base);
                self.reply(message, &vring_state(index as u32, base));
            }
            Req::GET_INFLIGHT_FD => {
                let file = File::open("/dev/null").unwrap();
                use std::os::fd::AsRawFd;
                let flags = self.offer.reply_flags;
                let fds = [file.as_raw_fd()];
                self.connection
                    .send(message.request, flags, body, &fds)
                    .unwrap();
            }
            Req::SET_FEATURES => {
                self.features = word(body, 0);
                line += &format!(" {:#x}", self.features);
            }
            Req::SET_MEM_TABLE => line += &format!(" {}", body[0]),
            Req::SET_BACKEND_REQ_FD => {
                self.channel = message.file.as_ref().map(|file| file.try_clone().unwrap());
                // A config change at once, which nobody has to wait for.
                let change = nic_guest::transport::message::encode(2, 1, &[]);
                self.channel.as_mut().unwrap().write_all(&change).unwrap();
            }
            Req::SET_VRING_NUM => {
                line += &format!(" {index}");
                self.vrings[index].num = num as u16;
            }
            Req::SET_VRING_BASE => {
                line += &format!(" {index}={num}");
                self.vrings[index].base = num;
            }
            Req::SET_VRING_ADDR => {
                line += &format!(" {index}");
                let addr = |at| self.guest_addr(word(body, at));
                let layout = RingLayout {
                    desc: addr(8),
                    used: addr(16),
                    avail: addr(24),
                };
                self.vrings[index].addr = Some(layout);
            }
            Req::SET_VRING_CALL => {
                line += &format!(" {index}");
                self.vrings[index].call = message.file.as_ref().map(|f| f.try_clone().unwrap());
            }
            Req::SET_VRING_ERR => line += &format!(" {index}"),
            Req::SET_VRING_KICK => {
                line += &format!(" {index}");
                self.start_ring(index, message.file.as_ref().unwrap());
            }
            Req::SET_VRING_ENABLE => {
                line += &format!(" {index}={num}");
                self.vrings[index].enabled = num != 0;
                self.vrings[index].pending = true;
            }
            _ => {}
        }
        let asked = matches!(
            request,
            Req::GET_FEATURES
                | Req::GET_PROTOCOL_FEATURES
                | Req::GET_QUEUE_NUM
                | Req::GET_MAX_MEM_SLOTS
                | Req::GET_CONFIG
                | Req::GET_VRING_BASE
                | Req::GET_INFLIGHT_FD
        );
        if message.flags & FLAG_NEED_REPLY != 0 && !asked {
            line += "?";
            self.reply(message, &0u64.to_ne_bytes());
        }
        self.log.push(line);
    }

    fn start_ring(&mut self, index: usize, kick: &File) {
        let packed = self.features & f::RING_PACKED != 0;
        let vring = &mut self.vrings[index];
        let layout = vring.addr.expect("addresses before the kick");
        let at = RingMemory::at_packed(&self.memory, vring.num, layout).unwrap();
        let mut queue = QueueConfig {
            index: index as u16,
            size: vring.num,
            layout,
            next: vring.base,
        };
        if !packed {
            let ring = RingMemory::at(&self.memory, vring.num, layout).unwrap();
            queue.next = ring.used.load_acquire_u16(2).into();
        } else if vring.base == 0 && at.desc.read_u16(14) & 0x8080 == 0 {
            // User-mode Linux's.
            queue.next = 0x8000_8000;
        } else if vring.base >> 16 == 0 {
            // DPDK's one half counts for both.
            queue.next |= vring.base << 16;
        }
        vring.ring = Some(DeviceRing::new(&self.memory, &queue, self.features));
        vring.kick = Some(kick.try_clone().unwrap());
        vring.pending = true;
    }

    /// Whether a ring was kicked or started since last asked.
    fn has_work(&mut self, index: usize) -> bool {
        let vring = &mut self.vrings[index];
        let kicked = vring
            .kick
            .as_mut()
            .is_some_and(|kick| kick.read(&mut [0; 8]).is_ok());
        std::mem::take(&mut vring.pending) || kicked
    }

    fn take(&mut self, index: usize) -> Option<(u16, Vec<Descriptor>)> {
        let vring = &mut self.vrings[index];
        let ring = vring.ring.as_mut()?;
        if vring.kick.is_none() || !vring.enabled {
            return None;
        }
        ring.take()
    }

    fn put(&mut self, index: usize, id: u16, len: u32) {
        let vring = &mut self.vrings[index];
        vring.ring.as_mut().unwrap().put(id, len);
        if let Some(call) = &mut vring.call {
            // A socket may be full: then an interrupt is pending anyway.
            let _ = call.write(&1u64.to_ne_bytes());
        }
    }

    fn send_back(&mut self, rx: usize, tx: usize) {
        while let Some((id, chain)) = self.take(tx) {
            let mut bytes = Vec::new();
            for desc in chain {
                let mut piece = vec![0; desc.len as usize];
                self.memory.read(desc.addr, &mut piece).unwrap();
                bytes.extend(piece);
            }
            self.put(tx, id, 0);
            bytes[..12].fill(0);
            bytes[10] = 1;
            let Some((id, chain)) = self.take(rx) else {
                continue;
            };
            let mut rest = bytes.as_slice();
            for desc in chain {
                let here = rest.len().min(desc.len as usize);
                self.memory.write(desc.addr, &rest[..here]).unwrap();
                rest = &rest[here..];
            }
            self.put(rx, id, bytes.len() as u32);
        }
    }

    fn answer_control(&mut self, index: usize) {
        while let Some((id, chain)) = self.take(index) {
            let ack = *chain.last().unwrap();
            self.memory.write(ack.addr, &[0]).unwrap();
            self.put(index, id, 1);
        }
    }
}
