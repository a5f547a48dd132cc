//! What the tests share: a NIC on a socket of its own, and guests for it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nic_backend::card::Card;
use nic_backend::clock::Clock;
use nic_backend::cpus::CpuList;
use nic_backend::patience::PollMode;
use nic_backend::server::{NicConfig, NicServer, ServerStatus};
use nic_backend::wire::fault::FaultSpec;
use nic_backend::wire::{PortFacts, WireSpec};
use nic_device::features::Features;
use nic_device::nic::Nic;
use nic_guest::memory::GuestMemory;
use nic_guest::transport::Transport;
use nic_guest::transport::vhost_user::VhostUser;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo, features};
use nic_model::port::PortConfig;
use nic_model::time::Nanos;
use nic_testbed::in_process::InProcess;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A NIC that listens in a directory of its own.
pub struct TestNic {
    /// The NIC; `None` while it is stopped.
    server: Option<NicServer>,
    config: NicConfig,
    _directory: tempfile::TempDir,
}

impl TestNic {
    /// Starts a NIC that is plugged into `wire`.
    pub fn new(wire: &str) -> Self {
        Self::with(wire, |_| {})
    }

    /// Starts a NIC that is plugged into `wire`, changed by `change`.
    pub fn with(wire: &str, change: impl FnOnce(&mut NicConfig)) -> Self {
        // Once is enough; later calls find it done.
        let _ = env_logger::builder().is_test(true).try_init();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut config = NicConfig {
            name: None,
            socket: directory.path().join("nic.sock"),
            port: PortConfig {
                // A worker that the machine does not let run must not lose what one that runs to completion would not.
                fifo: PortConfig::default().fifo * usize::from(workers()),
                ..PortConfig::default()
            },
            features: offered(1),
            wire: wire.parse().expect("a wire"),
            fault: FaultSpec::default(),
            workers: workers(),
            poll: PollMode::Never,
            cpus: CpuList::default(),
            trace: false,
            clock: Clock::start(),
        };
        change(&mut config);
        let server = NicServer::start(config.clone()).expect("a NIC");
        TestNic {
            server: Some(server),
            config,
            _directory: directory,
        }
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.config.socket.clone()
    }

    /// The running NIC.
    pub fn server(&self) -> &NicServer {
        self.server.as_ref().expect("it runs")
    }

    /// Its state and counts.
    pub fn status(&self) -> ServerStatus {
        self.server().status().expect("the worker runs")
    }

    /// Stops the NIC, as if it was killed: front-ends see their connection close.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Stops the NIC and starts it again on the same socket.
    pub fn restart(&mut self) {
        self.stop();
        self.server = Some(NicServer::start(self.config.clone()).expect("a NIC again"));
    }

    /// A guest of ours on the socket, with memory for each queue pair: most of it for super-frames to be sent.
    pub fn guest(&self, options: &ProbeOptions) -> VirtnetInfo<VhostUser> {
        let each = if options.features & features::SEGMENTATION == 0 {
            8 << 20
        } else {
            32 << 20
        };
        let memory = GuestMemory::new(usize::from(options.queue_pairs.min(8)) * each);
        let memory = memory.expect("guest memory");
        let transport = VhostUser::connect(&self.socket(), memory).expect("a connection");
        VirtnetInfo::probe(transport, options).expect("a device")
    }

    /// Asserts that every frame ended in exactly one counter.
    pub fn assert_balanced(&self) {
        let status = self.status();
        let port = &status.nic.port;
        assert_eq!(
            port.counters.receive_balance(port.rx_fifo_frames),
            0,
            "{status:#?}"
        );
        assert_eq!(
            port.counters.transmit_balance(port.tx_queued_frames),
            0,
            "{status:#?}"
        );
        assert!(port.counters.statistics_agree(), "{status:#?}");
    }
}

/// A driver that takes what is usual but super-frames, for which it would have buffers of 64 KiB each.
pub fn without_super_frames() -> ProbeOptions {
    ProbeOptions {
        features: features::USUAL & !features::SEGMENTATION,
        ..ProbeOptions::default()
    }
}

/// What the NICs of these tests offer.
pub fn offered(pairs: u16) -> Features {
    Features::supported(pairs)
}

