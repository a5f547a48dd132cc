//! The backend's process: whether it lives, how it ended, and starting it again.
//!
//! With `--exec` it is a child, whose exit status tells. Without, the socket's peer credentials name the process that listens, and
//! `/proc` says whether that still runs. Either way a closed connection and a dead process are two things.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nic_guest::transport::message::connect;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;

use super::front::leave;

/// How long a process that is asked to end may take.
const GRACE: Duration = Duration::from_secs(2);

/// The process behind a socket.
pub struct Backend {
    socket: PathBuf,
    start: Option<Start>,
    child: Option<Child>,
    /// Who listened when the suite began: its number and when it was started.
    listener: Option<(i32, u64)>,
}

/// How to start it.
pub struct Start {
    /// What the shell is told.
    pub command: String,
    /// Where its output goes.
    pub log: Option<PathBuf>,
    /// How long it may take until it listens.
    pub patience: Duration,
}

impl Backend {
    /// The backend at `socket`, started if `start` says how.
    ///
    /// # Errors
    /// It does not start, or nobody listens.
    pub fn new(socket: &Path, start: Option<Start>) -> anyhow::Result<Self> {
        let mut backend = Backend {
            socket: socket.to_owned(),
            start,
            child: None,
            listener: None,
        };
        if backend.start.is_some() {
            backend.start_again()?;
        } else {
            backend.find_listener()?;
        }
        Ok(backend)
    }

    /// Whether [`Self::start_again`] can.
    #[must_use]
    pub fn restarts(&self) -> bool {
        self.start.is_some()
    }

    fn find_listener(&mut self) -> anyhow::Result<()> {
        let stream = connect(&self.socket, Duration::from_secs(1))
            .with_context(|| format!("nobody listens at {}", self.socket.display()))?;
        let pid = getsockopt(&stream, PeerCredentials).map_or(0, |peer| peer.pid());
        // Of another namespace it is 0.
        self.listener = started(pid).map(|when| (pid, when));
        leave(&stream);
        Ok(())
    }

    /// Ends what runs, and starts it anew.
    ///
    /// # Errors
    /// It ends at once, or does not listen in time.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.end();
        let start = self.start.as_ref().context("there is nothing to start")?;
        // A socket that nobody listens at stands in the way of some.
        let _ = fs::remove_file(&self.socket);
        let mut command = Command::new("sh");
        command.args(["-c", &start.command]).stdin(Stdio::piped());
        let output = |append: bool| -> anyhow::Result<Stdio> {
            let Some(path) = &start.log else {
                return Ok(Stdio::null());
            };
            let file = File::options().create(true).append(append).open(path);
            file.map(Stdio::from)
                .with_context(|| format!("cannot write to {}", path.display()))
        };
        let child = command
            .stdout(output(true)?)
            .stderr(output(true)?)
            .spawn()
            .context("cannot start a shell")?;
        // Its standard input stays open with it: there are backends that end with their input.
        let child = self.child.insert(child);
        let begin = Instant::now();
        loop {
            if let Ok(stream) = connect(&self.socket, Duration::ZERO) {
                leave(&stream);
                return Ok(());
            }
            if let Some(status) = child.try_wait()? {
                bail!("{:?} ended at once: {}", start.command, in_words(status));
            }
            if begin.elapsed() > start.patience {
                bail!(
                    "{:?} does not listen at {} after {:?}",
                    start.command,
                    self.socket.display(),
                    start.patience
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// How it ended, if it has. Waits a moment for one that seems to be about to.
    pub fn death(&mut self, patience: Duration) -> Option<String> {
        let begin = Instant::now();
        loop {
            if let Some(child) = &mut self.child {
                if let Ok(Some(status)) = child.try_wait() {
                    return Some(in_words(status));
                }
            } else if let Some((pid, when)) = self.listener {
                if started(pid) != Some(when) {
                    return Some("it is gone".into());
                }
            } else if connect(&self.socket, Duration::ZERO).is_err() {
                return Some("nobody listens any more".into());
            }
            if begin.elapsed() >= patience {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn end(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // A shell that is told to end does not tell what it runs.
        let running: Vec<_> = (family(child.id() as i32).into_iter())
            .filter_map(|pid| Some((pid, started(pid)?)))
            .collect();
        let signal = |signal: Signal| {
            for &(pid, when) in &running {
                if started(pid) == Some(when) {
                    // It may end by itself just now.
                    let _ = kill(Pid::from_raw(pid), signal);
                }
            }
        };
        signal(Signal::SIGTERM);
        let begin = Instant::now();
        let runs = |&(pid, when): &(i32, u64)| started(pid) == Some(when);
        while begin.elapsed() < GRACE && running.iter().any(runs) {
            std::thread::sleep(Duration::from_millis(5));
        }
        signal(Signal::SIGKILL);
        let _ = child.wait();
    }
}

/// Process `pid` and all that it has started, the last first.
fn family(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children
        .split_whitespace()
        .filter_map(|child| child.parse().ok());
    children.flat_map(family).chain([pid]).collect()
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.end();
    }
}

/// When process `pid` was started, in ticks since boot, unless it is gone.
fn started(pid: i32) -> Option<u64> {
    if pid == 0 {
        return None;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, can have anything in it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    fields.nth(18)?.parse().ok().filter(|_| !zombie)
}

fn in_words(status: ExitStatus) -> String {
    let name = |number: i32| {
        Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.to_string())
    };
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("killed by {}", name(signal)),
        // As a shell says it.
        (_, Some(code @ 129..=192)) => format!("killed by {}", name(code - 128)),
        (_, code) => format!("exit status {}", code.unwrap_or(-1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        for (command, words) in [
            ("exit 3", "exit status 3"),
            ("kill -SEGV $$", "killed by SIGSEGV"),
            ("(exit 134)", "killed by SIGABRT"),
        ] {
            let status = Command::new("sh").args(["-c", command]).status().unwrap();
            assert_eq!(in_words(status), words);
        }
    }

    #[test]
    fn a_process_is_known_by_when_it_was_started() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let when = started(pid);
        assert!(when.is_some());
        assert_eq!(started(pid), when);
        child.kill().unwrap();
        // A zombie runs no longer.
        while started(pid).is_some() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(started(pid), None);
    }

    #[test]
    fn what_a_shell_runs_ends_with_it() {
        let mut shell = Command::new("sh");
        let mut child = shell
            .args(["-c", "(sleep 60; true); true"])
            .spawn()
            .unwrap();
        let shell = child.id() as i32;
        // The shell, one in parentheses, and what that runs.
        while family(shell).len() < 3 {
            assert!(matches!(child.try_wait(), Ok(None)), "it is over already");
            std::thread::yield_now();
        }
        let family = family(shell);
        let mut backend = Backend {
            socket: PathBuf::new(),
            start: None,
            child: Some(child),
            listener: None,
        };
        backend.end();
        let left: Vec<_> = family
            .into_iter()
            .filter(|&pid| started(pid).is_some())
            .collect();
        assert_eq!(left, Vec::<i32>::new());
    }

    #[test]
    fn what_does_not_start_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let start = Start {
            command: "exit 7".into(),
            log: None,
            patience: Duration::from_secs(10),
        };
        let refused = Backend::new(&directory.path().join("none.sock"), Some(start)).err();
        assert!(refused.unwrap().to_string().contains("exit status 7"));
    }
}
