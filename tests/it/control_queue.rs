//! What the guest tells the card over the control queue, by what then arrives.
//!
//! The wire is a loopback plug: the guest sends one frame to each address that matters and sees which come back.

use std::time::{Duration, Instant};

use nic_device::features::Features;
use nic_guest::transport::Transport;
use nic_guest::transport::vhost_user::VhostUser;
use nic_guest::virtio_net::ctrl::{
    CtrlError, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET,
    VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_ERR,
};
use nic_guest::virtio_net::features as f;
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo};
use nic_model::counters::Drop;
use nic_model::filter::TABLE_SIZE;

use crate::support::{PATIENCE, TestNic, exchange, numbered_frame, wait_until};

type Guest = VirtnetInfo<VhostUser>;
type Mac = [u8; 6];

/// The card's address unless it was told otherwise.
const OWN: Mac = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
/// The address that a guest gives it.
const NEW: Mac = [0x52, 0x54, 0x00, 0x99, 0x99, 0x99];
const OTHER: Mac = [0x52, 0x54, 0x00, 0x12, 0x34, 0x57];
const GROUP: Mac = [0x01, 0x00, 0x5e, 0x00, 0x00, 0x01];
const GROUP6: Mac = [0x33, 0x33, 0x00, 0x00, 0x00, 0x01];

/// To whom the guest sends.
const PROBES: [(&str, Mac); 6] = [
    ("own", OWN),
    ("new", NEW),
    ("other", OTHER),
    ("group", GROUP),
    ("group6", GROUP6),
    ("broadcast", [0xff; 6]),
];
const EVERYTHING: &str = "own new other group group6 broadcast";

/// Sends one frame to each address, and returns which came back. The last one, to all, always does, and they
/// stay in order: so nothing has to be waited for that may not come.
fn passing(guest: &mut Guest) -> String {
    let mut expected = Vec::new();
    for (number, (name, mac)) in (0..).zip(PROBES) {
        let mut frame = numbered_frame(number, 80);
        frame[..6].copy_from_slice(&mac);
        guest
            .start_xmit(0, &frame, &VirtioNetHdr::default())
            .expect("room");
        expected.push((name, frame));
    }
    guest.flush(0);
    let (mut came, start) = (Vec::new(), Instant::now());
    while came.last() != Some(&"broadcast") {
        assert!(
            start.elapsed() < PATIENCE,
            "the broadcast did not come: {came:?}"
        );
        let taken = guest.poll(0, 64, |frame| {
            let frame = frame.to_vec();
            let probe = expected.iter().find(|(_, sent)| *sent == frame);
            came.push(probe.map_or("an unknown frame", |(name, _)| name));
        });
        if taken.expect("sound rings") == 0 {
            guest.wait(Duration::from_millis(10));
        }
    }
    came.join(" ")
}

/// What a guest asks for, how it is answered, and what passes then. Each begins where the one before ended.
type Step<'a> = (
    &'a str,
    &'a dyn Fn(&mut Guest) -> Result<(), CtrlError>,
    &'a str,
);

