//! A front-end that says what it likes: messages of the vhost-user protocol in any order, with any fields and descriptors, and the memory
//! and the rings that come with them. Mostly the card runs on the thread that handles the messages or kicks it, so that an execution takes
//! little time; the others have a NIC with its threads, one worker or several.
//!
//! Each connection ends, whatever was said, and the next one is served; the process holds no more descriptors than before.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nic_backend::clock::Clock;
use nic_backend::cpus::CpuList;
use nic_backend::patience::PollMode;
use nic_backend::server::{NicConfig, NicServer};
use nic_backend::wire::WireSpec;
use nic_backend::wire::fault::FaultSpec;
use nic_device::features::Features;
use nic_guest::memory::{GuestMemory, RegionInfo};
use nic_guest::transport::message::{
    Connection, FLAG_NEED_REPLY, FLAG_VERSION, VRING_NOFD, config, memory_region, memory_table,
    single_region, vring_addr, vring_state,
};
use nic_model::port::PortConfig;
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{MsgFlags, recv};
use vhost::vhost_user::message::FrontendReq as Req;

use super::input::Input;

/// Queue pairs of each NIC.
const PAIRS: u16 = 3;
/// Workers of a NIC at most.
const WORKERS: u16 = 3;
/// Of the inputs that ask for workers, one in so many has some: by the sum of its octets.
const SELDOM: u32 = 16;
/// Octets of the guest's memory.
const MEMORY: u64 = 0x1_0000;
/// What a front-end does before it goes, at most.
const STEPS: usize = 64;
/// How long the NIC may take for something.
const PATIENCE: Duration = Duration::from_secs(10);
/// After so many connections the process's descriptors are counted.
const COUNTED: usize = 64;
/// Octets that each ring may take.
const RING: u64 = 0x800;

/// The NICs, which are the same for all inputs.
struct Attacked {
    /// By their workers.
    servers: Vec<NicServer>,
    connections: AtomicUsize,
    /// Descriptors of the process after the first connection.
    held: AtomicUsize,
    _directory: tempfile::TempDir,
}

fn attacked() -> &'static Attacked {
    static ATTACKED: OnceLock<Attacked> = OnceLock::new();
    ATTACKED.get_or_init(|| {
        // The NIC says what it makes of it, to who asks.
        if std::env::var_os("RUST_LOG").is_some() {
            let _ = env_logger::try_init();
        }
        let directory = tempfile::tempdir().expect("a directory");
        let config = |workers: u16| NicConfig {
            name: None,
            socket: directory.path().join(format!("nic-{workers}.sock")),
            port: PortConfig {
                queue_pairs: PAIRS,
                ..PortConfig::default()
            },
            features: Features::supported(PAIRS),
            wire: WireSpec::Loopback,
            fault: FaultSpec::default(),
            workers,
            poll: PollMode::Never,
            cpus: CpuList::default(),
            trace: false,
            clock: Clock::start(),
        };
        // libFuzzer's clock interrupts whatever thread has not said that it must not; the crate below takes that for an error.
        let alarm = SigSet::from(Signal::SIGALRM);
        alarm.thread_block().expect("it can be blocked");
        let servers = (0..=WORKERS).map(|workers| NicServer::start(config(workers)));
        let servers = servers.collect::<Result<_, _>>().expect("NICs");
        alarm.thread_unblock().expect("it can be unblocked");
        Attacked {
            servers,
            connections: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            _directory: directory,
        }
    })
}

/// Descriptors that the process has, but for pipes: those are a sanitizer's, to who knows the names of functions.
fn descriptors() -> usize {
    let all = fs::read_dir("/proc/self/fd").expect("it is there");
    let is_pipe = |entry: &fs::DirEntry| {
        let to = fs::read_link(entry.path()).unwrap_or_default();
        to.to_string_lossy().starts_with("pipe:")
    };
    all.flatten().filter(|entry| !is_pipe(entry)).count()
}

/// The same once nobody opens or closes any: what the NIC had for a connection goes just after that is closed.
fn settled() -> usize {
    loop {
        let before = descriptors();
        std::thread::sleep(Duration::from_millis(20));
        if descriptors() == before {
            return before;
        }
    }
}

/// A front-end.
struct Front<'a> {
    nic: &'a NicServer,
    /// Whether that has a thread that hears of kicks.
    threaded: bool,
    connection: Connection,
    memory: Arc<GuestMemory>,
    region: RegionInfo,
    /// Octets of it that are left: behind them, this process must not touch it either.
    left: u64,
    /// What comes with messages: eventfds, a socket, the memory.
    fds: Vec<OwnedFd>,
}

