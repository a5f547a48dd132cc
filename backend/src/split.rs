//! A card with several workers: the port has a thread of its own, with the wire and the control queue, and the workers have
//! the rings of the queue pairs, dealt out in turn.
//!
//! ```text
//! wire -> PortSide: PHY, MAC, filter, steering -> lane -> QueueSide: DMA, moderation, interrupt
//! wire <- PortSide: transmit turns, PHY        <- lane <- QueueSide: DMA, checksum
//! ```
//!
//! A flow has one queue, a queue has one worker, and a lane keeps its order; so a flow keeps its order. The port asks the
//! workers for what a control command needs and waits for them; they never wait for the port.

use std::sync::Arc;
use std::vec::Drain;

use nic_device::control::{self, Context, ControlCounters, HalfCounters, Pairs};
use nic_device::features::Features;
use nic_device::nic::NicStatus;
use nic_device::rings::{self, Rings};
use nic_device::virtio_net::{VirtioNet, virtqueue};
use nic_model::BURST;
use nic_model::frame::{Frame, Pool};
use nic_model::host::{Direction, QueueIndex};
use nic_model::moderation::Coalesce;
use nic_model::port::{Port, PortConfig};
use nic_model::queues::Queues;
use nic_model::time::Nanos;

use crate::card::{Line, Watch};
use crate::lane::{Bell, PortLane, WorkerLane, lane};
use crate::wire::Wire;
use crate::wire::fault::Injection;
use crate::worker::{Body, WorkerHandle};

/// The side of the line.
pub struct PortSide {
    port: Port,
    wire: Box<dyn Wire>,
    injection: Injection,
    rx: Vec<Frame>,
    /// Frames of one queue on their way between here and its lane.
    passing: Vec<Frame>,
    tx: Vec<Frame>,
    lanes: Vec<PortLane>,
    /// The control queue's ring, and no other.
    device: VirtioNet,
    /// For its ring: none of these has a frame.
    queues: Queues,
    control: ControlCounters,
    workers: Workers,
    /// Who hears of the link.
    pub watch: Option<Watch>,
}

/// The side of the host: some of the queue pairs.
pub struct QueueSide {
    queues: Queues,
    device: VirtioNet,
    lanes: Vec<WorkerLane>,
    pool: Pool,
}

/// The workers, by number; queue pairs are dealt out to them in turn.
struct Workers(Arc<[WorkerHandle<QueueSide>]>);

/// Which of `workers` workers serves queue pair `pair`.
#[must_use]
pub fn worker_of(pair: usize, workers: usize) -> usize {
    pair % workers
}

/// Lanes between the port's thread, which has the bell `port`, and workers with `bells`: the port's ends, and each worker's.
#[must_use]
pub fn lanes(
    config: &PortConfig,
    port: &Arc<Bell>,
    bells: &[Arc<Bell>],
) -> (Vec<PortLane>, Vec<Vec<WorkerLane>>) {
    let mut ours = Vec::new();
    let mut theirs: Vec<_> = bells.iter().map(|_| Vec::new()).collect();
    for pair in 0..config.queue_pairs {
        let worker = worker_of(pair.into(), bells.len());
        let bell = bells[worker].clone();
        let (here, there) = lane(QueueIndex(pair), config.fifo_depth(), port.clone(), bell);
        ours.push(here);
        theirs[worker].push(there);
    }
    (ours, theirs)
}

impl PortSide {
    /// A port as `config` says, plugged into `wire`.
    #[must_use]
    pub fn new(
        config: &PortConfig,
        features: Features,
        wire: Box<dyn Wire>,
        now: Nanos,
        lanes: Vec<PortLane>,
        workers: Arc<[WorkerHandle<QueueSide>]>,
    ) -> Self {
        let mut side = PortSide {
            port: Port::new(config),
            wire,
            injection: Injection::default(),
            rx: Vec::with_capacity(BURST),
            passing: Vec::with_capacity(BURST),
            tx: Vec::with_capacity(BURST),
            lanes,
            device: VirtioNet::new(config.queue_pairs, features),
            queues: Queues::new(config),
            control: ControlCounters::default(),
            workers: Workers(workers),
            watch: None,
        };
        let link = side.port.phy.link();
        side.port.set_super_frames(side.wire.has_super_frames());
        side.port.set_flow_control(side.wire.waits());
        side.wire.link_changed(now, link);
        side
    }

