//! Linux under QEMU, by both ways in: QEMU's own virtio-net before our queues, and the bare device.

use super::support::{Conversation, Nic, PING, TRANSFER, boot, run};

const PCI: [&str; 2] = ["--device", "virtio-net-pci"];
const BARE: [&str; 2] = ["--device", "test-device"];

fn works_and_works_again_after_a_reboot(device: &[&str]) {
    let nic = Nic::new(&[]);
    let guest = boot("guest-qemu", &[&nic], &[device, &["--boots", "2"]].concat());
    let out = run(guest, &format!("{PING}{TRANSFER}"));
    assert_eq!(out.matches("transferred").count(), 2, "{out}");
    assert_eq!(nic.stats()["refused_messages"], 0);
}

#[test]
fn virtio_net_pci_transfers_before_and_after_a_reboot() {
    works_and_works_again_after_a_reboot(&PCI);
}

#[test]
fn the_bare_device_transfers_before_and_after_a_reboot() {
    works_and_works_again_after_a_reboot(&BARE);
}

#[test]
fn a_nic_killed_in_mid_traffic_is_attached_again() {
    let mut nic = Nic::new(&[]);
    // A ping and a transfer are under way when the NIC dies. The ping goes on; the transfer's connection is lost
    // with the partner that had it, so a new one is made.
    let job = format!(
        "ping -i 0.05 -W 5 10.77.0.1 > /tmp/ping &
        head -c 1000000000 /dev/zero | socat -t 1 - TCP:10.77.0.1:9 2> /dev/null &
        sleep 2; say traffic
        before=$(grep -c 'bytes from' /tmp/ping); echo before $before
        i=0; while [ $(grep -c 'bytes from' /tmp/ping) -lt $((before + 20)) ]; do
            i=$((i + 1)); [ $i -lt 600 ] || exit 1; sleep 0.1
        done
        kill %1
        {PING}{TRANSFER}"
    );
    let guest = boot("guest-qemu", &[&nic], &PCI);
    let mut guest = Conversation::start(guest, &nic.share(), &job);
    guest.hear("traffic");
    nic.kill_and_restart();
    guest.answer("traffic");
    let out = guest.end();
    assert!(out.contains(&"transferred".to_owned()), "{out:#?}");
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
