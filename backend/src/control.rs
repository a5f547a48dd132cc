//! The control socket: a running NIC is watched and changed through it.
//!
//! One request a line, one answer a line, both JSON. Requests: `{"command":"stats"}`, `{"command":"counters","names":"rfc"}`, `{"command":"link"}`,
//! `{"command":"link","up":true}`, `{"command":"partner","spec":"1000full,pause"}`, `{"command":"announce"}`, `{"command":"loopback","to":"mac"}`,
//! `{"command":"mdio-read","mmd":7,"reg":1}`, `{"command":"mdio-write","reg":0,"value":4608}`, `{"command":"mdio-dump"}`,
//! `{"command":"fault"}`, `{"command":"fault","spec":"rx:drop=0.01"}`, `{"command":"set","speed":"1G"}`. Answers: `{"ok":...}` or
//! `{"error":"..."}`.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use log::{error, warn};
use nic_model::counters::names::{self, Name};
use nic_model::phy::mdio::Address;
use nic_model::phy::{LinkPartner, Loopback, Phy};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::mdio::Shown;
use crate::server::{NicServer, listen};
use crate::settings::Settings;
use crate::wire::fault::FaultSpec;

/// The longest request, in octets.
const MAX_REQUEST: usize = 4096;
/// Connections at once.
const MAX_CONNECTIONS: usize = 64;
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
#[allow(clippy::large_enum_variant)] // there is one at a time
pub enum Request {
    /// All counts and states.
    Stats,
    /// The port's counts under standard names, in their order: pairs of name and count.
    Counters {
        /// Whose names.
        names: Standard,
    },
    /// The link's state, after it was changed if `up` says so.
    Link {
        /// Up or down; as it is if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        up: Option<bool>,
    },
    /// Plugs the cable into another link partner.
    Partner {
        /// Which one, as users write it.
        partner: LinkPartner,
    },
    /// Where frames turn that are sent, after it was changed if `to` says so.
    Loopback {
        /// Where they shall; as it is if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<LoopbackTo>,
    },
    /// Reads a register of the PHY, which clears what waits to be read.
    MdioRead {
        /// The device of Clause 45; a register of Clause 22 if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mmd: Option<u8>,
        /// The register's number there.
        reg: u16,
    },
    /// Writes a register of the PHY.
    MdioWrite {
        /// The device of Clause 45; a register of Clause 22 if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mmd: Option<u8>,
        /// The register's number there.
        reg: u16,
        /// What is written.
        value: u16,
    },
    /// All registers of the PHY that have a name; none is changed by it.
    MdioDump,
    /// Has the driver tell its neighbours where it is.
    Announce,
    /// What goes wrong on purpose, after it was changed if `spec` says so.
    Fault {
        /// What is to go wrong; as it is if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spec: Option<FaultSpec>,
    },
    /// Changes settings.
    Set(Settings),
}

/// Whose names counts go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standard {
    /// Those of Linux's standard groups of statistics.
    Ethtool,
    /// Those of the MIBs.
    Rfc,
}

impl Standard {
    /// All names.
    fn names(self) -> &'static [Name] {
        match self {
            Standard::Ethtool => names::ETHTOOL,
            Standard::Rfc => names::RFC,
        }
    }
}

/// Where frames shall turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LoopbackTo {
    /// Nowhere: they go to the wire.
    Off,
    /// In the MAC, before the PHY
    Mac,
    /// In the PHY: the link partner has no signal
    Phy,
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Ok(Value),
    Error(String),
}

fn perform(nic: &NicServer, request: Request) -> anyhow::Result<Value> {
    match request {
        Request::Stats => Ok(serde_json::to_value(nic.status()?)?),
        Request::Counters { names } => {
            let port = nic.status()?.nic.port.counters;
            let counted = |name: &Name| (name.name, name.count(&port));
            let counts: Vec<_> = names.names().iter().map(counted).collect();
            Ok(serde_json::to_value(counts)?)
        }
        Request::Link { up } => {
            let changed = up.map(|up| nic.set_link(up)).transpose()?.unwrap_or(false);
            let status = nic.status()?.nic.port;
            Ok(json!({
                "link": if status.link { "up" } else { "down" },
                "speed_mbps": status.speed_mbps,
                "changed": changed,
                "phy": status.phy,
            }))
        }
        Request::Partner { partner } => {
            nic.phy(move |phy, now| phy.set_partner(now, partner))?;
            Ok(json!({ "partner": partner }))
        }
        Request::Loopback { to } => {
            let at = nic.phy(move |phy, now| {
                match to {
                    None => {}
                    Some(LoopbackTo::Off) => phy.set_loopback(now, None),
                    Some(LoopbackTo::Mac) => phy.set_loopback(now, Some(Loopback::Mac)),
                    Some(LoopbackTo::Phy) => phy.set_loopback(now, Some(Loopback::Phy)),
                }
                phy.loopback()
            })?;
            Ok(json!({ "loopback": at }))
        }
        Request::MdioRead { mmd, reg } => {
            let address = register(mmd, reg)?;
            let read = move |phy: &mut Phy, now| {
                let value = phy.read(now, address);
                Shown::of(phy, address, value)
            };
            Ok(serde_json::to_value(nic.phy(read)?)?)
        }
        Request::MdioWrite { mmd, reg, value } => {
            let address = register(mmd, reg)?;
            let write = move |phy: &mut Phy, now| {
                phy.write(now, address, value);
                Shown::of(phy, address, phy.peek(address))
            };
            Ok(serde_json::to_value(nic.phy(write)?)?)
        }
        Request::MdioDump => Ok(serde_json::to_value(nic.phy(|phy, _| Shown::all(phy))?)?),
        Request::Announce => {
            if !nic.announce()? {
                bail!(
                    "there is no driver that can be asked: none has accepted GUEST_ANNOUNCE and CTRL_VQ"
                );
            }
            Ok(json!({ "asked": true }))
        }
        Request::Fault { spec } => {
            if let Some(spec) = spec {
                nic.set_faults(spec)?;
            }
            Ok(serde_json::to_value(nic.faults()?)?)
        }
        Request::Set(settings) => {
            nic.set(&settings)?;
            Ok(serde_json::to_value(settings)?)
        }
    }
}

