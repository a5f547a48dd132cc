//! A network interface card, modelled block by block as hardware.
//!
//! ```text
//! receive   wire -> PHY -> MAC -> filter -> parse -> VLAN -> checksum -> RSS -> FIFO -> Host -> moderation -> interrupt
//! transmit  Host -> checksum -> MAC -> PHY -> wire;  moderation -> interrupt
//! ```
//!
//! Each block is one file. [`port::Port`] joins those on the side of the line, with the account of the FIFOs; it is where to
//! start reading. [`queues::Queues`] has those on the side of the host. Both may have one owner, or the port one and the
//! queues several. What lies beyond is behind two seams: the [`host::Host`], which moves frames between the card
//! and a computer's memory, and the wire, which is whoever calls [`port::Port::receive`] and takes what
//! [`port::Port::send`] gives.
//!
//! Nothing here asks what time it is: `now` is an argument, and [`port::Port::next_deadline`] says when
//! the model wants to be called again. The same calls with the same arguments give the same results.

#![forbid(unsafe_code)]

pub mod chance;
pub mod checksum;
pub mod counters;
pub mod fault;
pub mod fifo;
pub mod filter;
pub mod frame;
pub mod host;
pub mod mac;
pub mod moderation;
pub mod packet_buffer;
pub mod parse;
pub mod pause;
pub mod pfc;
pub mod phy;
pub mod port;
pub mod queues;
pub mod rate;
pub mod rsc;
pub mod rss;
pub mod scheduler;
pub mod segment;
pub mod time;
pub mod tunnel;
pub mod vlan;

/// The largest number of frames that any block handles at once.
pub const BURST: usize = 64;
