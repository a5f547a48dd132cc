//! A worker without a thread: who asks something of it runs it. For tests.
//!
//! Its time is its own. It stands while there is something to do, and goes on at once to what comes next when there is not: so nobody
//! waits, and what is done depends on what was asked, and on when the guest writes and kicks, but on no clock.

use std::sync::Mutex;
use std::time::Duration;

use super::{Body, Ended, Time, Worker};

/// Rounds that it makes at a time.
const ROUNDS: usize = 1_000;

/// How far its time goes at a time: what a line can hold has come by then, and whoever was told to pause goes on.
const AHEAD: Duration = Duration::from_millis(10);

/// The worker, which whoever asks has to himself.
pub(super) struct Here<B>(Mutex<Worker<B>>);

impl<B: Body> Here<B> {
    pub(super) fn new(worker: Worker<B>) -> Self {
        Here(Mutex::new(worker))
    }

    /// Hears of kicks and does what there is to do, then `job`, and then what comes of it.
    pub(super) fn call<R>(&self, job: impl FnOnce(&mut Worker<B>) -> R) -> Result<R, Ended> {
        // One that panicked has ended as one that was stopped.
        let mut worker = self.0.lock().map_err(|_| Ended::Gone)?;
        if worker.stopping {
            return Err(Ended::Gone);
        }
        if worker.wait(Some(Duration::ZERO)) || worker.spinning {
            worker.come_to_rest();
        }
        let result = job(&mut worker);
        worker.spinning = worker.polls();
        if !worker.stopping {
            worker.come_to_rest();
        }
        Ok(result)
    }
}

impl<B: Body> Worker<B> {
    /// As [`Worker::run`], until it would sleep on for long.
    fn come_to_rest(&mut self) {
        let end = self.now() + AHEAD;
        let mut asked = true;
        for _ in 0..ROUNDS {
            let now = self.now();
            if self.body.round(now) {
                if std::mem::take(&mut asked) {
                    self.body.rings().busy();
                }
                continue;
            }
            if !self.spinning {
                asked = true;
                let ready = self.body.idle(now);
                if ready || self.body.rings().device.memory_is_gone() {
                    continue;
                }
            }
            match self.body.next_deadline(now) {
                Some(due) if due > now && now < end => self.time = Time::Own(due.min(end)),
                _ => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use nic_device::features::Features;
    use nic_device::memory::GuestMemory;
    use nic_device::nic::Nic;
    use nic_device::ring::Layout;
    use nic_device::virtio_net::QueueSetup;
    use nic_model::port::PortConfig;
    use nix::sys::eventfd::EventFd;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use crate::card::{Card, Line};
    use crate::lane::Bell;
    use crate::wire::WireSpec;
    use crate::wire::testing::{facts, frame};
    use crate::worker::{Body, Ended, ServesRings, Worker, WorkerHandle, here};

    /// The first transmit queue.
    const TX: usize = 1;

    fn card() -> WorkerHandle<Card> {
        let bell = Arc::new(Bell::new().expect("a descriptor"));
        let make = |now| {
            let nic = Nic::new(&PortConfig::default(), Features::supported(1));
            let wire = WireSpec::Loopback.open(&facts(1500)).expect("a plug");
            Card::new(nic, wire, now)
        };
        here(bell, make).expect("a worker")
    }

    /// The time, and frames that are under way.
    fn state(card: &WorkerHandle<Card>) -> (u64, usize) {
        let state = |worker: &mut Worker<Card>| (worker.now().0, worker.body.port().pool.lent());
        card.call(state).expect("it goes on")
    }

    #[test]
    fn its_time_passes_with_what_is_due_and_not_otherwise() {
        let card = card();
        for _ in 0..3 {
            assert_eq!(state(&card), (0, 0), "nothing is due");
        }
        let send = |arrivals: &'static [u64]| {
            let sent = card.call(move |worker| {
                let now = worker.now();
                let (port, wire) = worker.body.plug();
                let frame = |&at| frame(&mut port.pool, now.0 + at, &[0xff; 60]);
                let mut frames = arrivals.iter().map(frame).collect();
                wire.transmit(now, &mut port.pool, &mut frames);
            });
            sent.expect("it goes on");
        };
        // They have come, and nobody took them, before anything else is asked.
        send(&[1_000, 2_000_000]);
        let (now, lent) = state(&card);
        assert!((2_000_000..2_100_000).contains(&now), "{now}");
        assert_eq!(lent, 0, "nothing is left on the line");
        // What is far off comes after a while of asking.
        send(&[25_000_000]);
        let came = (1..10).find(|_| state(&card).1 == 0);
        assert_eq!(came, Some(3), "10 ms when it was sent, and 10 ms each time");
        let (later, _) = state(&card);
        assert!((25_000_000..25_100_000).contains(&(later - now)), "{later}");
    }

    #[test]
    fn it_hears_of_kicks_and_looks_at_queues_without() {
        let card = card();
        let set_up = card.call(|worker| {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]);
            let memory = GuestMemory::new(Arc::new(memory.expect("memory")));
            let layout = Layout {
                size: 16,
                descriptors: 0,
                driver: 0x400,
                device: 0x600,
                base: None,
            };
            let setup = QueueSetup {
                layout,
                ..QueueSetup::default()
            };
            let mut rings = worker.body.rings();
            rings.set_memory(Some(Arc::new(memory)))?;
            rings.set_up(TX, setup).map(drop)
        });
        set_up
            .expect("it goes on")
            .expect("its memory has the ring");
        let event = EventFd::new().expect("an eventfd");
        let theirs = event.as_fd().try_clone_to_owned().expect("a descriptor");
        let kicks = || {
            let kicks = card.call(|worker| worker.body.nic.status().queues[TX].kicks);
            kicks.expect("it goes on")
        };
        let set = |kick: Option<OwnedFd>| {
            let set = card.call(move |worker| worker.set_kick(TX, kick.map(File::from)));
            set.expect("it goes on");
            card.call(|worker| worker.spinning).expect("it goes on")
        };
        assert!(!set(Some(theirs)));
        assert_eq!(kicks(), 0);
        for count in 1..4 {
            event.write(1).expect("room");
            assert_eq!((kicks(), kicks()), (count, count));
        }
        let (socket, _other) = UnixStream::pair().expect("two sockets");
        assert!(set(Some(socket.into())), "it cannot be kicked with that");
        event.write(1).expect("room");
        assert_eq!(kicks(), 3, "another one's by now");
        assert!(!set(None));
    }

    #[test]
    fn one_that_was_stopped_or_panicked_does_nothing_more() {
        let stopped = card();
        let stop = stopped.clone();
        assert_eq!(stop.call(Worker::stop), Ok(()));
        let panicked = card();
        let panics = || panicked.call(|_| panic!("as a test has it"));
        let unwound: Result<Result<(), _>, _> = catch_unwind(AssertUnwindSafe(panics));
        assert!(unwound.is_err());
        for gone in [stopped, panicked] {
            let asked = gone.call(|_| unreachable!("it has ended"));
            assert_eq!(asked, Err::<(), _>(Ended::Gone));
        }
    }
}