/// Runs the target.
///
/// # Panics
/// If the NIC does what it must not.
pub fn run(data: &[u8]) {
    let nic = attacked();
    let mut input = Input::new(data);
    let sum: u32 = data.iter().copied().map(u32::from).sum();
    let workers = match input.u8() {
        // What threads do is never twice the same, and would be taken for something new each time: what becomes of such an input is seldom
        // one of them.
        script @ 0xf0.. if sum.is_multiple_of(SELDOM) => {
            usize::from(1 + u16::from(script) % WORKERS)
        }
        _ => 0,
    };
    let server = &nic.servers[workers];
    let mut front = Front::connect(server, workers > 0);
    for _ in 0..STEPS {
        if input.is_empty() || !front.step(&mut input) {
            break;
        }
    }
    front.leave();
    assert!(server.status().is_ok(), "the NIC has ended");
    let count = 1 + nic.connections.fetch_add(1, Ordering::Relaxed);
    if count == 1 {
        nic.held.store(settled(), Ordering::Relaxed);
    } else if count.is_multiple_of(COUNTED) {
        // What the NIC had for the connection goes just after that is closed.
        let (before, begin) = (nic.held.load(Ordering::Relaxed), Instant::now());
        while descriptors() > before {
            assert!(begin.elapsed() < PATIENCE, "more descriptors than {before}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl<'a> Front<'a> {
    /// Connects, and is served: whatever the one before has done.
    fn connect(nic: &'a NicServer, threaded: bool) -> Self {
        let stream = UnixStream::connect(nic.socket()).expect("it listens");
        let connection = Connection::new(stream, PATIENCE).expect("a timeout is set");
        connection
            .ask_u64(Req::GET_FEATURES)
            .expect("it is served, as the one before was");
        let memory = GuestMemory::builder().region(0, MEMORY as usize);
        let memory = memory.unsealed().build().expect("memory");
        let event = || OwnedFd::from(EventFd::new().expect("an eventfd"));
        let (socket, _) = UnixStream::pair().expect("two sockets");
        Front {
            nic,
            threaded,
            connection,
            region: memory.regions()[0],
            memory,
            left: MEMORY,
            fds: vec![event(), event(), socket.into()],
        }
    }

    /// Goes, and the NIC notices.
    fn leave(self) {
        // It may have ended the connection already.
        let _ = self.connection.stream().shutdown(Shutdown::Write);
        let (mut stream, mut answers) = (self.connection.stream(), [0; 4096]);
        loop {
            match stream.read(&mut answers) {
                Ok(0) => break,
                // It had not read all that was said.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("the connection stays: {error}"),
                Ok(_) => {}
            }
        }
    }

    fn fd(&self, choice: u8) -> RawFd {
        let fd = self.fds.get(usize::from(choice % 4));
        fd.map_or(self.region.fd, AsRawFd::as_raw_fd)
    }

    /// Descriptors that come with a message: mostly as many as should.
    fn along(&self, input: &mut Input<'_>, right: Option<RawFd>) -> Vec<RawFd> {
        match input.u8() {
            script @ 0xe0.. => vec![self.fd(input.u8()); usize::from(script & 0x1f) * 2],
            _ => right.into_iter().collect(),
        }
    }

    /// Sends a message. Returns whether the NIC may still read.
    fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) -> bool {
        let sent = self.connection.send(request, flags, payload, fds).is_ok();
        // What is answered is read, so that nobody waits for us.
        let (socket, mut answers) = (self.connection.stream().as_raw_fd(), [0; 4096]);
        while matches!(recv(socket, &mut answers, MsgFlags::MSG_DONTWAIT), Ok(1..)) {}
        sent
    }

    /// A region of the memory, or of some other place.
    fn some_region(&self, input: &mut Input<'_>) -> Vec<u8> {
        let mut region = self.region;
        let shape = input.u8();
        if shape & 1 != 0 {
            region.guest_addr = u64::from(input.u16()) << 12;
        }
        if shape & 2 != 0 {
            region.size = u64::from(input.u16()) << (shape >> 4);
        }
        if shape & 4 != 0 {
            region.mmap_offset = u64::from(input.u16());
        }
        let user = match shape & 8 {
            0 => region.host_addr,
            _ => input.u64(),
        };
        memory_region(&region, user)
    }

    /// Where something may be: in the memory, as the front-end sees it.
    fn address(&self, input: &mut Input<'_>, usual: u64) -> u64 {
        match input.u8() {
            0..=0xdf => self.region.host_addr + usual,
            0xe0..=0xf7 => self.region.host_addr + u64::from(input.u16()),
            _ => input.u64(),
        }
    }

    /// One step. Returns whether there may be another.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        let script = input.u8();
        match script & 0xf {
            0 => self.attach(input),
            1 => {
                let octets = input.octets(64).to_vec();
                self.connection.send_bytes(&octets, &[]).is_ok()
            }
            2 | 3 => {
                let (at, octets) = (u64::from(input.u16()), input.octets(255).to_vec());
                if at + octets.len() as u64 <= self.left {
                    self.memory.write(at, &octets).expect("its own memory");
                }
                true
            }
            4 => {
                let event = &self.fds[usize::from(script >> 4) % 2];
                let _ = nix::unistd::write(event, &1u64.to_ne_bytes());
                // Whoever asks something of it runs it.
                assert!(
                    self.threaded || self.nic.faults().is_ok(),
                    "the NIC has ended"
                );
                true
            }
            5 if script >= 0xf0 => {
                // What the NIC touches from now on may not be there.
                self.left = self.left.min(u64::from(input.u16()) & !0xfff);
                self.memory.truncate(0, self.left).expect("its own file");
                true
            }
            _ => {
                let flags = match script >> 4 {
                    0..=7 => FLAG_VERSION,
                    8..=14 => FLAG_VERSION | FLAG_NEED_REPLY,
                    _ => input.u32(),
                };
                self.message(input, flags)
            }
        }
    }

    /// What a front-end says to have a queue served, with some of it wrong.
    fn attach(&mut self, input: &mut Input<'_>) -> bool {
        let queue = u32::from(input.u8()) % (2 * u32::from(PAIRS) + 2);
        let mut features = Features::VERSION_1 | Features::PROTOCOL_FEATURES | Features::MRG_RXBUF;
        features |= Features::from_bits_truncate(input.u64()) & Features::supported(PAIRS);
        let region = memory_region(&self.region, self.region.host_addr);
        let base = RING * u64::from(queue);
        let (kick, call) = (self.fd(0), self.fd(1));
        let addresses = [0, 0x600, 0x400].map(|part| self.address(input, base + part));
        let size = 1 << (input.u8() % 6);
        let index = |fd: u64| (u64::from(queue) | fd).to_ne_bytes().to_vec();
        let [desc, used, avail] = addresses;
        let said = [
            (Req::SET_OWNER, vec![], vec![]),
            (
                Req::SET_FEATURES,
                features.bits().to_ne_bytes().to_vec(),
                vec![],
            ),
            (
                Req::SET_MEM_TABLE,
                memory_table(&[region]),
                vec![self.region.fd],
            ),
            (Req::SET_VRING_NUM, vring_state(queue, size), vec![]),
            (
                Req::SET_VRING_BASE,
                vring_state(queue, input.u8().into()),
                vec![],
            ),
            (
                Req::SET_VRING_ADDR,
                vring_addr(queue, 0, desc, used, avail, 0),
                vec![],
            ),
            (Req::SET_VRING_CALL, index(0), vec![call]),
            (Req::SET_VRING_KICK, index(0), vec![kick]),
            (Req::SET_VRING_ENABLE, vring_state(queue, 1), vec![]),
        ];
        let left_out = usize::from(input.u8());
        said.iter()
            .enumerate()
            .filter(|(at, _)| *at != left_out)
            .all(|(_, (request, payload, fds))| {
                self.send((*request).into(), FLAG_VERSION, payload, fds)
            })
    }

    /// Any message.
    fn message(&mut self, input: &mut Input<'_>, flags: u32) -> bool {
        let number = u32::from(input.u8() % 44);
        let queue = u32::from(input.u8() % 8);
        let (payload, fd) = match Req::try_from(number) {
            Ok(Req::SET_FEATURES | Req::SET_PROTOCOL_FEATURES) => {
                (input.u64().to_ne_bytes().to_vec(), None)
            }
            Ok(Req::SET_MEM_TABLE) => {
                let regions: Vec<_> = (0..=input.u8() % 3)
                    .map(|_| self.some_region(input))
                    .collect();
                let fds = vec![self.region.fd; regions.len()];
                let payload = memory_table(&regions);
                return self.send(number, flags, &payload, &fds);
            }
            Ok(Req::ADD_MEM_REG | Req::REM_MEM_REG) => {
                let region = self.some_region(input);
                let fd = (number == u32::from(Req::ADD_MEM_REG)).then_some(self.region.fd);
                (single_region(&region), fd)
            }
            Ok(
                Req::SET_VRING_NUM
                | Req::SET_VRING_BASE
                | Req::SET_VRING_ENABLE
                | Req::GET_VRING_BASE,
            ) => (vring_state(queue, input.u16().into()), None),
            Ok(Req::SET_VRING_ADDR) => {
                let base = RING * u64::from(queue);
                let [desc, used, avail] =
                    [0, 0x600, 0x400].map(|part| self.address(input, base + part));
                let payload = vring_addr(queue, input.u8().into(), desc, used, avail, 0);
                (payload, None)
            }
            Ok(Req::SET_VRING_KICK | Req::SET_VRING_CALL | Req::SET_VRING_ERR) => {
                let choice = input.u8();
                let none = choice & 0xc0 == 0xc0;
                let word = u64::from(queue) | if none { VRING_NOFD } else { 0 };
                let fd = (!none).then(|| self.fd(choice));
                (word.to_ne_bytes().to_vec(), fd)
            }
            Ok(Req::GET_CONFIG | Req::SET_CONFIG) => {
                let octets = input.octets(80).to_vec();
                (config(input.u8().into(), 0, &octets), None)
            }
            Ok(Req::SET_BACKEND_REQ_FD) => (vec![], Some(self.fd(2))),
            _ => (input.octets(64).to_vec(), None),
        };
        let fds = self.along(input, fd);
        self.send(number, flags, &payload, &fds)
    }
}