fn walk(nic: &TestNic, guest: &mut Guest, steps: &[Step<'_>]) {
    for (what, command, expected) in steps {
        command(guest).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(passing(guest), *expected, "{what}");
    }
    nic.assert_balanced();
}

#[test]
fn each_command_changes_what_arrives() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    assert!(guest.features() & f::CTRL_RX != 0 && nic.status().nic.port.filter_active);
    let probed = nic.status().nic.control.ok;
    let many = [GROUP; TABLE_SIZE + 1];
    let steps: &[Step<'_>] = &[
        ("at first", &|_| Ok(()), "own broadcast"),
        ("promiscuous", &|guest| guest.set_promisc(true), EVERYTHING),
        (
            "not promiscuous",
            &|guest| guest.set_promisc(false),
            "own broadcast",
        ),
        (
            "all multicast",
            &|guest| guest.set_allmulti(true),
            "own group group6 broadcast",
        ),
        ("both", &|guest| guest.set_promisc(true), EVERYTHING),
        (
            "all multicast still",
            &|guest| guest.set_promisc(false),
            "own group group6 broadcast",
        ),
        (
            "neither",
            &|guest| guest.set_allmulti(false),
            "own broadcast",
        ),
        (
            "tables",
            &|guest| guest.set_mac_table(&[OTHER], &[GROUP]),
            "own other group broadcast",
        ),
        (
            "other tables",
            &|guest| guest.set_mac_table(&[], &[GROUP6]),
            "own group6 broadcast",
        ),
        // The card's table does not hold so many; the driver's own filter follows.
        (
            "too many groups",
            &|guest| guest.set_mac_table(&[], &many),
            "own group group6 broadcast",
        ),
        (
            "too many stations",
            &|guest| guest.set_mac_table(&many, &[]),
            "own new other broadcast",
        ),
        (
            "empty tables",
            &|guest| guest.set_mac_table(&[], &[]),
            "own broadcast",
        ),
        (
            "another address",
            &|guest| guest.set_mac_address(NEW),
            "new broadcast",
        ),
        (
            "the first one",
            &|guest| guest.set_mac_address(OWN),
            "own broadcast",
        ),
    ];
    walk(&nic, &mut guest, steps);
    let status = nic.status().nic;
    // The first step has no command; those of the probe came before.
    let commands = probed + steps.len() as u64 - 1;
    assert_eq!(
        (status.control.commands, status.control.ok),
        (commands, commands)
    );
    assert_eq!(status.queues[2].faults, 0);
}

#[test]
fn whole_kinds_are_refused() {
    const ALLUNI: u8 = 2;
    const NOMULTI: u8 = 3;
    const NOUNI: u8 = 4;
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    let steps: &[Step<'_>] = &[
        (
            "all unicast",
            &|guest| guest.set_rx_mode(ALLUNI, true),
            "own new other broadcast",
        ),
        (
            "all multicast, too",
            &|guest| guest.set_allmulti(true),
            EVERYTHING,
        ),
        (
            "no unicast",
            &|guest| guest.set_rx_mode(NOUNI, true),
            "group group6 broadcast",
        ),
        (
            "no multicast",
            &|guest| guest.set_rx_mode(NOMULTI, true),
            "broadcast",
        ),
        ("promiscuous", &|guest| guest.set_promisc(true), EVERYTHING),
        (
            "not promiscuous",
            &|guest| guest.set_promisc(false),
            "broadcast",
        ),
        (
            "unicast again",
            &|guest| guest.set_rx_mode(NOUNI, false),
            "own new other broadcast",
        ),
    ];
    walk(&nic, &mut guest, steps);
    let port = nic.status().nic.port;
    assert!(port.all_unicast && port.no_multicast && !port.no_unicast && !port.no_broadcast);
}

#[test]
fn frames_of_vlans_arrive_once_they_were_added() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    let mut frame = numbered_frame(1, 80);
    frame[..6].copy_from_slice(&OWN);
    frame[12..14].copy_from_slice(&[0x81, 0x00]);
    frame[14..16].copy_from_slice(&[0, 7]);
    let send = |guest: &mut Guest| {
        guest
            .start_xmit(0, &frame, &VirtioNetHdr::default())
            .expect("room");
        // What follows has no tag: when it is back, so is the first, or it is lost.
        passing(guest)
    };
    assert_eq!(send(&mut guest), "own broadcast");
    guest.vlan_rx_add_vid(7).expect("a VLAN");
    assert_eq!(send(&mut guest), "an unknown frame own broadcast");
    guest.vlan_rx_add_vid(4095).expect("a VLAN");
    assert_eq!(nic.status().nic.port.vlan_table, ["7", "4095"]);
    guest.vlan_rx_kill_vid(7).expect("a VLAN");
    assert_eq!(send(&mut guest), "own broadcast");
    assert_eq!(
        nic.status()
            .nic
            .port
            .counters
            .drops
            .get(Drop::RxVlanFiltered),
        2
    );
    guest.remove().expect("a reset");
    assert!(nic.status().nic.port.vlan_table.is_empty());
}

