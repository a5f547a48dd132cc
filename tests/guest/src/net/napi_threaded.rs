//! Threaded NAPI (Linux: `net/core/dev.c`, `napi_threaded_poll`): a kernel thread for each instance.
//!
//! In: instances that asked to be polled. Out: their polls, in a thread each instead of in the receive soft interrupt. There is no scheduler: each thread that
//! was woken has one poll a step, as ksoftirqd has one run, so that none keeps the others from the CPU.

use super::napi::NAPI_STATE_THREADED;
use super::{Kernel, Machine};
use crate::transport::Transport;

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// Has each NAPI instance polled by a thread of its own, or in the soft interrupt
    /// (`/sys/class/net/DEV/threaded`).
    pub fn dev_set_threaded(&mut self, on: bool) {
        for napi in &mut self.napi {
            napi.state &= !NAPI_STATE_THREADED;
            if on {
                napi.state |= NAPI_STATE_THREADED;
            }
        }
    }

    /// One poll for each of this CPU's threads that were woken; whether there were any.
    #[inline]
    pub(super) fn run_napi_threads(&mut self) -> bool {
        let woken = self.sd().napi_threads.len();
        for _ in 0..woken {
            if let Some(vq) = self.sd().napi_threads.pop_front() {
                self.napi_threaded_poll(vq);
            }
        }
        woken > 0
    }

    fn napi_threaded_poll(&mut self, vq: usize) {
        let _stage = self.stage("napi_threaded_poll");
        let sd = self.sd();
        sd.stats.napi_threaded_polls += 1;
        sd.in_softirq = true;
        let (_, repoll) = self.__napi_poll(vq);
        let sd = self.sd();
        sd.in_softirq = false;
        if repoll {
            sd.napi_threads.push_back(vq);
        }
        self.local_bh_enable();
    }
}
