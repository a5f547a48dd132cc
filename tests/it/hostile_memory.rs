//! Front-ends that take guest memory away behind the NIC: that connection ends and says why, the process and the next guest live.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nic_backend::control::{Request, ask};
use nic_backend::server::NicConfig;
use nic_guest::memory::GuestMemory;
use nic_guest::ring::VIRTQ_DESC_F_WRITE as WRITE;
use nic_testbed::check::bed::{
    ACK, BEHIND, BUFFER, Bed, CONTROL, FAR, FRAME, HEADER, HOLE, RX, SEAM, TX, buffer,
};
use nic_testbed::check::front::Target;
use nic_testbed::check::ring::{Layout, Piece};
use serde_json::Value;

use crate::process::child::Serving;
use crate::support::{PATIENCE, TestNic, offered, wait_until};

/// Regions of the memory: rings are in the first, buffers in the last, and what stays is in the one between.
const RINGS: usize = 0;
const BUFFERS: usize = 2;
const STAYS: u64 = SEAM + 0x1000;
/// Entries of a ring.
const ENTRIES: u16 = 64;

/// What is behind the socket, and how it tells of itself.
struct Nic<'a> {
    socket: &'a Path,
    stats: &'a dyn Fn() -> Value,
}

impl Nic<'_> {
    fn target(&self) -> Target {
        let mut target = Target::new(self.socket, PATIENCE);
        target.learn().expect("a NIC");
        target.facts.answers = true;
        target
    }

    fn gone(&self) -> u64 {
        (self.stats)()["memory_gone"].as_u64().expect("a count")
    }

    /// A guest whose queues all work.
    fn guest_works(&self, layout: Layout) {
        let target = self.target();
        let mut bed = Bed::attach(&target, layout).expect("a NIC that goes on");
        for queue in [RX, TX, CONTROL] {
            bed.works(queue).expect("it works");
        }
    }
}

/// Memory that can be cut short.
fn memory() -> Arc<GuestMemory> {
    let memory = GuestMemory::builder()
        .region(0, SEAM as usize)
        .region(SEAM, (HOLE - SEAM) as usize)
        .region(FAR, BEHIND as usize)
        .unsealed();
    memory.build().expect("memory")
}

/// Makes something available on `queue` whose buffers are in the last region, without a kick.
fn prepare(bed: &mut Bed, queue: usize, at: u16) {
    let chain = match queue {
        RX => vec![Piece::new(buffer(RX), BUFFER, WRITE)],
        TX => vec![Piece::new(buffer(TX), HEADER + FRAME, 0)],
        _ => vec![Piece::new(buffer(CONTROL), 3, 0), Piece::new(ACK, 1, WRITE)],
    };
    bed.queues[queue].ring.offer(at, &chain);
}

/// Sends a frame that is where nothing is taken away; it comes back.
fn stimulate(bed: &mut Bed, at: u16) {
    let bytes = [&[0; HEADER as usize][..], &bed.frame()].concat();
    bed.memory.write(STAYS, &bytes).expect("it is there");
    bed.offer(TX, at, &[Piece::new(STAYS, HEADER + FRAME, 0)]);
}

/// A front-end in mid-traffic takes `region` away, and has the NIC touch it by way of `queue`.
fn attack(nic: &Nic, layout: Layout, region: usize, queue: usize) {
    let why = format!("{layout:?}, region {region}, queue {queue}");
    let before = nic.gone();
    let target = nic.target();
    let mut bed = Bed::attach_over(&target, memory(), layout, ENTRIES, 0).expect("a NIC");
    for queue in [RX, TX, CONTROL] {
        bed.works(queue).expect("it works");
    }
    if region == RINGS {
        bed.memory.truncate(region, 0).expect("it is not sealed");
        bed.kick(queue);
    } else {
        prepare(&mut bed, queue, 40);
        bed.memory.truncate(region, 0).expect("it is not sealed");
        match queue {
            RX => {
                bed.kick(RX);
                stimulate(&mut bed, 41);
            }
            queue => bed.kick(queue),
        }
    }
    wait_until(&why, || bed.front.raw.is_closed());
    assert_eq!(nic.gone(), before + 1, "{why}");
    let stopped = |name: &str| (nic.stats)()["queues"][name]["last_fault"] == "memory_gone";
    assert!(["rx0", "tx0"].into_iter().all(stopped), "{why}");
    drop(bed);
    nic.guest_works(layout);
}

fn attack_all(nic: &Nic, region: usize) {
    for layout in Layout::ALL {
        for queue in [RX, TX, CONTROL] {
            attack(nic, layout, region, queue);
        }
    }
}

/// A NIC with `workers` workers.
fn with_workers(workers: u16) -> TestNic {
    TestNic::with("loopback", |config: &mut NicConfig| {
        config.workers = workers;
        config.port.queue_pairs = workers.max(2);
        config.features = offered(config.port.queue_pairs);
    })
}

fn in_process(workers: u16, region: usize) {
    let nic = with_workers(workers);
    let socket = nic.socket();
    let stats = || serde_json::to_value(nic.status()).expect("JSON");
    let seen = Nic {
        socket: &socket,
        stats: &stats,
    };
    attack_all(&seen, region);
    nic.assert_balanced();
}

#[test]
fn rings_that_are_taken_away_end_the_connection_and_nothing_else() {
    in_process(1, RINGS);
    in_process(3, RINGS);
}

#[test]
fn buffers_that_are_taken_away_end_the_connection_and_nothing_else() {
    in_process(1, BUFFERS);
    in_process(3, BUFFERS);
}

