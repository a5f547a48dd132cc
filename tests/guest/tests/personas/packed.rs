//! What front-ends say of packed rings, and where those go on.

use nic_guest::transport::persona::Persona;
use nic_guest::transport::vhost_user::{VhostUser, VhostUserOptions};
use nic_guest::transport::{QueueConfig, Transport, TransportError};
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo, features as f, queue_config};

use crate::common::backend::{Backend, Offer};
use crate::{FEATURES, OFFER, attach_with, exchange, memory_of};

const RINGS: u64 = f::RING_PACKED | f::IN_ORDER;

#[test]
fn packed_rings_are_told_of_where_a_front_end_has_them() {
    let offer = Offer {
        features: FEATURES | RINGS,
        ..OFFER
    };
    for persona in Persona::ALL {
        let driver = ProbeOptions::default().with(RINGS);
        let (backend, mut nic) = attach_with(persona, 2, offer, driver);
        let (packed, base) = match persona {
            Persona::Crosvm => (0, 0),
            Persona::CloudHypervisor => (f::IN_ORDER, 0),
            Persona::VirtioUser => (RINGS, 0x8000),
            Persona::Uml => (RINGS, 0),
            _ => (RINGS, 0x8000_8000_u32),
        };
        assert_eq!(nic.features() & RINGS, packed, "{persona:?}");
        for round in 0..20 {
            exchange(&mut nic, 0, round * 50..round * 50 + 50);
            exchange(&mut nic, 1, round * 50..round * 50 + 50);
        }
        drop(nic.remove().unwrap());
        let log = backend.finish();
        for ring in 0..4 {
            let want = format!("SET_VRING_BASE {ring}={base}");
            let said = log.iter().any(|line| line.trim_end_matches('?') == want);
            assert!(said, "{persona:?}: {log:#?}");
        }
    }
}

fn config(nic: &VirtnetInfo<VhostUser>, index: u16) -> QueueConfig {
    match index {
        0 => queue_config(0, &nic.rq[0].vq),
        _ => queue_config(1, &nic.sq[0].vq),
    }
}

#[test]
fn a_packed_ring_that_was_stopped_goes_on_where_its_backend_says() {
    let offer = Offer {
        features: FEATURES | RINGS,
        ..OFFER
    };
    let memory = memory_of(Persona::Plain);
    let (backend, stream) = Backend::start(&memory, offer);
    let transport = VhostUser::from_stream(stream, memory, &VhostUserOptions::default()).unwrap();
    let options = ProbeOptions {
        queue_size: 100,
        ..ProbeOptions::default()
    };
    let mut nic = VirtnetInfo::probe(transport, &options.with(f::RING_PACKED)).unwrap();
    for round in 0..10 {
        exchange(&mut nic, 0, round * 30..round * 30 + 30);
        nic.sq[0].free_old_xmit().unwrap();
        for index in [0, 1] {
            let base = nic.transport.stop_queue(index).unwrap();
            let config = config(&nic, index);
            assert_eq!(base, config.next, "round {round}, queue {index}");
            nic.transport.setup_queue(&config).unwrap();
        }
    }
    assert!(nic.rq[0].vq.vring_base() != 0x8000_8000);
    drop(nic.remove().unwrap());
    let log = backend.finish();
    assert!(log.iter().any(|line| line.starts_with("GET_VRING_BASE 1")));
}

#[test]
fn a_packed_ring_does_not_outlive_its_backend() {
    let offer = Offer {
        features: FEATURES | RINGS,
        ..OFFER
    };
    let driver = ProbeOptions::default().with(f::RING_PACKED);
    let (backend, mut nic) = attach_with(Persona::Qemu, 1, offer, driver);
    exchange(&mut nic, 0, 0..50);
    backend.kill();
    let (_backend, stream) = Backend::start(nic.transport.memory(), offer);
    let again = nic.transport.reattach_stream(stream);
    assert!(matches!(again, Err(TransportError::Unsupported(_))));
}