#[test]
fn the_status_and_the_configuration_space_show_what_was_set() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    assert_eq!(guest.mac(), OWN);
    guest.set_mac_address(NEW).expect("an address");
    guest
        .set_mac_table(&[OTHER], &[GROUP, GROUP6])
        .expect("tables");
    guest.set_promisc(true).expect("promiscuous mode");
    guest.set_allmulti(true).expect("all multicast");
    // From the card, not from what the driver remembers.
    guest.read_config().expect("a configuration space");
    assert_eq!(guest.mac(), NEW);
    let port = nic.status().nic.port;
    assert_eq!(port.mac, "52:54:00:99:99:99");
    assert_eq!(port.unicast_table, ["52:54:00:12:34:57"]);
    assert_eq!(
        port.multicast_table,
        ["01:00:5e:00:00:01", "33:33:00:00:00:01"]
    );
    assert!(port.filter_active && port.promiscuous && port.all_multicast);
}

/// Asserts that the card is as it was before anybody changed it.
fn assert_untouched(nic: &TestNic) {
    let port = nic.status().nic.port;
    assert_eq!(port.mac, "52:54:00:12:34:56");
    assert!(port.unicast_table.is_empty() && port.multicast_table.is_empty());
    assert!(!port.promiscuous && !port.all_multicast);
}

#[test]
fn a_reset_restores_address_and_modes() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    for end in ["reset", "leave", "vanish"] {
        guest.set_mac_address(NEW).expect("an address");
        guest.set_mac_table(&[OTHER], &[GROUP]).expect("tables");
        guest.set_allmulti(true).expect("all multicast");
        assert_eq!(passing(&mut guest), "new other group group6 broadcast");
        let transport = guest.remove().expect("a reset");
        assert_untouched(&nic);
        guest = match end {
            // The same connection, and the next driver on it.
            "reset" => VirtnetInfo::probe(transport, &ProbeOptions::default()).expect("a device"),
            _ => {
                drop(transport);
                nic.guest(&ProbeOptions::default())
            }
        };
        assert_eq!(guest.mac(), OWN);
        assert_eq!(passing(&mut guest), "own broadcast", "{end}");
    }
    // A front-end that leaves without a word resets no less.
    guest.set_promisc(true).expect("promiscuous mode");
    guest.set_mac_address(NEW).expect("an address");
    drop(guest);
    // The rings let go first, then the port.
    wait_until("the end of the connection", || {
        let nic = nic.status().nic;
        nic.features.is_empty() && nic.port.mac != "52:54:00:99:99:99"
    });
    assert_untouched(&nic);
}

#[test]
fn what_is_malformed_is_refused_and_changes_nothing() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions::default());
    let probed = nic.status().nic.control.ok;
    guest.set_mac_table(&[OTHER], &[GROUP]).expect("tables");
    let (rx, mac) = (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_MAC);
    let (promisc, allmulti) = (VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_CTRL_RX_ALLMULTI);
    let (table, address) = (VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MAC_ADDR_SET);
    let commands: &[(&str, u8, u8, &[u8])] = &[
        ("a mode without a value", rx, promisc, &[]),
        ("a mode that is neither on nor off", rx, promisc, &[2]),
        ("a mode of two octets", rx, allmulti, &[1, 0]),
        ("a mode that is not there", rx, 6, &[1]),
        ("a table without its second half", mac, table, &[0, 0, 0, 0]),
        (
            "a table that is cut off",
            mac,
            table,
            &[1, 0, 0, 0, 2, 0, 0, 0, 0],
        ),
        ("a table of far too many", mac, table, &[0xff; 16]),
        ("a table and more", mac, table, &[0; 9]),
        ("no table", mac, table, &[]),
        ("half an address", mac, address, &NEW[..5]),
        ("more than an address", mac, address, &[2; 7]),
        ("a command of no class", mac, 9, &NEW),
        ("a class that is not there", 99, 0, &[1]),
        ("a VLAN of 13 bits", 2, 0, &[5, 0x10]),
        ("an announcement and more", 3, 0, &[0]),
        ("statistics of no queue", 8, 1, &[0xff; 16]),
        ("offloads that are none", 5, 0, &[0xff; 8]),
        ("offloads that are cut off", 5, 0, &[0; 7]),
        // Not offered.
        ("queue pairs", 4, 0, &[1, 0]),
    ];
    for (what, class, command, data) in commands {
        let answer = guest.send_command(*class, *command, data);
        assert!(
            matches!(answer, Err(CtrlError::Refused(VIRTIO_NET_ERR))),
            "{what}: {answer:?}"
        );
    }
    assert_eq!(passing(&mut guest), "own other group broadcast");
    guest.set_promisc(true).expect("the queue still works");
    let status = nic.status().nic;
    let done = probed + 2;
    assert_eq!(status.control.commands, commands.len() as u64 + done);
    assert_eq!((status.control.ok, status.queues[2].faults), (done, 0));
}