fn register(mmd: Option<u8>, reg: u16) -> anyhow::Result<Address> {
    let address = Address { mmd, reg };
    if !address.is_valid() {
        bail!("there is no register {address}: devices go to 31, and registers without one, too");
    }
    Ok(address)
}

/// Asks the NIC behind the control socket `path`.
///
/// # Errors
/// Nobody answers there, or the answer is an error.
pub fn ask(path: &Path, request: Request) -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect(path).with_context(|| {
        format!(
            "no NIC answers on {} (is it the path given to serve --control?)",
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    let mut answer = String::new();
    let asked = stream
        .write_all(&line)
        .and_then(|()| BufReader::new(stream).read_line(&mut answer))
        .map_err(|error| (error.kind(), error));
    match asked {
        Ok(0) | Err((io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset, _)) => bail!(
            "the NIC hung up without an answer: is this the path given to serve --control? (it serves {MAX_CONNECTIONS} connections at once)"
        ),
        Ok(_) => {}
        Err((_, error)) => return Err(error).context("the NIC did not answer"),
    }
    match serde_json::from_str(&answer).context("the NIC's answer makes no sense")? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(error) => bail!("the NIC says: {error}"),
    }
}

/// The control socket of one NIC, for the management thread's event loop.
pub struct ControlSocket<'a> {
    nic: &'a NicServer,
    path: PathBuf,
    listener: UnixListener,
    connections: HashMap<RawFd, Connection>,
}

struct Connection {
    stream: UnixStream,
    request: Vec<u8>,
}

impl<'a> ControlSocket<'a> {
    /// Listens on `path`.
    ///
    /// # Errors
    /// That cannot be listened on.
    pub fn new(nic: &'a NicServer, path: &Path) -> anyhow::Result<Self> {
        let listener = listen(path)?;
        listener.set_nonblocking(true)?;
        Ok(ControlSocket {
            nic,
            path: path.to_owned(),
            listener,
            connections: HashMap::new(),
        })
    }

    fn accept(&mut self, ops: &mut EventOps) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                warn!("control: cannot accept a connection: {error}");
                // The listener stays readable: without descriptors, try again a little later.
                return std::thread::sleep(Duration::from_millis(100));
            }
        };
        if self.connections.len() == MAX_CONNECTIONS || stream.set_nonblocking(true).is_err() {
            return warn!(
                "control: refused a connection, there are {}",
                self.connections.len()
            );
        }
        if let Err(error) = ops.add(Events::new(&stream, EventSet::IN)) {
            return warn!("control: cannot wait for a connection: {error}");
        }
        let connection = Connection {
            stream,
            request: Vec::new(),
        };
        self.connections
            .insert(connection.stream.as_raw_fd(), connection);
    }

    /// Reads from a connection and answers what is complete. Returns whether it goes on.
    fn serve(nic: &NicServer, connection: &mut Connection) -> bool {
        let mut chunk = [0; MAX_REQUEST];
        let read = match connection.stream.read(&mut chunk) {
            Ok(0) => return false,
            Ok(read) => read,
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        };
        connection.request.extend(&chunk[..read]);
        while let Some(end) = connection.request.iter().position(|&octet| octet == b'\n') {
            let line: Vec<u8> = connection.request.drain(..=end).collect();
            let answer = match serde_json::from_slice::<Request>(&line) {
                Ok(request) => match perform(nic, request) {
                    Ok(value) => Answer::Ok(value),
                    Err(error) => Answer::Error(format!("{error:#}")),
                },
                Err(error) => Answer::Error(format!("no request: {error}")),
            };
            let mut line = match serde_json::to_vec(&answer) {
                Ok(line) => line,
                Err(error) => {
                    error!("control: cannot write an answer: {error}");
                    return false;
                }
            };
            line.push(b'\n');
            // The socket is non-blocking: a client that does not read loses the connection.
            if connection.stream.write_all(&line).is_err() {
                return false;
            }
        }
        connection.request.len() < MAX_REQUEST
    }
}

impl MutEventSubscriber for ControlSocket<'_> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.listener.as_raw_fd() {
            return self.accept(ops);
        }
        let Some(connection) = self.connections.get_mut(&events.fd()) else {
            return;
        };
        if !Self::serve(self.nic, connection) {
            // It is in the set: it was added when the connection came.
            let _ = ops.remove(events);
            self.connections.remove(&events.fd());
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.listener, EventSet::IN)) {
            error!("control: cannot wait for connections: {error}");
        }
    }
}

impl Drop for ControlSocket<'_> {
    fn drop(&mut self) {
        // Whoever removed it already did what we want.
        let _ = std::fs::remove_file(&self.path);
    }
}
