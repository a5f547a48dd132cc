//! Every front-end against a small backend over a real socket: its message order, its data, and
//! what it does when the backend dies.

#[path = "../common/mod.rs"]
mod common;

mod packed;

use std::sync::Arc;
use std::time::Duration;

use common::backend::{Backend, Offer};
use nic_guest::memory::GuestMemory;
use nic_guest::transport::front_end::{FrontEnd, FrontEndOptions};
use nic_guest::transport::persona::Persona;
use nic_guest::transport::vhost_user::{VhostUser, VhostUserOptions};
use nic_guest::transport::vmm::VmmConfig;
use nic_guest::transport::{Transport, TransportError};
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};

const FEATURES: u64 = f::VERSION_1
    | f::PROTOCOL_FEATURES
    | f::MAC
    | f::STATUS
    | f::MQ
    | f::MTU
    | f::CTRL_VQ
    | f::CTRL_RX
    | f::CSUM
    | f::MRG_RXBUF
    | f::INDIRECT_DESC;
/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS.
const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 16;

const OFFER: Offer = Offer {
    features: FEATURES,
    protocol: PROTOCOL,
    pairs: 2,
    reply_flags: 5,
};

fn memory_of(persona: Persona) -> Arc<GuestMemory> {
    let builder = GuestMemory::builder();
    let builder = match persona {
        Persona::VirtioUser => builder.region_at_host_address(16 << 20),
        Persona::Uml => builder.region_at_offset(0x60_0000, 16 << 20, 0x60_0000),
        _ => builder.region(0, 8 << 20).region(1 << 32, 8 << 20),
    };
    builder.build().unwrap()
}

fn attach(persona: Persona, pairs: u16) -> (Backend, VirtnetInfo<FrontEnd>) {
    attach_to(persona, pairs, OFFER)
}

fn attach_to(persona: Persona, pairs: u16, offer: Offer) -> (Backend, VirtnetInfo<FrontEnd>) {
    attach_with(persona, pairs, offer, ProbeOptions::default())
}

fn attach_with(
    persona: Persona,
    pairs: u16,
    offer: Offer,
    options: ProbeOptions,
) -> (Backend, VirtnetInfo<FrontEnd>) {
    let driver = options;
    let memory = memory_of(persona);
    let nic = VmmConfig {
        pairs,
        ..VmmConfig::default()
    };
    let options = FrontEndOptions {
        nic,
        timeout: Duration::from_secs(20),
    };
    let mut front_end = FrontEnd::new(persona, Arc::clone(&memory), options).unwrap();
    let (backend, stream) = Backend::start(&memory, offer);
    front_end.attach_stream(stream).unwrap();
    let options = ProbeOptions {
        queue_pairs: pairs,
        ctrl_timeout: Duration::from_secs(20),
        ..driver
    };
    let nic = VirtnetInfo::probe(front_end, &options).unwrap();
    (backend, nic)
}

/// Sends `frames` and gets them back, in order.
fn exchange<T: Transport>(nic: &mut VirtnetInfo<T>, pair: u16, frames: std::ops::Range<u32>) {
    for n in frames.clone() {
        send(nic, pair, n);
    }
    nic.flush(pair);
    expect(nic, pair, frames);
}

fn send<T: Transport>(nic: &mut VirtnetInfo<T>, pair: u16, n: u32) {
    let frame = [&[0; 14][..], &n.to_le_bytes(), &[0; 50]].concat();
    nic.start_xmit(pair, &frame, &VirtioNetHdr::default())
        .unwrap();
}

fn expect<T: Transport>(nic: &mut VirtnetInfo<T>, pair: u16, mut frames: std::ops::Range<u32>) {
    let mut attempts = 0;
    while !frames.is_empty() {
        nic.transport
            .wait_interrupt(2 * pair, Duration::from_millis(100));
        nic.take_interrupts(pair);
        nic.poll(pair, 64, |frame| {
            let bytes = frame.to_vec();
            let n = u32::from_le_bytes(bytes[14..18].try_into().unwrap());
            assert_eq!(Some(n), frames.next());
        })
        .unwrap();
        attempts += 1;
        assert!(attempts < 300, "frames {frames:?} never came back");
    }
}

