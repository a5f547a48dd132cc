//! What the driver asks over the control queue, and what it makes of the answers: of a device that obeys,
//! one that refuses, one that is silent, one that lies.

#[path = "../common/mod.rs"]
mod common;

mod coalesce;
mod commands;
mod device_stats;
mod ringparam;
mod rss;

use std::time::Duration;

use common::in_process::InProcess;
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::{ProbeError, ProbeOptions, VirtnetInfo};

type Nic = VirtnetInfo<InProcess>;

/// What every device here offers; it has two queue pairs.
const BASE: u64 = f::VERSION_1 | f::MAC | f::STATUS | f::CTRL_VQ | f::MQ;

fn options() -> ProbeOptions {
    ProbeOptions {
        queue_size: 16,
        ctrl_timeout: Duration::from_millis(1),
        tx_buf_len: Some(2048),
        ..ProbeOptions::default()
    }
}

/// Probes a device that offers `features`, after `change`, with two CPUs; what was asked meanwhile is kept.
fn probe(features: u64, change: impl FnOnce(&mut InProcess)) -> Result<Nic, ProbeError> {
    let mut device = InProcess::new(BASE | features);
    change(&mut device);
    let options = ProbeOptions {
        queue_pairs: 2,
        ..options()
    };
    VirtnetInfo::probe(device, &options)
}

/// A device with two queue pairs in use; what was asked at probe is forgotten.
fn nic(features: u64) -> Nic {
    let nic = probe(features, |_| {}).unwrap();
    nic.transport.commands.take();
    nic
}

/// What was asked since the last call: class, number, data.
fn asked(nic: &Nic) -> Vec<(u8, u8, Vec<u8>)> {
    nic.transport.commands.take()
}