#[test]
fn the_program_survives_and_says_in_one_line_what_was_done() {
    for workers in ["1", "2"] {
        let args = ["--wire", "loopback", "--queues", "2", "--workers", workers];
        let mut nic = Serving::start(&args);
        let (socket, control) = (nic.socket(), nic.control());
        let stats = || ask(&control, Request::Stats).expect("it lives");
        let seen = Nic {
            socket: &socket,
            stats: &stats,
        };
        attack_all(&seen, RINGS);
        attack_all(&seen, BUFFERS);
        assert!(nic.ended().is_none(), "{}", nic.log());
        let log = nic.log();
        let told: Vec<_> = log
            .lines()
            .filter(|line| line.contains("gone at"))
            .collect();
        assert_eq!(told.len(), 12, "{log}");
        for line in told {
            let why = "the front-end cut its memory file short, to 0 octets";
            let region = line.contains("of region 0x0+0x100000: ")
                || line.contains("of region 0x400000+0x800000: ");
            assert!(
                line.contains("WARN") && region && line.contains(why),
                "{line}"
            );
        }
        assert!(!log.contains("the driver broke it"), "{log}");
    }
}

#[test]
fn memory_is_taken_away_under_a_stream_of_frames() {
    for (workers, layout) in [(1, Layout::Split), (2, Layout::Packed)] {
        let nic = TestNic::with("generator:pps=20000", |config| {
            config.workers = workers;
            config.port.queue_pairs = 2;
            config.features = offered(2);
        });
        let socket = nic.socket();
        let mut target = Target::new(&socket, PATIENCE);
        target.learn().expect("a NIC");
        let mut bed = Bed::attach_over(&target, memory(), layout, 256, 0).expect("a NIC");
        // Frames come while this posts, sees what is used, and posts again; then half of the file goes.
        let mut seen = 0;
        for at in 0..255 {
            let addr = FAR + u64::from(BUFFER) * u64::from(at);
            bed.offer(RX, at, &[Piece::new(addr, BUFFER, WRITE)]);
        }
        wait_until("frames", || {
            while let Some((id, _)) = bed.queues[RX].ring.take_used() {
                seen += 1;
                let at = id as u16;
                let addr = FAR + u64::from(BUFFER) * u64::from(at);
                bed.offer(RX, at, &[Piece::new(addr, BUFFER, WRITE)]);
            }
            seen > 1000
        });
        let half = u64::from(BUFFER) * 128;
        bed.memory
            .truncate(BUFFERS, half)
            .expect("it is not sealed");
        wait_until("the end", || bed.front.raw.is_closed());
        assert_eq!(nic.status().memory_gone, 1);
        nic.assert_balanced();
        // Frames go on coming for the next one.
        let mut bed = Bed::attach(&target, layout).expect("a NIC that goes on");
        bed.offer(RX, 0, &[Piece::new(buffer(RX), BUFFER, WRITE)]);
        bed.await_used(RX, 0).expect("a frame");
    }
}

#[test]
fn memory_that_is_sealed_cannot_be_taken_away() {
    let nic = TestNic::new("loopback");
    let socket = nic.socket();
    let mut target = Target::new(&socket, PATIENCE);
    target.learn().expect("a NIC");
    target.facts.answers = true;
    let mut bed = Bed::attach(&target, Layout::Split).expect("a NIC");
    for region in [RINGS, BUFFERS] {
        bed.memory.truncate(region, 0).expect_err("it is sealed");
    }
    for queue in [RX, TX, CONTROL] {
        bed.works(queue).expect("it works");
    }
    assert_eq!(nic.status().memory_gone, 0);
}

#[test]
fn memory_that_is_taken_away_before_there_is_a_ring_harms_nobody() {
    let nic = TestNic::new("loopback");
    let socket = nic.socket();
    let mut target = Target::new(&socket, PATIENCE);
    target.learn().expect("a NIC");
    target.facts.answers = true;
    let bed = Bed::attach_over(&target, memory(), Layout::Split, ENTRIES, 0).expect("a NIC");
    for queue in [RX, TX, CONTROL] {
        bed.stop(queue).expect("it stops");
    }
    bed.memory.truncate(RINGS, 0).expect("it is not sealed");
    // Setting a ring up reads its used index.
    let _ = bed.place(RX).and_then(|()| bed.enable(RX, true));
    wait_until("the end", || bed.front.raw.is_closed());
    assert_eq!(nic.status().memory_gone, 1);
    drop(bed);
    let mut bed = Bed::attach(&target, Layout::Split).expect("a NIC that goes on");
    bed.works(TX).expect("it works");
}

#[test]
fn who_is_gone_itself_does_not_keep_the_next_one_waiting() {
    let nic = TestNic::new("loopback");
    let socket = nic.socket();
    for _ in 0..20 {
        let mut target = Target::new(&socket, PATIENCE);
        target.learn().expect("a NIC");
        let memory = memory();
        let bed = Bed::attach_over(&target, memory.clone(), Layout::Split, ENTRIES, 0);
        let bed = bed.expect("a NIC");
        memory.truncate(RINGS, 0).expect("it is not sealed");
        bed.kick(TX);
        // Whichever is seen first.
        drop(bed);
    }
    wait_until("a connection", || UnixStream::connect(&socket).is_ok());
    std::thread::sleep(Duration::from_millis(1));
    let mut target = Target::new(&socket, PATIENCE);
    target.learn().expect("a NIC");
    target.facts.answers = true;
    let mut bed = Bed::attach(&target, Layout::Split).expect("a NIC that goes on");
    bed.works(RX).expect("it works");
}
