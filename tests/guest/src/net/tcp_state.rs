//! What becomes of a connection (Linux: `tcp_set_state` and `tcp_done` of `net/ipv4/tcp.c`, `tcp_timer.c`).
//!
//! In: connections that have taken a packet, a call or a timer. Out: the counters that follow from where they came; connections
//! in the backlog of their listener; errors for the process that has one; and nothing at all of those that are over and that no process
//! has.

use smoltcp::socket::tcp::State;

use super::{Errno, Kernel, Machine};
use crate::transport::Transport;

/// How long an orphan waits for its peer's FIN, in nanoseconds (`tcp_fin_timeout`).
const FIN_TIMEOUT: u64 = 60_000_000_000;

/// What counts as a connection that is there (`TcpCurrEstab`).
fn is_established(state: State) -> bool {
    matches!(state, State::Established | State::CloseWait)
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// A connection's state may have changed; `reset` by its peer's RST.
    pub(super) fn tcp_set_state(&mut self, at: usize, old: State, reset: bool) {
        let Some(sk) = self.tcp.get_mut(at) else {
            return;
        };
        let new = sk.state();
        if old == new {
            return;
        }
        let parent = sk.parent;
        if sk.orphan && new == State::FinWait2 {
            let deadline = self.machine.now() + FIN_TIMEOUT;
            sk.fin_deadline = Some(deadline);
            let expires = sk.expires.map_or(deadline, |at| at.min(deadline));
            self.tcp.mod_timer(at, Some(expires));
        }
        self.changed("sk_state", || format!("{old} -> {new}"));
        let snmp = &mut self.counters.snmp;
        match (is_established(old), is_established(new)) {
            (false, true) => snmp.tcp_curr_estab += 1,
            (true, false) => snmp.tcp_curr_estab -= 1,
            _ => {}
        }
        let opening = matches!(old, State::SynSent | State::SynReceived);
        let gone = matches!(new, State::Closed | State::Listen);
        if gone && is_established(old) {
            snmp.tcp_estab_resets += 1;
        }
        if gone && opening {
            snmp.tcp_attempt_fails += 1;
        }
        if old == State::SynReceived
            && let Some(queue) = parent.and_then(|parent| self.tcp.get_mut(parent)?.listener())
        {
            queue.qlen -= 1;
            let owner = queue.owner;
            if !gone {
                queue.accept.push(at);
                self.counters.snmp.tcp_passive_opens += 1;
                self.tcp_inherit(at, owner);
            }
        }
        if gone {
            self.tcp_closed(at, old, reset);
        }
    }

    /// A child is what its listener is now (`tcp_v4_syn_recv_sock`).
    fn tcp_inherit(&mut self, child: usize, listener: usize) {
        let listener = self.socks.get(listener);
        if let (Some(sk), Some(listener)) = (self.tcp.get_mut(child), listener) {
            sk.reuse = listener.sk_reuse;
            sk.inherited = listener.bequeath();
        }
    }

    /// A connection is over: who has it is told why, unless it ended as it should.
    fn tcp_closed(&mut self, at: usize, old: State, reset: bool) {
        let Some(sk) = self.tcp.get_mut(at) else {
            return;
        };
        sk.sk_err = match (reset, old) {
            (_, State::TimeWait) | (false, State::LastAck) => None,
            (true, State::SynSent) => Some(Errno::ECONNREFUSED),
            (true, State::CloseWait) => Some(Errno::EPIPE),
            (true, _) => Some(Errno::ECONNRESET),
            (false, _) => Some(Errno::ETIMEDOUT),
        };
        let request = old == State::SynReceived && sk.parent.is_some();
        if sk.orphan || request {
            self.tcp.remove(at);
        } else {
            self.tcp_done(at);
        }
    }

    /// Nothing is sent or received any more by a connection that a process has; others are gone.
    pub(super) fn tcp_done(&mut self, at: usize) {
        self.tcp.unhash(at);
        self.tcp.mod_timer(at, None);
        let Some(sk) = self.tcp.get_mut(at) else {
            return;
        };
        if sk.orphan {
            return self.tcp.remove(at);
        }
        if let Some(connection) = sk.connection() {
            connection.done = true;
        }
    }

    /// The timer's soft interrupt: connections whose time has come repeat what was not acknowledged, acknowledge what they
    /// have put off, or give up.
    pub(super) fn tcp_timers(&mut self) {
        let now = self.machine.now();
        if self.tcp.timer.is_none_or(|timer| timer > now) {
            return;
        }
        for at in 0..self.tcp.len() {
            let Some(sk) = self.tcp.get_mut(at) else {
                continue;
            };
            if sk.expires.is_none_or(|expires| expires > now) {
                continue;
            }
            if sk.fin_deadline.is_some_and(|deadline| deadline <= now) {
                self.tcp_done(at);
                continue;
            }
            let _stage = self.stage("tcp_write_timer");
            self.tcp_push(at);
        }
    }
}
