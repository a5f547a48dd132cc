//! Hostile guests, hostile front-ends and well-behaved ones against any vhost-user-net backend: `nic-guest check`.
//!
//! Each case has a connection of its own. It passes when the backend does what VIRTIO 1.3 or the vhost-user protocol asks for, or,
//! where somebody else broke the rules first, when it comes to no harm: it lives, writes nowhere but where it may, and serves the
//! next connection. What it need not have is told as "not offered". The suite speaks through `nic-guest` alone and uses no crate
//! of the NIC, so that the two cannot share a mistake.
//!
//! | File | What is attacked |
//! |---|---|
//! | [`messages`], [`order`] | the front-end's messages, one by one; when they come |
//! | [`negotiation`] | feature bits and config space |
//! | [`breaks`], [`rings`] | descriptors, tables and indices of split and packed rings |
//! | [`packets`] | headers and lengths of packets |
//! | [`control`] | commands |
//! | [`life`] | ordinary traffic, stops, restarts, resets, reconnects |
//! | [`sharing`] | dirty logs and in-flight buffers |

pub mod bed;
pub mod breaks;
pub mod command;
pub mod control;
pub mod front;
pub mod life;
pub mod messages;
pub mod negotiation;
pub mod order;
pub mod packets;
pub mod process;
pub mod report;
pub mod ring;
pub mod rings;
pub mod sharing;
pub mod snapshot;

use nic_guest::memory::MemoryError;
use nic_guest::transport::message::MessageError;

use front::Target;

/// Why a case did not come to a good end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The backend did what it must not, or not what it must.
    Fail(String),
    /// The backend does not have what the case is about.
    NotOffered(String),
}

impl Stop {
    /// A failure, in words.
    pub fn fail(why: impl Into<String>) -> Self {
        Stop::Fail(why.into())
    }

    /// What is missing.
    pub fn missing(what: impl Into<String>) -> Self {
        Stop::NotOffered(what.into())
    }
}

impl From<MessageError> for Stop {
    fn from(error: MessageError) -> Self {
        Stop::Fail(error.to_string())
    }
}

impl From<MemoryError> for Stop {
    fn from(error: MemoryError) -> Self {
        Stop::Fail(format!("the suite itself: {error}"))
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Stop::Fail(format!("the suite itself: {error}"))
    }
}

impl From<nix::Error> for Stop {
    fn from(error: nix::Error) -> Self {
        Stop::Fail(format!("the suite itself: {error}"))
    }
}

/// How a case ended: what was seen, if it is well.
pub type Verdict = Result<String, Stop>;

/// What a case does.
pub type Run = Box<dyn Fn(&Target) -> Verdict + Send + Sync>;

/// One case.
pub struct Case {
    /// What it belongs to; `--only` chooses by it.
    pub group: &'static str,
    /// What it attacks or asks for.
    pub name: String,
    /// Does it.
    pub run: Run,
}

impl Case {
    /// A case of `group`.
    pub fn new(
        group: &'static str,
        name: impl Into<String>,
        run: impl Fn(&Target) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        Case {
            group,
            name: name.into(),
            run: Box::new(run),
        }
    }
}

/// All groups, in the order in which they run, and what they are about.
pub const GROUPS: &[(&str, &str)] = &[
    ("messages", "messages that nobody should send"),
    (
        "order",
        "messages at the wrong time, in pieces, or too many",
    ),
    ("features", "negotiation of feature bits"),
    ("config", "config space"),
    ("split", "split rings: descriptors, tables, indices"),
    ("packed", "packed rings: descriptors, tables, wrap counters"),
    ("packets", "headers and lengths of packets"),
    ("control", "the control queue"),
    ("traffic", "what ordinary drivers do"),
    ("life", "stop, restart, reset, reconnect"),
    ("log", "the log of dirty pages"),
    ("inflight", "buffers in flight"),
];

/// All cases for a backend that offers what `target` knows of it.
#[must_use]
pub fn cases(target: &Target) -> Vec<Case> {
    let mut cases = messages::suite(target);
    cases.extend(order::suite());
    cases.extend(negotiation::suite());
    cases.extend(rings::suite());
    cases.extend(packets::suite());
    cases.extend(control::suite());
    cases.extend(life::suite());
    cases.extend(sharing::suite());
    let place = |case: &Case| GROUPS.iter().position(|&(name, _)| name == case.group);
    cases.sort_by_key(place);
    cases
}
