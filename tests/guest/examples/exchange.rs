//! Attaches to a vhost-user-net backend and exchanges frames with it, as a chosen VMM would.
//!
//! `cargo run -p nic-guest --example exchange -- SOCKET [PERSONA] [FRAMES] [PAIRS] [MASK]`, where
//! PERSONA is `crate` (the `vhost` crate's front-end), `plain`, `qemu`, `cloud-hypervisor`,
//! `crosvm`, `virtio-user` or `uml`. A backend that sends frames back (a loopback, or DPDK's
//! `testpmd --forward-mode=macswap`) makes both counts equal. MASK (hexadecimal) limits the
//! features.

use std::path::Path;
use std::time::{Duration, Instant};

use nic_guest::memory::GuestMemory;
use nic_guest::transport::Transport;
use nic_guest::transport::front_end::{FrontEnd, FrontEndOptions};
use nic_guest::transport::persona::Persona;
use nic_guest::transport::vhost_user::{VhostUser, VhostUserOptions};
use nic_guest::transport::vmm::VmmConfig;
use nic_guest::virtio_net::features::SUPPORTED;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::tx::XmitError;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let path = Path::new(
        args.first()
            .ok_or("usage: exchange SOCKET [PERSONA] [FRAMES] [PAIRS] [MASK]")?,
    );
    let name = args.get(1).map_or("crate", String::as_str);
    let frames = args.get(2).map_or(Ok(1_000_000), |arg| arg.parse())?;
    let pairs = args.get(3).map_or(Ok(1), |arg| arg.parse())?;
    let mask = args
        .get(4)
        .map_or(Ok(u64::MAX), |arg| u64::from_str_radix(arg, 16))?;
    let options = ProbeOptions {
        features: SUPPORTED & mask,
        queue_pairs: pairs,
        ..ProbeOptions::default()
    };
    let nic = VmmConfig {
        pairs,
        ..VmmConfig::default()
    };
    let persona = match name {
        "crate" => {
            let memory = GuestMemory::new(64 << 20)?;
            let front_end = VhostUserOptions {
                nic,
                ..VhostUserOptions::default()
            };
            let transport = VhostUser::connect_with(path, memory, &front_end)?;
            return exchange(transport, frames, &options);
        }
        "plain" => Persona::Plain,
        "qemu" => Persona::Qemu,
        "cloud-hypervisor" => Persona::CloudHypervisor,
        "crosvm" => Persona::Crosvm,
        "virtio-user" => Persona::VirtioUser,
        "uml" => Persona::Uml,
        other => return Err(format!("no persona {other}").into()),
    };
    let builder = GuestMemory::builder();
    let memory = match persona {
        Persona::VirtioUser => builder.region_at_host_address(64 << 20),
        Persona::Uml => builder.region_at_offset(0x60_0000, 64 << 20, 0x60_0000),
        // A hole below 4 GiB, as on a PC.
        _ => builder.region(0, 32 << 20).region(1 << 32, 32 << 20),
    };
    let vmm = FrontEndOptions {
        nic,
        ..FrontEndOptions::default()
    };
    let front_end = FrontEnd::connect(persona, path, memory.build()?, vmm)?;
    exchange(front_end, frames, &options)
}

fn exchange(transport: impl Transport, frames: u64, options: &ProbeOptions) -> Result<(), Error> {
    let mut nic = VirtnetInfo::probe(transport, options)?;
    println!("features {:#018x}, {:?}", nic.features(), nic.config);
    let mut frame = [0; 60];
    frame[..6].copy_from_slice(&nic.mac());
    frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    let hdr = VirtioNetHdr::default();
    // What is sent between SET_VRING_KICK and SET_VRING_ENABLE is discarded, and crosvm waits for
    // neither: the first frames may be lost.
    let mut up = 0;
    while up == 0 {
        nic.start_xmit(0, &frame, &hdr)?;
        nic.flush(0);
        nic.wait(Duration::from_millis(10));
        up = nic.poll(0, 64, |_| {})?;
    }
    std::thread::sleep(Duration::from_millis(100));
    while nic.poll(0, 64, |_| {})? > 0 {}
    let (begin, mut sent, mut received) = (Instant::now(), 0, 0);
    let mut last_progress = Instant::now();
    while (sent < frames || received < sent) && last_progress.elapsed() < Duration::from_secs(2) {
        let before = sent + received;
        for pair in 0..nic.curr_queue_pairs() {
            for _ in 0..32 {
                if sent - received >= 200 || sent == frames {
                    break;
                }
                match nic.start_xmit(pair, &frame, &hdr) {
                    Ok(()) => sent += 1,
                    Err(XmitError::Busy) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            nic.flush(pair);
            received += nic.poll(pair, 64, |_| {})? as u64;
            nic.take_interrupts(pair);
        }
        if sent + received != before {
            last_progress = Instant::now();
        }
    }
    let elapsed = begin.elapsed();
    let (rx, tx) = nic.stats();
    println!("sent {sent}, received {received} in {elapsed:?}");
    println!("{rx:?}\n{tx:?}");
    nic.remove()?;
    Ok(())
}
