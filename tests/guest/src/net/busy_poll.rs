//! Busy polling (Linux: `include/net/busy_poll.h`, `napi_busy_loop` of `net/core/dev.c`): a reader that polls the device itself.
//!
//! In: a socket whose queue is empty, and how long its reader is ready to spin (`SO_BUSY_POLL`). Out: packets of the NAPI instance that
//! the socket's last one came from, up the stack, without an interrupt: as long as it is polled the reader owns it, and its queue's
//! interrupt stays masked. Nothing is dropped.

use super::napi::{NAPI_STATE_IN_BUSY_POLL, NAPI_STATE_MISSED, NAPI_STATE_SCHED};
use super::{Errno, Fd, Kernel, Machine};
use crate::transport::Transport;

/// Packets of one poll (`BUSY_POLL_BUDGET`).
const BUSY_POLL_BUDGET: usize = 8;
/// What a turn that finds nothing takes beside the poll, in nanoseconds of a machine whose time has to be spent.
const TURN: u64 = 200;

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Has who reads a socket poll the device for so many microseconds before there is nothing (`SO_BUSY_POLL`); 0 is
    /// not at all.
    ///
    /// # Errors
    /// EBADF.
    pub fn set_busy_poll(&mut self, fd: Fd, usecs: u32) -> Result<(), Errno> {
        self.sock_mut(fd)?.sk_ll_usec = usecs;
        Ok(())
    }

    /// Polls until the socket has something, or its time is over.
    #[cold]
    pub(super) fn sk_busy_loop(&mut self, at: usize) {
        let Some(sk) = self.socks.get(at) else { return };
        // Of packets that no device's queue brought nobody knows where the next will come from.
        let Some(pair) = usize::from(sk.sk_rx_queue).checked_sub(1) else {
            return;
        };
        if sk.sk_receive_queue.is_empty() && 2 * pair < self.napi.len() {
            let end = self.machine.now() + u64::from(sk.sk_ll_usec) * 1000;
            self.napi_busy_loop(2 * pair, at, end);
        }
    }

    fn napi_busy_loop(&mut self, vq: usize, at: usize, end: u64) {
        let _stage = self.stage("napi_busy_loop");
        let mut owned = false;
        loop {
            let state = &mut self.napi[vq].state;
            if !owned && *state & (NAPI_STATE_SCHED | NAPI_STATE_IN_BUSY_POLL) == 0 {
                *state |= NAPI_STATE_SCHED | NAPI_STATE_IN_BUSY_POLL;
                owned = true;
            }
            // Else it is on a poll list, and its turn comes with the soft interrupt.
            let work = if owned { self.busy_poll(vq) } else { 0 };
            self.sd().stats.busy_poll_rx_packets += work as u64;
            self.local_bh_enable();
            let empty = |sk: &super::sock::Sock| sk.sk_receive_queue.is_empty();
            if !self.socks.get(at).is_some_and(empty) || self.machine.now() >= end {
                break;
            }
            if work == 0 {
                self.spend(TURN);
            }
        }
        if owned {
            self.busy_poll_stop(vq);
        }
    }

    /// One poll, with soft interrupts off.
    fn busy_poll(&mut self, vq: usize) -> usize {
        let before = std::mem::replace(&mut self.sd().in_softirq, true);
        self.napi[vq].stats.polls += 1;
        self.spend(self.costs.poll);
        let work = self.virtnet_poll(vq, BUSY_POLL_BUDGET);
        self.gro_normal_list(vq);
        self.sd().in_softirq = before;
        work
    }

    /// Lets go of the instance: one more poll, that switches the interrupt on again.
    fn busy_poll_stop(&mut self, vq: usize) {
        self.napi[vq].state &= !(NAPI_STATE_MISSED | NAPI_STATE_IN_BUSY_POLL);
        if self.busy_poll(vq) == BUSY_POLL_BUDGET {
            self.__napi_schedule(vq);
        }
        self.local_bh_enable();
    }
}