#[test]
fn frames_pass_for_every_persona_and_the_crate() {
    for persona in Persona::ALL {
        let (backend, mut nic) = attach(persona, 2);
        assert_eq!(nic.curr_queue_pairs(), 2, "{persona:?}");
        for round in 0..10 {
            exchange(&mut nic, 0, round * 50..round * 50 + 50);
            exchange(&mut nic, 1, round * 50..round * 50 + 50);
        }
        let (rx, _) = nic.stats();
        assert_eq!((rx.packets, rx.drops), (1000, 0), "{persona:?}");
        assert!(rx.interrupts > 0, "{persona:?}");
        drop(nic.remove().unwrap());
        backend.finish();
    }
    let memory = memory_of(Persona::Plain);
    let (backend, stream) = Backend::start(&memory, OFFER);
    let transport = VhostUser::from_stream(stream, memory, &VhostUserOptions::default()).unwrap();
    let options = ProbeOptions {
        queue_pairs: 2,
        ..ProbeOptions::default()
    };
    let mut nic = VirtnetInfo::probe(transport, &options).unwrap();
    assert_eq!(nic.mac(), [2, 0, 0, 0, 0, 7]);
    assert_eq!(nic.curr_queue_pairs(), 2);
    exchange(&mut nic, 1, 0..200);
    assert!(nic.handle_config_change().unwrap(), "the backend said so");
    assert!(!nic.handle_config_change().unwrap());
    drop(nic.remove().unwrap());
    backend.finish();
}

/// The messages of a persona from attach to close.
fn order(persona: Persona, pairs: u16) -> Vec<String> {
    let (backend, nic) = attach(persona, pairs);
    drop(nic.remove().unwrap());
    backend.finish()
}

