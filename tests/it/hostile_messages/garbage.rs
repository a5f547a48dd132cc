//! Messages that are almost right, in any order; and what they leave behind.

use std::fs;
use std::time::Duration;

use nic_guest::memory::GuestMemory;
use nic_guest::transport::vhost_user::VhostUser;
use nic_guest::virtio_net::VirtnetInfo;
use vhost::vhost_user::message::FrontendReq as Req;

use nic_testbed::check::messages::{Fds, Hostile, Random, garbage};

use super::{assert_works, cases, dial, greet, guest};
use crate::support::{NicProcess, TestNic, wait_until, without_super_frames};

#[test]
fn garbage_is_survived() {
    let (nic, fds) = (TestNic::new("loopback"), Fds::default());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..400 {
        let front = if random.below(4) == 0 {
            dial(&nic.socket())
        } else {
            greet(&nic)
        };
        garbage(&front, &mut random, &fds);
        drop(front);
        if round % 20 == 0 {
            assert_works(&mut guest(&nic), "garbage");
        }
    }
    assert_works(&mut guest(&nic), "garbage");
    nic.assert_balanced();
}

/// File descriptors, threads and mappings of guest memory that a process has.
fn holds(pid: u32) -> [usize; 3] {
    let entries = |what| {
        fs::read_dir(format!("/proc/{pid}/{what}"))
            .expect("it runs")
            .count()
    };
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    [
        entries("fd"),
        entries("task"),
        maps.matches("nic-guest-memory").count(),
    ]
}

#[test]
fn nothing_is_left_of_hostile_front_ends() {
    // A process of its own: other tests open descriptors in this one.
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("nic.sock");
    let process = NicProcess::start(&socket);
    let (fds, mut random) = (Fds::default(), Random(7));
    let attach = || {
        let transport = VhostUser::connect(&socket, GuestMemory::new(8 << 20).expect("memory"))
            .expect("a connection");
        let mut guest = VirtnetInfo::probe(transport, &without_super_frames()).expect("a device");
        assert_works(&mut guest, "garbage");
    };
    attach();
    // A connection that is waited for has the one before behind it.
    let settled = || {
        dial(&socket).ask_u64(Req::GET_FEATURES).expect("an answer");
        let mut last = holds(process.id());
        wait_until("the connection to end", || {
            let now = holds(process.id());
            let settled = now == std::mem::replace(&mut last, now) && now[2] == 0;
            std::thread::sleep(Duration::from_millis(20));
            settled
        });
        last
    };
    let before = settled();
    let many = cases(&fds);
    for round in 0..200 {
        let front = dial(&socket);
        if round % 2 == 0 {
            let Hostile {
                request,
                flags,
                payload,
                fds,
                ..
            } = &many[round % many.len()];
            let _ = front.send(*request, *flags, payload, fds);
        } else {
            front.tell(Req::SET_OWNER, &[], &[]).expect("it reads");
            garbage(&front, &mut random, &fds);
        }
    }
    attach();
    wait_until("as few descriptors, threads and mappings as before", || {
        settled() == before
    });
}