    /// Takes what the workers are done with out of the account of the FIFOs.
    fn collect(&mut self) {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            self.passing.extend(std::iter::from_fn(|| lane.delivered()));
            let queue = QueueIndex(index as u16);
            self.port.release(queue, self.passing.drain(..));
        }
    }

    fn receive(&mut self, now: Nanos) -> bool {
        let room = self.port.rx_room(now);
        if room > 0 {
            let pool = &mut self.port.pool;
            self.wire.receive(now, room, pool, &mut self.rx);
        }
        let came = !self.rx.is_empty();
        self.port.receive(now, &mut self.rx);
        for frame in self.rx.drain(..) {
            self.lanes[usize::from(frame.queue.0)].push(frame);
        }
        came
    }

    fn transmit(&mut self, now: Nanos) -> bool {
        let (lanes, passing, tx) = (&mut self.lanes, &mut self.passing, &mut self.tx);
        let worked = self.port.transmit(now, |port, queue, budget| {
            let lane = &mut lanes[usize::from(queue.0)];
            let fetched = lane.take(budget, port, passing);
            port.send(now, queue, passing, tx);
            fetched
        });
        self.port.send_control(now, &mut self.tx);
        if !self.tx.is_empty() {
            let pool = &mut self.port.pool;
            self.wire.transmit(now, pool, &mut self.tx);
        }
        worked
    }

    /// Does one command: it may have to ask every worker, and the line does not wait for more than that.
    fn do_commands(&mut self) -> bool {
        let (port, pairs) = (&mut self.port, &mut self.workers);
        control::poll(
            &mut self.device,
            &mut self.control,
            1,
            |device, commands, command| {
                let mut context = Context {
                    device,
                    port,
                    pairs,
                    commands,
                };
                control::execute(&mut context, command)
            },
        )
    }

    /// The card's state and counts, the workers' included. They are asked while the port stands still, so that each frame
    /// is in one place.
    pub fn status(&mut self) -> NicStatus {
        let mut queues = self.queues.counters().to_vec();
        let mut virtqueues = self.device.counters();
        let mut moderations = vec![None; virtqueues.len()];
        let mut all_rings = self.device.rings();
        for (number, worker) in self.workers.0.iter().enumerate() {
            let asked = worker.call(|worker| {
                let side = &worker.body;
                let moderation = rings::moderation(&side.queues, &side.device);
                let rings = side.device.rings();
                let counters = (side.queues.counters().to_vec(), side.device.counters());
                (counters, moderation, rings)
            });
            // One that has ended takes the process along.
            let Ok((counters, moderation, rings)) = asked else {
                continue;
            };
            for (pair, queue) in counters.0.into_iter().enumerate() {
                if worker_of(pair, self.workers.0.len()) != number {
                    continue;
                }
                queues[pair] = queue;
                for index in [2 * pair, 2 * pair + 1] {
                    if Some(index) != self.device.control_queue() {
                        virtqueues[index] = counters.1[index].clone();
                        moderations[index] = moderation[index];
                        all_rings[index] = rings[index];
                    }
                }
            }
        }
        NicStatus {
            port: self.port.status(&queues),
            features: self.device.acked().to_string(),
            queues: virtqueues,
            moderation: moderations,
            rings: all_rings,
            control: self.control,
        }
    }
}

impl Line for PortSide {
    fn port(&self) -> &Port {
        &self.port
    }

    fn plug(&mut self) -> (&mut Port, &mut Box<dyn Wire>) {
        (&mut self.port, &mut self.wire)
    }

    fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    fn injection(&mut self) -> (&mut Injection, &mut Port, &mut Box<dyn Wire>) {
        (&mut self.injection, &mut self.port, &mut self.wire)
    }

    fn wire(&self) -> &dyn Wire {
        &*self.wire
    }

    fn abandon(&mut self, queue: QueueIndex) {
        if !self.port.holds_back(queue) {
            return;
        }
        // With what waits in the lane behind it.
        let lane = &mut self.lanes[usize::from(queue.0)];
        while lane.take(BURST, &mut self.port, &mut self.passing).frames > 0 {}
        self.port.abandon(queue, &mut self.passing);
    }
}

impl Body for PortSide {
    fn round(&mut self, now: Nanos) -> bool {
        if self.port.phy.is_due(now) {
            self.advance_phy(now);
        }
        if self.injection.flaps() {
            self.flap(now);
        }
        if self.device.memory_is_gone() {
            self.device.let_go_of_memory();
        }
        self.collect();
        let received = self.receive(now);
        let sent = self.transmit(now);
        for lane in &mut self.lanes {
            lane.flush();
        }
        received | sent | self.do_commands()
    }

    fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        let port = self.port.next_deadline(now);
        let line = [self.wire_deadline(now), self.injection.next_deadline()];
        port.into_iter().chain(line.into_iter().flatten()).min()
    }

    fn idle(&mut self, now: Nanos) -> bool {
        let commanded = self.rings().idle(now, |_| false);
        // Whoever has been told to stop is to hear of it that there is room again.
        let paused = self.port.wire_is_paused() || self.port.next_control().is_some();
        let room = paused && self.lanes.iter_mut().any(PortLane::want_room);
        // While the line is busy its deadline wakes.
        let mut lanes = (0..).map(QueueIndex).zip(&self.lanes);
        let packets = lanes.any(|(queue, lane)| lane.has_packets() && self.port.tx_wants(queue));
        commanded | room | packets
    }

    fn rings(&mut self) -> Rings<'_> {
        Rings {
            queues: &mut self.queues,
            device: &mut self.device,
        }
    }

    fn line(&self) -> Option<&dyn Line> {
        Some(self)
    }
}

