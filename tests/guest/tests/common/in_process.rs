//! A device in the driver's own process: what a test says is what it does.
//!
//! It shows what a transport without sockets looks like, and lets tests write any used element.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use nic_guest::memory::GuestMemory;
use nic_guest::ring::raw::{Descriptor, RawRing};
use nic_guest::transport::{QueueConfig, Transport, TransportError};

use super::rings::DeviceRing;

/// A queue as the device has it.
pub struct DeviceQueue {
    pub ring: RefCell<DeviceRing>,
    pub kicks: Cell<u64>,
    pub interrupts: Cell<u64>,
}

/// The device.
pub struct InProcess {
    pub memory: Arc<GuestMemory>,
    pub offered: u64,
    pub chosen: u64,
    pub config: [u8; 28],
    /// Config reads during which config space changes.
    pub torn_reads: u32,
    pub generation: u32,
    pub queues: Vec<Option<DeviceQueue>>,
    /// What the control queue answers; `None`: nothing, ever.
    pub ctrl_answer: Option<u8>,
    pub ctrl_index: u16,
    /// Commands that are refused: class and number.
    pub refused: Vec<(u8, u8)>,
    /// What follows the ack of a command that has an answer: made of class, number and data.
    pub reply: fn(u8, u8, &[u8]) -> Vec<u8>,
    /// Commands seen: class, command, data.
    pub commands: RefCell<Vec<(u8, u8, Vec<u8>)>>,
    /// Queues that are not stopped, or not taken back.
    pub no_stop: Vec<u16>,
    pub no_setup: Vec<u16>,
    /// Queues that interrupt while somebody waits: one a wait, the last first.
    pub coming: RefCell<Vec<u16>>,
}

impl InProcess {
    pub fn new(offered: u64) -> Self {
        let mut config = [0; 28];
        config[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        config[6] = 1;
        config[8] = 2;
        config[10..12].copy_from_slice(&1500u16.to_le_bytes());
        config[17] = 40;
        config[18] = 128;
        config[24] = 0xff;
        config[20..22].copy_from_slice(&0x1ffu16.to_le_bytes());
        Self {
            memory: GuestMemory::new(32 << 20).unwrap(),
            offered,
            chosen: 0,
            config,
            torn_reads: 0,
            generation: 0,
            queues: Vec::new(),
            ctrl_answer: Some(0),
            ctrl_index: 4,
            refused: Vec::new(),
            reply: |_, _, _| Vec::new(),
            commands: Vec::new().into(),
            no_stop: Vec::new(),
            no_setup: Vec::new(),
            coming: Vec::new().into(),
        }
    }

    pub fn queue(&mut self, index: u16) -> &mut DeviceQueue {
        self.queues[usize::from(index)].as_mut().unwrap()
    }

    /// The next available chain of a queue.
    pub fn take(&mut self, index: u16) -> Option<(u16, Vec<Descriptor>)> {
        self.queue(index).ring.get_mut().take()
    }

    /// Uses a chain without an honest word.
    pub fn put(&mut self, index: u16, head: u16, len: u32) {
        let queue = self.queue(index);
        queue.ring.get_mut().put(head, len);
        queue.interrupts.set(queue.interrupts.get() + 1);
    }

    /// Puts `bytes` into the next chain of a receive queue and uses it with `len`.
    pub fn receive(&mut self, index: u16, bytes: &[u8], len: u32) {
        let (head, chain) = self.take(index).expect("a receive buffer");
        let mut rest = bytes;
        for desc in chain {
            let here = rest.len().min(desc.len as usize);
            self.memory.dma_debug().device_access(desc.addr, here, true);
            self.memory.write(desc.addr, &rest[..here]).unwrap();
            rest = &rest[here..];
        }
        assert!(rest.is_empty(), "longer than the buffer");
        self.put(index, head, len);
    }

    fn serve_control(&self) {
        let Some(queue) = &self.queues[usize::from(self.ctrl_index)] else {
            return;
        };
        let mut ring = queue.ring.borrow_mut();
        while let Some((head, chain)) = ring.take() {
            // A kick, please, for the next one.
            ring.ask_for_kick();
            let mut bytes = Vec::new();
            for desc in chain.iter().filter(|desc| desc.flags & 2 == 0) {
                let mut piece = vec![0; desc.len as usize];
                self.memory
                    .dma_debug()
                    .device_access(desc.addr, piece.len(), false);
                self.memory.read(desc.addr, &mut piece).unwrap();
                bytes.extend(piece);
            }
            let (class, command, data) = (bytes[0], bytes[1], &bytes[2..]);
            let seen = (class, command, data.to_vec());
            self.commands.borrow_mut().push(seen);
            let Some(mut answer) = self.ctrl_answer else {
                continue;
            };
            let mut rest = (self.reply)(class, command, data);
            if self.refused.contains(&(class, command)) {
                (answer, rest) = (1, Vec::new());
            }
            rest.insert(0, answer);
            let (mut rest, len) = (&rest[..], rest.len());
            for desc in chain.iter().filter(|desc| desc.flags & 2 != 0) {
                let here = rest.len().min(desc.len as usize);
                self.memory.write(desc.addr, &rest[..here]).unwrap();
                rest = &rest[here..];
            }
            let len = (len - rest.len()) as u32;
            ring.put(head, len);
        }
    }
}

/// The descriptors of a chain, a table's included.
pub fn chain(memory: &Arc<GuestMemory>, raw: &RawRing, head: u16) -> Vec<Descriptor> {
    let mut desc = raw.desc(head);
    if desc.flags & 4 != 0 {
        let mut bytes = vec![0; desc.len as usize];
        memory.read(desc.addr, &mut bytes).unwrap();
        let word = |b: &[u8]| {
            b.iter()
                .rev()
                .fold(0u64, |n, &byte| n << 8 | u64::from(byte))
        };
        return bytes
            .chunks(16)
            .map(|b| {
                let (flags, next) = (word(&b[12..14]) as u16, word(&b[14..]) as u16);
                Descriptor::new(word(&b[..8]), word(&b[8..12]) as u32, flags, next)
            })
            .collect();
    }
    let mut chain = vec![desc];
    while desc.flags & 1 != 0 && chain.len() <= usize::from(raw.size()) {
        desc = raw.desc(desc.next);
        chain.push(desc);
    }
    chain
}

impl Transport for InProcess {
    fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    fn device_features(&mut self) -> Result<u64, TransportError> {
        Ok(self.offered)
    }