/// Workers of each NIC, unless a test says otherwise: $NIC_WORKERS, else one.
fn workers() -> u16 {
    let said = std::env::var("NIC_WORKERS").ok();
    said.map_or(1, |said| said.parse().expect("NIC_WORKERS is a number"))
}

/// Guest memory in two regions with a hole between, as on a PC, the second at an offset of its file.
pub fn split_memory() -> Arc<GuestMemory> {
    GuestMemory::builder()
        .region(0, 16 << 20)
        .region_at_offset(1 << 32, 32 << 20, 1 << 20)
        .build()
        .expect("guest memory")
}

/// Waits until `done` says so; fails with `what` after [`PATIENCE`].
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Frame number `number`: broadcast, its number behind the header, then a pattern of its own, `len` octets.
pub fn numbered_frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.extend(number.to_be_bytes());
    let pattern = (0..).map(|at: u32| (at.wrapping_mul(31).wrapping_add(number)) as u8);
    let rest = len - frame.len();
    frame.extend(pattern.take(rest));
    frame
}

/// Sends `frames` on pair 0 and receives until as many have come back or nothing comes for [`PATIENCE`]. No more
/// are under way than there are receive buffers: else what comes back could overrun them.
pub fn exchange<T: Transport>(guest: &mut VirtnetInfo<T>, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut received = Vec::new();
    let mut to_send = frames.iter().peekable();
    let mut last = Instant::now();
    while received.len() < frames.len() {
        let before = (received.len(), to_send.len());
        let window = usize::from(guest.rq[0].vq.size());
        while frames.len() - to_send.len() < received.len() + window {
            let Some(frame) = to_send.peek() else { break };
            match guest.start_xmit(0, frame, &VirtioNetHdr::default()) {
                Ok(()) => to_send.next(),
                Err(_) => break,
            };
        }
        guest.flush(0);
        let taken = guest
            .poll(0, 64, |frame| received.push(frame.to_vec()))
            .expect("sound rings");
        if before != (received.len(), to_send.len()) {
            last = Instant::now();
        } else if last.elapsed() > PATIENCE {
            break;
        }
        if taken == 0 {
            guest.wait(Duration::from_millis(10));
        }
    }
    received
}

/// The path of a program of this workspace, built beside the tests.
pub fn program(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("the test's own path");
    let profile = tests
        .parent()
        .and_then(Path::parent)
        .expect("target/PROFILE/deps/TEST");
    let path = profile.join(name);
    assert!(
        path.exists(),
        "{} is not built: cargo build --workspace",
        path.display()
    );
    path
}

/// A guest on a card in this process, in virtual time.
pub fn virtual_guest(wire: &str, change: impl FnOnce(&mut PortConfig)) -> VirtnetInfo<InProcess> {
    virtual_guest_with(wire, &ProbeOptions::default(), change)
}

/// The same with a driver as `options` say.
pub fn virtual_guest_with(
    wire: &str,
    options: &ProbeOptions,
    change: impl FnOnce(&mut PortConfig),
) -> VirtnetInfo<InProcess> {
    let mut port = PortConfig::default();
    change(&mut port);
    let facts = PortFacts::of(&port);
    let spec: WireSpec = wire.parse().expect("a wire");
    let nic = Nic::new(&port, offered(port.queue_pairs));
    let card = Card::new(nic, spec.open(&facts).expect("a wire"), Nanos::ZERO);
    let memory = GuestMemory::new(32 << 20).expect("guest memory");
    let transport = InProcess::new(card, memory).expect("a mapping");
    let options = ProbeOptions {
        // No chance in here.
        rss_key: Some(nic_guest::virtio_net::toeplitz::VERIFICATION_KEY),
        ..options.clone()
    };
    VirtnetInfo::probe(transport, &options).expect("a device")
}

/// The program in a process of its own, with a loopback plug; killed by SIGKILL when this is dropped.
pub struct NicProcess(Child);

impl NicProcess {
    /// Starts it on `socket`; it takes a moment until it listens.
    pub fn start(socket: &Path) -> Self {
        let mut command = Command::new(program("vhost-user-nic"));
        command.args(["serve", "--wire", "loopback", "--socket"]);
        command.arg(socket).stdout(Stdio::null());
        // What hostile guests do is logged, a line each.
        command.env("RUST_LOG", "off");
        NicProcess(command.spawn().expect("a process"))
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for NicProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