impl QueueSide {
    /// The queue pairs that have `lanes`, of a card as `config` says.
    #[must_use]
    pub fn new(config: &PortConfig, features: Features, lanes: Vec<WorkerLane>) -> Self {
        QueueSide {
            queues: Queues::new(config),
            device: VirtioNet::new(config.queue_pairs, features),
            lanes,
            pool: Pool::new(Port::buffer_size(config)),
        }
    }
}

impl Body for QueueSide {
    fn round(&mut self, now: Nanos) -> bool {
        if self.device.memory_is_gone() {
            self.device.let_go_of_memory();
        }
        let mut worked = false;
        for lane in &mut self.lanes {
            let queue = lane.queue;
            while let Some(frame) = lane.received() {
                self.queues.push_one(queue, frame);
                worked = true;
            }
            let give_back = |frames: Drain<'_, Frame>| lane.give_back(frames);
            let device = &mut self.device;
            worked |= self.queues.deliver(queue, now, now, device, give_back);
            // Before, so that buffers for super-frames never run out for good.
            lane.reclaim(&mut self.pool);
            if lane.has_room() {
                let fetched = (self.queues).fetch(queue, now, BURST, &mut self.pool, device);
                if fetched.frames > 0 {
                    lane.send(&mut self.pool, self.queues.fetched.drain(..));
                    worked = true;
                }
            }
            self.queues.expire_transmit(queue, now, device);
        }
        worked
    }

    fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        self.queues.next_deadline(now)
    }

    fn idle(&mut self, now: Nanos) -> bool {
        let mut ready = false;
        for lane in &self.lanes {
            let rx = 2 * usize::from(lane.queue.0);
            let starved = self.queues.starved(now, lane.queue);
            ready |= self.device.want_kicks(rx, starved);
            let stalled = self.queues.is_stalled(lane.queue, Direction::Transmit, now);
            let tx_wanted = lane.has_room() && self.pool.big_room() > 0 && !stalled;
            ready |= self.device.want_kicks(rx + 1, tx_wanted);
            ready |= lane.has_received();
        }
        ready
    }

    fn rings(&mut self) -> Rings<'_> {
        Rings {
            queues: &mut self.queues,
            device: &mut self.device,
        }
    }
}

impl Workers {
    /// Runs `job` on the worker of `queue`.
    fn ask<R: Send + 'static>(
        &self,
        queue: QueueIndex,
        job: impl FnOnce(&mut QueueSide, Nanos) -> R + Send + 'static,
    ) -> Option<R> {
        let worker = &self.0[worker_of(queue.0.into(), self.0.len())];
        // One that has ended takes the process along.
        worker
            .call(move |worker| {
                let now = worker.now();
                job(&mut worker.body, now)
            })
            .ok()
    }
}

impl Pairs for Workers {
    fn is_enabled(&self, index: usize) -> bool {
        let queue = QueueIndex((index / 2) as u16);
        self.ask(queue, move |side, _| side.device.is_enabled(index))
            .unwrap_or(false)
    }

    fn coalesce(&self, queue: QueueIndex, direction: Direction) -> Coalesce {
        self.ask(queue, move |side, _| {
            side.queues.moderator.of(queue, direction).coalesce()
        })
        .unwrap_or_default()
    }

    fn set_coalesce(&mut self, queue: QueueIndex, direction: Direction, coalesce: Coalesce) {
        self.ask(queue, move |side, now| {
            let moderation = side.queues.moderator.of_mut(queue, direction);
            moderation.set(coalesce, now);
        });
    }

    fn abandon(&mut self, queue: QueueIndex) -> Vec<Frame> {
        self.ask(queue, move |side, _| {
            let mut lanes = side.lanes.iter_mut();
            if let Some(lane) = lanes.find(|lane| lane.queue == queue) {
                while let Some(frame) = lane.received() {
                    side.queues.push_one(queue, frame);
                }
                side.queues.abandon(queue, |frames| lane.give_back(frames));
            }
        });
        // They come back by the lane.
        Vec::new()
    }

    fn switch_offloads_off(&mut self, off: Features) {
        for worker in self.0.iter() {
            // As above.
            let _ = worker.call(move |worker| worker.body.device.switch_offloads_off(off));
        }
    }

    fn counters(&self, queue: QueueIndex, direction: Direction) -> HalfCounters {
        self.ask(queue, move |side, _| HalfCounters {
            pair: side.queues.counters()[usize::from(queue.0)].clone(),
            virtqueue: side.device.counters_of(virtqueue(queue, direction)).clone(),
        })
        .unwrap_or_default()
    }

    fn set_coalesce_all(&mut self, direction: Direction, coalesce: Coalesce) {
        for worker in self.0.iter() {
            // As above.
            let _ = worker.call(move |worker| {
                let now = worker.now();
                let moderator = &mut worker.body.queues.moderator;
                moderator.set_all(direction, coalesce, now);
            });
        }
    }
}