fn lines(text: &str) -> Vec<String> {
    let lines = text.split([',', '\n']).map(|line| line.trim().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

fn features_told(log: &[String]) -> Vec<u64> {
    let told = log
        .iter()
        .filter_map(|line| line.strip_prefix("SET_FEATURES 0x"));
    told.map(|hex| u64::from_str_radix(hex.trim_end_matches('?'), 16).unwrap())
        .collect()
}

/// Without what features were told.
fn shape(log: Vec<String>) -> Vec<String> {
    log.into_iter()
        .map(|line| {
            if line.starts_with("SET_FEATURES") {
                "SET_FEATURES".into()
            } else {
                line
            }
        })
        .collect()
}

#[test]
fn qemu_enables_before_features_and_negotiates_for_each_pair() {
    let log = order(Persona::Qemu, 2);
    for told in features_told(&log) {
        assert_eq!(
            told & (f::MAC | f::STATUS | f::CTRL_VQ),
            0,
            "QEMU keeps these"
        );
        assert_ne!(told & f::PROTOCOL_FEATURES, 0);
    }
    let expected = lines(
        "GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM
        GET_MAX_MEM_SLOTS, SET_BACKEND_REQ_FD?, SET_OWNER, GET_FEATURES
        SET_VRING_CALL 0?, SET_VRING_ERR 0, SET_VRING_CALL 1?, SET_VRING_ERR 1
        GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_MAX_MEM_SLOTS, GET_FEATURES
        SET_VRING_CALL 2?, SET_VRING_ERR 2, SET_VRING_CALL 3?, SET_VRING_ERR 3
        RESET_DEVICE
        SET_VRING_ENABLE 0=1?, SET_VRING_ENABLE 1=1?, SET_VRING_ENABLE 2=0?, SET_VRING_ENABLE 3=0?
        RESET_DEVICE
        SET_VRING_ENABLE 0=1?, SET_VRING_ENABLE 1=1?, SET_VRING_ENABLE 2=0?, SET_VRING_ENABLE 3=0?
        SET_FEATURES, ADD_MEM_REG?, ADD_MEM_REG?
        SET_VRING_NUM 0, SET_VRING_BASE 0=0, SET_VRING_ADDR 0, SET_VRING_KICK 0?, SET_VRING_CALL 0?
        SET_VRING_NUM 1, SET_VRING_BASE 1=0, SET_VRING_ADDR 1, SET_VRING_KICK 1?, SET_VRING_CALL 1?
        SET_FEATURES
        SET_VRING_NUM 2, SET_VRING_BASE 2=0, SET_VRING_ADDR 2, SET_VRING_KICK 2?, SET_VRING_CALL 2?
        SET_VRING_NUM 3, SET_VRING_BASE 3=0, SET_VRING_ADDR 3, SET_VRING_KICK 3?, SET_VRING_CALL 3?
        SET_VRING_ENABLE 0=1?, SET_VRING_ENABLE 1=1?, SET_VRING_ENABLE 2=0?, SET_VRING_ENABLE 3=0?
        SET_STATUS
        SET_VRING_ENABLE 0=1?, SET_VRING_ENABLE 1=1?, SET_VRING_ENABLE 2=1?, SET_VRING_ENABLE 3=1?
        GET_VRING_BASE 0, GET_VRING_BASE 1, GET_VRING_BASE 2, GET_VRING_BASE 3
        SET_STATUS, RESET_DEVICE
        SET_VRING_ENABLE 0=1?, SET_VRING_ENABLE 1=1?, SET_VRING_ENABLE 2=0?, SET_VRING_ENABLE 3=0?",
    );
    assert_eq!(shape(log), expected);
}

#[test]
fn cloud_hypervisor_sets_sizes_first_and_never_asks_for_bases() {
    let log = order(Persona::CloudHypervisor, 1);
    assert_eq!(
        features_told(&log)[0] & f::MAC,
        0,
        "cloud-hypervisor keeps the MAC"
    );
    let expected = lines(
        "SET_OWNER, GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM
        SET_FEATURES, SET_MEM_TABLE 2?, SET_VRING_NUM 0?, SET_VRING_NUM 1?
        GET_INFLIGHT_FD, SET_INFLIGHT_FD?
        SET_VRING_ADDR 0?, SET_VRING_BASE 0=0?, SET_VRING_CALL 0?, SET_VRING_KICK 0?
        SET_VRING_ADDR 1?, SET_VRING_BASE 1=0?, SET_VRING_CALL 1?, SET_VRING_KICK 1?
        SET_VRING_ENABLE 0=1?, SET_VRING_ENABLE 1=1?
        SET_VRING_ENABLE 0=0?, SET_VRING_ENABLE 1=0?",
    );
    assert_eq!(shape(log), expected);
}

#[test]
fn crosvm_tells_features_in_halves_and_waits_for_nothing() {
    let log = order(Persona::Crosvm, 1);
    let told = features_told(&log);
    assert_eq!((told.len(), told[0]), (2, told[1] & 0xffff_ffff));
    assert_eq!(told[1] & f::INDIRECT_DESC, 0, "crosvm does not pass this");
    let expected = lines(
        "SET_OWNER, GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES
        SET_BACKEND_REQ_FD, GET_QUEUE_NUM, SET_FEATURES, SET_FEATURES, GET_CONFIG, SET_MEM_TABLE 2
        SET_VRING_NUM 0, SET_VRING_ADDR 0, SET_VRING_BASE 0=0, SET_VRING_CALL 0, SET_VRING_KICK 0
        SET_VRING_ENABLE 0=1
        SET_VRING_NUM 1, SET_VRING_ADDR 1, SET_VRING_BASE 1=0, SET_VRING_CALL 1, SET_VRING_KICK 1
        SET_VRING_ENABLE 1=1
        SET_VRING_NUM 4, SET_VRING_ADDR 4, SET_VRING_BASE 4=0, SET_VRING_CALL 4, SET_VRING_KICK 4
        SET_VRING_ENABLE 4=1
        SET_VRING_ENABLE 0=0, GET_VRING_BASE 0, SET_VRING_ENABLE 1=0, GET_VRING_BASE 1
        SET_VRING_ENABLE 4=0, GET_VRING_BASE 4",
    );
    assert_eq!(shape(log), expected);
}

#[test]
fn virtio_user_calls_before_features_and_never_asks_for_queues() {
    let log = order(Persona::VirtioUser, 2);
    let expected = lines(
        "SET_OWNER, GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES
        SET_VRING_CALL 0, SET_VRING_CALL 1, SET_VRING_CALL 2, SET_VRING_CALL 3
        SET_FEATURES, SET_STATUS?, SET_MEM_TABLE 1?
        SET_VRING_NUM 0, SET_VRING_BASE 0=0, SET_VRING_ADDR 0, SET_VRING_KICK 0
        SET_VRING_NUM 1, SET_VRING_BASE 1=0, SET_VRING_ADDR 1, SET_VRING_KICK 1
        SET_VRING_NUM 2, SET_VRING_BASE 2=0, SET_VRING_ADDR 2, SET_VRING_KICK 2
        SET_VRING_NUM 3, SET_VRING_BASE 3=0, SET_VRING_ADDR 3, SET_VRING_KICK 3
        SET_VRING_ENABLE 0=1, SET_VRING_ENABLE 1=1, SET_STATUS?
        SET_VRING_ENABLE 0=1, SET_VRING_ENABLE 1=1, SET_VRING_ENABLE 2=1, SET_VRING_ENABLE 3=1
        SET_VRING_ENABLE 0=0, SET_VRING_ENABLE 1=0, SET_VRING_ENABLE 2=0, SET_VRING_ENABLE 3=0
        GET_VRING_BASE 0, GET_VRING_BASE 1, GET_VRING_BASE 2, GET_VRING_BASE 3, SET_STATUS?",
    );
    assert_eq!(shape(log), expected);
}

#[test]
fn uml_has_everything_acknowledged_and_ends_without_bases() {
    let log = order(Persona::Uml, 1);
    let expected = lines(
        "SET_OWNER, GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES?
        SET_BACKEND_REQ_FD?, GET_QUEUE_NUM, SET_FEATURES, GET_CONFIG, SET_MEM_TABLE 1?
        SET_VRING_CALL 0?, SET_VRING_NUM 0?, SET_VRING_BASE 0=0?, SET_VRING_ADDR 0?
        SET_VRING_CALL 1?, SET_VRING_NUM 1?, SET_VRING_BASE 1=0?, SET_VRING_ADDR 1?
        SET_VRING_CALL 4?, SET_VRING_NUM 4?, SET_VRING_BASE 4=0?, SET_VRING_ADDR 4?
        SET_VRING_KICK 0?, SET_VRING_ENABLE 0=1?, SET_VRING_KICK 1?, SET_VRING_ENABLE 1=1?
        SET_VRING_KICK 4?, SET_VRING_ENABLE 4=1?
        SET_VRING_ENABLE 4=0?, SET_VRING_ENABLE 1=0?, SET_VRING_ENABLE 0=0?, GET_FEATURES",
    );
    assert_eq!(shape(log), expected);
}

#[test]
fn a_backend_that_dies_and_comes_back_is_taken_again() {
    for persona in Persona::ALL
        .into_iter()
        .filter(|persona| persona.reconnects())
    {
        let (backend, mut nic) = attach(persona, 1);
        exchange(&mut nic, 0, 0..100);
        backend.kill();
        // Sent while nobody is there: the new backend finds them in the ring.
        for n in 100..150 {
            send(&mut nic, 0, n);
        }
        nic.flush(0);
        let memory = Arc::clone(nic.transport.memory());
        let (backend, stream) = Backend::start(&memory, OFFER);
        nic.transport.reattach_stream(stream).unwrap();
        expect(&mut nic, 0, 100..150);
        exchange(&mut nic, 0, 150..200);
        drop(nic.remove().unwrap());
        let log = backend.finish();
        let bases: Vec<_> = log
            .iter()
            .filter(|line| line.contains("VRING_BASE 0="))
            .collect();
        let base = match persona {
            // The available index: 256 buffers, 100 of them used and posted again, less a batch.
            Persona::CloudHypervisor => {
                assert!(!log.contains(&"GET_PROTOCOL_FEATURES".to_owned()));
                let base: u16 = bases[0]
                    .trim_end_matches('?')
                    .rsplit_once('=')
                    .unwrap()
                    .1
                    .parse()
                    .unwrap();
                assert!((256..=356).contains(&base), "{base}");
                continue;
            }
            Persona::VirtioUser => 0,
            _ => 100,
        };
        assert!(
            bases[0].contains(&format!("={base}")),
            "{persona:?}: {bases:?}"
        );
    }
}

#[test]
fn some_do_not_come_back() {
    for persona in [Persona::Crosvm, Persona::Uml] {
        let (backend, mut nic) = attach(persona, 1);
        backend.kill();
        let memory = Arc::clone(nic.transport.memory());
        let (backend, stream) = Backend::start(&memory, OFFER);
        let again = nic.transport.reattach_stream(stream);
        assert!(
            matches!(again, Err(TransportError::Unsupported(_))),
            "{persona:?}"
        );
        backend.kill();
    }
}

#[test]
fn replies_with_other_flags_are_refused() {
    for reply_flags in [1, 4, 0xd, 0x15] {
        let memory = GuestMemory::new(1 << 20).unwrap();
        let options = FrontEndOptions::default();
        let mut front_end =
            FrontEnd::new(Persona::VirtioUser, Arc::clone(&memory), options).unwrap();
        let (backend, stream) = Backend::start(
            &memory,
            Offer {
                reply_flags,
                ..OFFER
            },
        );
        let attached = front_end.attach_stream(stream);
        assert!(
            matches!(attached, Err(TransportError::Refused { .. })),
            "{reply_flags:#x}"
        );
        drop(front_end);
        backend.finish();
    }
}

#[test]
fn a_backend_that_says_nothing_is_gone() {
    let memory = GuestMemory::new(1 << 20).unwrap();
    let options = FrontEndOptions {
        timeout: Duration::from_millis(20),
        ..Default::default()
    };
    let mut front_end = FrontEnd::new(Persona::Qemu, memory, options).unwrap();
    let (_mute, stream) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(
        front_end.attach_stream(stream),
        Err(TransportError::Gone { .. })
    ));
}

#[test]
fn rings_are_resized_over_a_connection() {
    // Whoever stops a queue by a message of its own, and passes the feature on.
    for persona in [Persona::Plain, Persona::Qemu] {
        let offer = Offer {
            features: OFFER.features | f::RING_RESET,
            ..OFFER
        };
        let (backend, mut nic) = attach_to(persona, 2, offer);
        for (round, size) in (0..).zip([128, 512, 256]) {
            exchange(&mut nic, 0, round * 100..round * 100 + 50);
            nic.set_ringparam(size, size).unwrap();
            for pair in [0, 1] {
                exchange(&mut nic, pair, round * 100 + 50..round * 100 + 80);
            }
        }
        drop(nic.remove().unwrap());
        let told = backend.finish();
        let stops = told
            .iter()
            .filter(|line| *line == "GET_VRING_BASE 1")
            .count();
        assert!(stops >= 3, "{persona:?}: {told:?}");
    }
}
