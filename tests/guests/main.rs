//! Real kernels on the NIC: User-mode Linux, and Linux under QEMU.
//!
//! The guests are booted by `scripts/guest-uml` and `scripts/guest-qemu`, which set up what they need; the NIC is the
//! program that users run, from `$VHOST_USER_NIC` or beside this test. Run with `--test-threads=1`: a guest
//! takes a whole CPU.

mod support;

mod captures;
mod ethtool;
mod hardware;
mod multi_queue;
mod offloads;
mod qemu;
mod same_packets;
mod tap;
mod uml;