#[test]
fn without_ctrl_rx_everything_passes() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions {
        features: f::SUPPORTED & !f::CTRL_RX,
        ..ProbeOptions::default()
    });
    assert!(guest.cvq.is_some() && !nic.status().nic.port.filter_active);
    assert_eq!(passing(&mut guest), EVERYTHING);
    for refused in [
        guest.set_promisc(false),
        guest.set_allmulti(true),
        guest.set_mac_table(&[], &[]),
    ] {
        assert!(matches!(refused, Err(CtrlError::Refused(_))), "{refused:?}");
    }
    // The address is another feature's.
    guest.set_mac_address(NEW).expect("an address");
    assert_eq!(passing(&mut guest), EVERYTHING);
    // The next driver on the card takes the feature.
    let transport = guest.remove().expect("a reset");
    let mut guest = VirtnetInfo::probe(transport, &ProbeOptions::default()).expect("a device");
    assert_eq!(passing(&mut guest), "own broadcast");
}

#[test]
fn without_ctrl_mac_addr_the_address_stays() {
    let nic = TestNic::with("loopback", |config| {
        config.features = config.features.without(Features::CTRL_MAC_ADDR);
    });
    let mut guest = nic.guest(&ProbeOptions::default());
    let refused = guest.set_mac_address(NEW);
    assert!(matches!(refused, Err(CtrlError::Refused(_))), "{refused:?}");
    guest.read_config().expect("a configuration space");
    assert_eq!(
        (guest.mac(), passing(&mut guest)),
        (OWN, "own broadcast".into())
    );
}

#[test]
fn without_a_control_queue_the_driver_works() {
    let nic = TestNic::with("loopback", |config| {
        config.features = config.features.without(Features::CTRL_VQ);
    });
    let mut guest = nic.guest(&ProbeOptions::default());
    assert!(guest.features() & (f::CTRL_VQ | f::CTRL_RX | f::CTRL_MAC_ADDR) == 0);
    assert!(guest.cvq.is_none());
    assert!(matches!(guest.set_promisc(true), Err(CtrlError::NoQueue)));
    assert_eq!(passing(&mut guest), EVERYTHING);
    let frames: Vec<Vec<u8>> = (0..500).map(|number| numbered_frame(number, 200)).collect();
    assert_eq!(exchange(&mut guest, &frames), frames);
    nic.assert_balanced();
    let mut transport = guest.remove().expect("a reset");
    assert_eq!(
        transport.device_features().expect("features") & f::CTRL_VQ,
        0
    );
}

#[test]
fn commands_are_answered_while_frames_pass() {
    let nic = TestNic::new("generator:pps=50000");
    let mut guest = nic.guest(&ProbeOptions::default());
    let probed = nic.status().nic.control.ok;
    for round in 0..200 {
        guest.set_allmulti(round % 2 == 0).expect("an answer");
        guest.poll(0, 64, |_| {}).expect("sound rings");
    }
    wait_until("a frame", || {
        guest.poll(0, 64, |_| {}).expect("sound rings") > 0
    });
    assert_eq!(nic.status().nic.control.ok, probed + 200);
    nic.assert_balanced();
}
