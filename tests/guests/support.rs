//! A NIC as a child process, and guests as child processes to talk with.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nic_backend::control::{self, Request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long a guest may take for one step.
const PATIENCE: Duration = Duration::from_secs(180);

/// A NIC that runs as a process of its own.
pub struct Nic {
    child: Child,
    arguments: Vec<String>,
    prefix: Vec<String>,
    directory: tempfile::TempDir,
}

impl Nic {
    /// Starts `vhost-user-nic serve` with `arguments`.
    pub fn new(arguments: &[&str]) -> Self {
        Self::within(&[], arguments)
    }

    /// Starts it by way of the command `prefix`.
    pub fn within(prefix: &[&str], arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let own = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let (prefix, arguments): (Vec<String>, Vec<String>) = (own(prefix), own(arguments));
        let child = start(&prefix, directory.path(), &arguments);
        let nic = Nic {
            child,
            arguments,
            prefix,
            directory,
        };
        nic.wait_for_control();
        nic
    }

    /// Ends it with SIGKILL, as an accident would, and starts it again.
    pub fn kill_and_restart(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
        self.child = start(&self.prefix, self.directory.path(), &self.arguments);
        self.wait_for_control();
    }

    fn wait_for_control(&self) {
        let start = Instant::now();
        while control::ask(&self.control(), Request::Stats).is_err() {
            assert!(start.elapsed() < PATIENCE, "the NIC does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("nic.sock")
    }

    fn control(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    /// A directory to share with the guest.
    pub fn share(&self) -> PathBuf {
        let share = self.directory.path().join("share");
        fs::create_dir_all(&share).expect("a directory");
        share
    }

    /// The NIC's state and counts.
    pub fn stats(&self) -> Value {
        control::ask(&self.control(), Request::Stats).expect("the NIC answers")
    }

    /// Waits until the NIC's counts are as `reached` says, and returns them.
    pub fn wait_for(&self, what: &str, reached: &dyn Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let stats = self.stats();
            if reached(&stats) {
                return stats;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "waited too long for {what}: {stats:#}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Changes it as users do: `vhost-user-nic` with `arguments`, which has to succeed.
    pub fn change(&self, arguments: &[&str]) {
        let done = Command::new(program())
            .args(arguments)
            .arg("--control")
            .arg(self.control())
            .output()
            .expect("vhost-user-nic starts");
        assert!(done.status.success(), "{arguments:?}: {done:?}");
    }

    /// Brings the link up or down.
    pub fn link(&self, up: bool) {
        control::ask(&self.control(), Request::Link { up: Some(up) }).expect("the NIC answers");
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

fn start(prefix: &[String], directory: &Path, arguments: &[String]) -> Child {
    let mut words = prefix.to_vec();
    words.push(program().display().to_string());
    Command::new(&words[0])
        .args(&words[1..])
        .arg("serve")
        .arg("--socket")
        .arg(directory.join("nic.sock"))
        .arg("--control")
        .arg(directory.join("control.sock"))
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .expect("vhost-user-nic starts")
}

/// The program that users run.
fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("VHOST_USER_NIC") {
        return path.into();
    }
    let tests = std::env::current_exe().expect("the test's own path");
    let profile = tests
        .parent()
        .and_then(Path::parent)
        .expect("target/PROFILE/deps/TEST");
    let path = profile.join("vhost-user-nic");
    assert!(
        path.exists(),
        "{} is not built: cargo build --workspace",
        path.display()
    );
    path
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// How a guest is booted on `nics`: `script` with its options, up to the command.
pub fn boot(script: &str, nics: &[&Nic], options: &[&str]) -> Command {
    let sockets: Vec<_> = nics.iter().map(|nic| nic.socket()).collect();
    boot_on(script, &sockets, options)
}

/// The same on the sockets of other NICs.
pub fn boot_on(script: &str, sockets: &[PathBuf], options: &[&str]) -> Command {
    let mut command = Command::new(repository("scripts").join(script));
    command
        .args(sockets)
        .args(["--timeout", "600"])
        .args(options);
    command
}

/// Runs the shell script `job` in a guest to its end; fails unless it succeeds. Returns what it printed.
pub fn run(mut guest: Command, job: &str) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = guest
        .args(["--", "sh", "-ec", job])
        .stdin(Stdio::null())
        .output()
        .expect("the script starts");
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(
        status.success(),
        "{status}\n{stdout}\n--- standard error\n{stderr}"
    );
    stdout
}

/// A guest that runs a job step by step. The job says where it is with `say WORD` and goes on when it is answered.
pub struct Conversation {
    child: Child,
    lines: Receiver<String>,
    share: PathBuf,
    heard: Vec<String>,
}

impl Conversation {
    /// Boots a guest that runs `job` with `say` defined. `share` is the directory that it shares with us.
    pub fn start(mut guest: Command, share: &Path, job: &str) -> Self {
        let job = format!(
            "say() {{ echo \"said $1\"; until [ -e /share/$1 ]; do sleep 0.05; done; }}\n{job}"
        );
        let mut child = guest
            .arg("--share")
            .arg(share)
            .args(["--", "sh", "-ec", &job])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the script starts");
        let stdout = child.stdout.take().expect("it is piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Conversation {
            child,
            lines,
            share: share.to_owned(),
            heard: Vec::new(),
        }
    }

    /// The directory that it shares with us.
    pub fn share(&self) -> &Path {
        &self.share
    }

    /// Waits until the job says `word`, and returns the lines before it.
    pub fn hear(&mut self, word: &str) -> Vec<String> {
        let said = format!("said {word}");
        let mut before = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line == said => return before,
                Ok(line) => {
                    self.heard.push(line.clone());
                    before.push(line);
                }
                Err(error) => panic!("waiting for {word:?}: {error}; so far: {:#?}", self.heard),
            }
        }
    }

    /// Lets the job go on behind `say word`.
    pub fn answer(&self, word: &str) {
        fs::write(self.share.join(word), "").expect("the shared directory");
    }

    /// Waits for the job's end; fails unless it succeeded. Returns the lines since what was heard last.
    pub fn end(mut self) -> Vec<String> {
        self.finish()
    }

    fn finish(&mut self) -> Vec<String> {
        let rest: Vec<String> = self.lines.iter().collect();
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}: {:#?}\n{rest:#?}", self.heard);
        rest
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        // Where the test failed: the script ends its guest when it is asked to.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// A shell in a guest, to which commands are given one by one.
pub struct Shell {
    conversation: Conversation,
    console: PathBuf,
    jobs: u32,
}

impl Shell {
    /// Boots a guest. `share` is the directory that it shares with us.
    pub fn start(mut guest: Command, share: &Path) -> Self {
        let console = share.join("console");
        guest.arg("--console").arg(&console);
        let job = "i=0
            while say next$i; [ ! -e /share/end ]; do
                status=0; sh -ec \". /share/job$i\" 2>&1 || status=$?
                printf '\\nstatus %s\\n' $status
                i=$((i + 1))
            done";
        let mut conversation = Conversation::start(guest, share, job);
        conversation.hear("next0");
        Shell {
            conversation,
            console,
            jobs: 0,
        }
    }

    fn execute(&mut self, command: &str) -> (String, String) {
        let share = &self.conversation.share;
        let job = share.join(format!("job{}", self.jobs));
        fs::write(job, command).expect("the shared directory");
        self.conversation.answer(&format!("next{}", self.jobs));
        self.jobs += 1;
        let mut lines = self.conversation.hear(&format!("next{}", self.jobs));
        let last = lines.pop().expect("a status");
        (last, lines.join("\n"))
    }

    /// Runs `command`, which has to succeed, and returns what it said.
    pub fn run(&mut self, command: &str) -> String {
        let (status, said) = self.execute(command);
        assert_eq!(status, "status 0", "{command}\n{said}");
        said
    }

    /// Runs `command`, which has to fail, and returns what it said.
    pub fn fails(&mut self, command: &str) -> String {
        let (status, said) = self.execute(command);
        assert_ne!(status, "status 0", "{command}\n{said}");
        said
    }

    /// Runs `command`, which says a number.
    pub fn number(&mut self, command: &str) -> u64 {
        let said = self.run(command);
        let number = said.trim().parse();
        number.unwrap_or_else(|_| panic!("no number: {command}\n{said}"))
    }

    /// Ends the guest.
    pub fn end(mut self) {
        self.conversation.answer("end");
        self.conversation.answer(&format!("next{}", self.jobs));
        self.conversation.finish();
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let console = fs::read(&self.console).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            let lines: Vec<_> = console.lines().rev().take(40).collect();
            eprintln!("--- the guest's console ---");
            for line in lines.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// QEMU's monitor, on the socket of `--qmp`.
pub struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Connects to it.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("QEMU listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut monitor = Monitor(BufReader::new(stream));
        let greeting = monitor.read();
        assert!(!greeting["QMP"].is_null(), "{greeting}");
        monitor.execute("qmp_capabilities", "{}");
        monitor
    }

    /// Executes a command with `arguments` in JSON, which has to succeed.
    pub fn execute(&mut self, command: &str, arguments: &str) {
        let line = format!("{{\"execute\": \"{command}\", \"arguments\": {arguments}}}\n");
        let mut stream: &UnixStream = self.0.get_ref();
        stream.write_all(line.as_bytes()).expect("QEMU reads");
        // Events may come before.
        let answer = loop {
            let line = self.read();
            if line["event"].is_null() {
                break line;
            }
        };
        assert!(answer["error"].is_null(), "{command}: {answer}");
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("QEMU answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }
}

/// Fails in a guest whose driver has packed rings, or has none, other than `packed` says (VIRTIO 1.3, 6: bit 34).
pub fn has_packed_rings(packed: u8) -> String {
    format!("[ $(cut -c35 /sys/class/net/eth0/device/features) = {packed} ]\n")
}

/// 100 pings to the partner, of which none may be lost.
pub const PING: &str =
    "ping -c 100 -i 0.01 -W 5 10.77.0.1 | grep -q ' 100 received, 0% packet loss'\n";

/// 64 MiB to the partner's echo port and back, compared by their SHA-256.
pub const TRANSFER: &str = "
    head -c 67108864 /dev/urandom > /tmp/sent
    sent=$(sha256sum < /tmp/sent)
    back=$(socat -t 120 - TCP:10.77.0.1:7 < /tmp/sent | sha256sum)
    rm /tmp/sent
    [ \"$sent\" = \"$back\" ] || { echo \"sent $sent got $back\" >&2; exit 1; }
    echo transferred
";
