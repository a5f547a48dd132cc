//! The program as a child process, with its output in files: nothing that it says can block it.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::{program, wait_until};

const PROGRAM: &str = "vhost-user-nic";

/// Starts the program in `directory`, which takes its output.
fn spawn(directory: &Path, args: impl IntoIterator<Item: AsRef<OsStr>>) -> Child {
    spawn_by(&mut Command::new(program(PROGRAM)), directory, args)
}

/// Starts `command` with `args` besides its own in `directory`, which takes its output.
fn spawn_by(
    command: &mut Command,
    directory: &Path,
    args: impl IntoIterator<Item: AsRef<OsStr>>,
) -> Child {
    let file = |name: &str| Stdio::from(File::create(directory.join(name)).expect("a file"));
    command
        .args(args)
        .current_dir(directory)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(file("out"))
        .stderr(file("err"))
        .spawn()
        .expect("a process")
}

fn text(directory: &Path, name: &str) -> String {
    let bytes = std::fs::read(directory.join(name)).expect("a file");
    String::from_utf8(bytes).expect("UTF-8")
}

/// A run that is over.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs the program to its end. One that does not end is killed, and fails the test.
pub fn run(args: &[&str]) -> Finished {
    run_by(&mut Command::new(program(PROGRAM)), args)
}

/// The same on the CPUs of the list `cpus` alone.
pub fn run_on(cpus: &str, args: &[&str]) -> Finished {
    let mut taskset = Command::new("taskset");
    run_by(
        taskset.args(["--cpu-list", cpus]).arg(program(PROGRAM)),
        args,
    )
}

fn run_by(command: &mut Command, args: &[&str]) -> Finished {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut nic = Serving {
        child: spawn_by(command, directory.path(), args),
        directory: Some(directory),
    };
    wait_until(&format!("the end of {args:?}"), || nic.ended().is_some());
    Finished {
        code: nic.ended().and_then(|status| status.code()),
        out: nic.output(),
        err: nic.log(),
    }
}

/// A NIC that serves. It is killed when it is dropped.
pub struct Serving {
    child: Child,
    /// Where it runs; `None` once somebody else took it.
    directory: Option<TempDir>,
}

impl Serving {
    /// Starts a NIC with `args` and waits until it listens.
    pub fn start(args: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self::start_at(directory, args)
    }

    /// The same in `directory`.
    pub fn start_at(directory: TempDir, args: &[&str]) -> Self {
        let socket = directory.path().join("nic.sock");
        Self::serve(directory, socket.to_str().expect("a name"), args)
    }

    /// The same, its socket called `socket` in a new directory.
    pub fn start_in(socket: &str, args: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self::serve(directory, socket, args)
    }

    fn serve(directory: TempDir, socket: &str, args: &[&str]) -> Self {
        let serve = ["serve", "--control", "control", "--socket", socket];
        let control = directory.path().join("control");
        let serve = serve.map(|arg| match arg {
            "control" => control.to_str().expect("a name"),
            arg => arg,
        });
        Self::listening(Serving {
            child: spawn(directory.path(), serve.iter().chain(args)),
            directory: Some(directory),
        })
    }

    /// Starts NICs as a file with `toml` in it says; the control socket of the one that is last to start has to be "control".
    pub fn start_with_file(toml: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("nic.toml"), toml).expect("a file");
        Self::listening(Serving {
            child: spawn(directory.path(), ["serve", "--config", "nic.toml"]),
            directory: Some(directory),
        })
    }

    /// Waits until `nic` listens.
    fn listening(mut nic: Self) -> Self {
        wait_until("the NIC to listen", || {
            if let Some(status) = nic.ended() {
                panic!("it ended ({status}): {}", nic.log());
            }
            // The control socket is the last to be there. It does not mind who says nothing, as the other one does.
            UnixStream::connect(nic.control()).is_ok()
        });
        nic
    }

    /// Where it runs.
    pub fn directory(&self) -> &Path {
        self.directory.as_ref().expect("it is there").path()
    }

    /// The socket for guests.
    pub fn socket(&self) -> PathBuf {
        self.directory().join("nic.sock")
    }

    /// The socket for `stats` and `link`.
    pub fn control(&self) -> PathBuf {
        self.directory().join("control")
    }

    /// What it has written to standard output.
    pub fn output(&self) -> String {
        text(self.directory(), "out")
    }

    /// What it has written to standard error.
    pub fn log(&self) -> String {
        text(self.directory(), "err")
    }

    /// Sends it `signal`.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32);
        kill(pid, signal).expect("it lives");
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, so that it cannot clean up.
    pub fn kill(&mut self) {
        self.child.kill().expect("it lives");
        self.child.wait().expect("a child");
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child")
    }

    /// What it leaves behind.
    pub fn into_directory(mut self) -> TempDir {
        self.directory.take().expect("it is there")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