    fn set_driver_features(&mut self, features: u64) -> Result<(), TransportError> {
        self.chosen = features;
        Ok(())
    }

    fn read_config(&mut self, offset: u32, buf: &mut [u8]) -> Result<(), TransportError> {
        if self.torn_reads > 0 {
            self.torn_reads -= 1;
            self.generation += 1;
            self.config[5] += 1;
        }
        let at = offset as usize;
        buf.copy_from_slice(&self.config[at..at + buf.len()]);
        Ok(())
    }

    fn config_generation(&mut self) -> u32 {
        self.generation
    }

    fn setup_queue(&mut self, queue: &QueueConfig) -> Result<(), TransportError> {
        if self.no_setup.contains(&queue.index) {
            return Err(TransportError::refused("a queue", "no"));
        }
        let index = usize::from(queue.index);
        if self.queues.len() <= index {
            self.queues.resize_with(index + 1, || None);
        }
        let (kicks, interrupts) = (Cell::new(0), Cell::new(0));
        let ring = DeviceRing::new(&self.memory, queue, self.chosen);
        self.queues[index] = Some(DeviceQueue {
            ring: RefCell::new(ring),
            kicks,
            interrupts,
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
        if self.no_stop.contains(&index) {
            return Err(TransportError::refused("to stop a queue", "no"));
        }
        let queue = self.queues[usize::from(index)].take();
        Ok(queue.map_or(0, |queue| queue.ring.borrow().base()))
    }

    fn reset(&mut self) -> Result<(), TransportError> {
        self.queues.clear();
        Ok(())
    }

    fn kick(&self, index: u16) {
        let queue = self.queues[usize::from(index)].as_ref().unwrap();
        queue.kicks.set(queue.kicks.get() + 1);
        if index == self.ctrl_index {
            self.serve_control();
        }
    }

    fn take_interrupt(&self, index: u16) -> u64 {
        self.queues[usize::from(index)]
            .as_ref()
            .map_or(0, |queue| queue.interrupts.take())
    }

    fn wait_interrupt(&self, index: u16, _timeout: Duration) -> bool {
        self.queues[usize::from(index)]
            .as_ref()
            .is_some_and(|queue| queue.interrupts.get() > 0)
    }

    fn wait(&self, _timeout: Duration) -> bool {
        if let Some(index) = self.coming.borrow_mut().pop() {
            let queue = self.queues[usize::from(index)].as_ref().unwrap();
            queue.interrupts.set(queue.interrupts.get() + 1);
        }
        self.queues
            .iter()
            .flatten()
            .any(|queue| queue.interrupts.get() > 0)
    }
}
