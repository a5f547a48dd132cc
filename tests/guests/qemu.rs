//! Linux under QEMU, by both ways in: QEMU's own virtio-net before our queues, and the bare device. Of the latter Linux takes all that
//! the NIC offers, packed rings too; QEMU's own has them only on demand.

use std::path::Path;

use super::support::{Conversation, Monitor, Nic, PING, TRANSFER, boot, has_packed_rings, run};

const PCI: [&str; 2] = ["--device", "virtio-net-pci"];
const PACKED: [&str; 3] = ["--device", "virtio-net-pci", "--packed"];
const BARE: [&str; 2] = ["--device", "test-device"];

/// Fails in a guest that does not have the rings that are asked for.
fn rings(device: &[&str]) -> String {
    has_packed_rings(u8::from(device != PCI))
}

fn works_and_works_again_after_a_reboot(device: &[&str]) {
    let nic = Nic::new(&[]);
    let guest = boot("guest-qemu", &[&nic], &[device, &["--boots", "2"]].concat());
    let out = run(guest, &format!("{}{PING}{TRANSFER}", rings(device)));
    assert_eq!(out.matches("transferred").count(), 2, "{out}");
    let stats = nic.stats();
    assert_eq!(stats["refused_messages"], 0);
    assert_eq!(stats["queues"]["rx0"]["faults"], 0, "{stats:#}");
    assert_eq!(stats["queues"]["tx0"]["faults"], 0, "{stats:#}");
}

#[test]
fn virtio_net_pci_transfers_before_and_after_a_reboot() {
    works_and_works_again_after_a_reboot(&PCI);
}

#[test]
fn virtio_net_pci_with_packed_rings_transfers_before_and_after_a_reboot() {
    works_and_works_again_after_a_reboot(&PACKED);
}

#[test]
fn the_bare_device_transfers_before_and_after_a_reboot() {
    works_and_works_again_after_a_reboot(&BARE);
}

/// Sends on in the background and waits, step by step, until the NIC or the guest was interfered with: a ping goes on, the transfer's
/// connection may be lost with the partner that had it.
fn in_mid_traffic(interlude: &str) -> String {
    format!(
        "ping -i 0.05 -W 5 10.77.0.1 > /tmp/ping &
        head -c 1000000000 /dev/zero | socat -t 1 - TCP:10.77.0.1:9 2> /dev/null &
        sleep 2; say traffic
        {interlude}
        before=$(grep -c 'bytes from' /tmp/ping); echo before $before
        i=0; while [ $(grep -c 'bytes from' /tmp/ping) -lt $((before + 20)) ]; do
            i=$((i + 1)); [ $i -lt 600 ] || exit 1; sleep 0.1
        done
        kill %1
        {PING}{TRANSFER}"
    )
}

#[test]
fn a_nic_killed_in_mid_traffic_is_attached_again() {
    let mut nic = Nic::new(&[]);
    let guest = boot("guest-qemu", &[&nic], &PCI);
    let mut guest = Conversation::start(guest, &nic.share(), &in_mid_traffic(""));
    guest.hear("traffic");
    nic.kill_and_restart();
    guest.answer("traffic");
    let out = guest.end();
    assert!(out.contains(&"transferred".to_owned()), "{out:#?}");
}

/// QEMU does not know where a packed ring stood when the NIC died: it is the driver that has to begin anew.
#[test]
fn a_nic_killed_under_packed_rings_serves_the_driver_once_it_begins_anew() {
    let mut nic = Nic::new(&[]);
    let anew = "driver=/sys/bus/virtio/drivers/virtio_net
        name=$(basename $(readlink -f /sys/class/net/eth0/device))
        echo $name > $driver/unbind; echo $name > $driver/bind
        ip addr add 10.77.0.2/24 dev eth0; ip link set eth0 up";
    let guest = boot("guest-qemu", &[&nic], &PACKED);
    let job = format!("{}{}", rings(&PACKED), in_mid_traffic(anew));
    let mut guest = Conversation::start(guest, &nic.share(), &job);
    guest.hear("traffic");
    nic.kill_and_restart();
    nic.wait_for("QEMU to come again", &|stats| stats["connections"] == 1);
    guest.answer("traffic");
    let out = guest.end();
    assert!(out.contains(&"transferred".to_owned()), "{out:#?}");
}

/// QEMU takes the rings back and starts them again where they stood, with frames under way.
fn goes_on_where_it_stopped(device: &[&str]) {
    let nic = Nic::new(&[]);
    let share = nic.share();
    let socket = share.join("qmp");
    let guest = boot("guest-qemu", &[&nic], device);
    let path = |path: &Path| path.display().to_string();
    let mut command = guest;
    command.args(["--qmp", &path(&socket)]);
    let job = format!("{}{}", rings(device), in_mid_traffic(""));
    let mut guest = Conversation::start(command, &share, &job);
    guest.hear("traffic");
    let mut monitor = Monitor::connect(&socket);
    for _ in 0..5 {
        monitor.execute("stop", "{}");
        monitor.execute("cont", "{}");
        nic.wait_for("rings again", &|stats| !stats["rings"]["tx0"].is_null());
        let frames = |stats: &serde_json::Value| stats["port"]["tx_frames"].as_u64();
        let before = frames(&nic.stats());
        nic.wait_for("frames", &|stats| {
            frames(stats) > before.map(|count| count + 10)
        });
    }
    if device[1] == "virtio-net-pci" {
        monitor.execute("set_link", r#"{"name": "net0", "up": false}"#);
        monitor.execute("set_link", r#"{"name": "net0", "up": true}"#);
    }
    guest.answer("traffic");
    let out = guest.end();
    assert!(out.contains(&"transferred".to_owned()), "{out:#?}");
    let stats = nic.stats();
    assert_eq!(stats["queues"]["rx0"]["faults"], 0, "{stats:#}");
    assert_eq!(stats["queues"]["tx0"]["faults"], 0, "{stats:#}");
}

#[test]
fn a_machine_that_was_stopped_in_mid_traffic_goes_on() {
    goes_on_where_it_stopped(&PCI);
}

#[test]
fn a_machine_with_packed_rings_that_was_stopped_in_mid_traffic_goes_on() {
    goes_on_where_it_stopped(&PACKED);
}

#[test]
fn the_guest_sees_the_link_go_down_and_come_back() {
    let nic = Nic::new(&[]);
    // Reading the carrier of an interface is all it takes; it changes some time after the interrupt.
    let job = "carrier() {
            i=0; until [ \"$(cat /sys/class/net/eth0/carrier)\" = $1 ]; do
                i=$((i + 1)); [ $i -lt 600 ] || exit 1; sleep 0.05
            done
        }
        carrier 1; say up; carrier 0; say down; carrier 1
        ping -c 3 -i 0.2 10.77.0.1";
    let guest = boot("guest-qemu", &[&nic], &BARE);
    let mut guest = Conversation::start(guest, &nic.share(), job);
    guest.hear("up");
    nic.link(false);
    guest.answer("up");
    guest.hear("down");
    nic.link(true);
    guest.answer("down");
    guest.end();
}
