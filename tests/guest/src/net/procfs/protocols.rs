//! `/proc/net/protocols` (Linux: `net/core/sock.c`, `proto_seq_show`).

use std::fmt;

use super::super::sock::{Proto, Sock};
use super::super::tcp_sock::TcpSock;
use super::super::{Kernel, Machine};
use crate::transport::Transport;

/// A protocol of sockets (`struct proto`).
struct ProtoView {
    name: &'static str,
    prot: Proto,
    /// Pages that its sockets have, -1 where nobody counts them.
    memory: i64,
    /// Whether they are too many; or that nobody cares.
    press: &'static str,
    /// Room that it leaves for headers: `MAX_TCP_HEADER` where wireless meshes and tunnels are built, as distributions do.
    max_header: usize,
    /// Its sockets have a cache of their own.
    slab: &'static str,
    /// What it has of close, connect, disconnect, accept, ioctl, init, destroy, shutdown, setsockopt, getsockopt, sendmsg,
    /// recvmsg, bind, backlog_rcv, hash, unhash, get_port and enter_memory_pressure.
    functions: &'static str,
}

const fn proto(name: &'static str, prot: Proto, memory: i64, functions: &'static str) -> ProtoView {
    ProtoView {
        name,
        prot,
        memory,
        press: "NI",
        max_header: 0,
        slab: "yes",
        functions,
    }
}

/// `proto_list`: what was registered last comes first.
const PROTO_LIST: [ProtoView; 7] = [
    ProtoView {
        slab: "no",
        ..proto("PACKET", Proto::Packet, -1, "nnnnnnnnnnnnnnnnnn")
    },
    proto("PINGv6", Proto::Pingv6, -1, "yyynnynnyyyyyynyyn"),
    proto("UDPv6", Proto::Udpv6, 0, "yyynyyynyyyynnyyyn"),
    proto("PING", Proto::Ping, -1, "yyynnynnyyyyyynyyn"),
    proto("RAW", Proto::Raw, -1, "yyynyyynyyyyyyyynn"),
    proto("UDP", Proto::Udp, 0, "yyynyyynyyyynnyyyn"),
    ProtoView {
        press: "no",
        max_header: 320,
        ..proto("TCP", Proto::Tcp, 0, "yyyyyyyyyyyynyyyyy")
    },
];

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn proto_seq_show(&self, out: &mut impl fmt::Write) -> fmt::Result {
        out.write_str(
            "protocol  size sockets  memory press maxhdr  slab module     \
             cl co di ac io in de sh ss gs se re bi br ha uh gp em\n",
        )?;
        for view in PROTO_LIST {
            let (sockets, size) = match view.prot {
                Proto::Tcp => (self.tcp.inuse(), size_of::<Sock>() + size_of::<TcpSock>()),
                prot => (self.socks.inuse(prot), size_of::<Sock>()),
            };
            write!(
                out,
                "{:<9} {size:4} {sockets:6}  {:6}   {:<3} {:6}   {:<3}  {:<10} ",
                view.name, view.memory, view.press, view.max_header, view.slab, "kernel"
            )?;
            for (at, function) in view.functions.chars().enumerate() {
                let gap = if at == 0 { "" } else { " " };
                write!(out, "{gap}{function:>2}")?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}
