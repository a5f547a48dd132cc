//! The card's counts, as the guest reads them and as users do: they agree.

use nic_guest::transport::vhost_user::VhostUser;
use nic_guest::virtio_net::{ProbeOptions, VirtnetInfo, features as f};

use crate::support::{TestNic, exchange, numbered_frame};

const STATS: u8 = 8;
const QUERY: u8 = 0;
const GET: u8 = 1;
const DEVICE_STATS: u64 = 1 << 50;
/// Every group that there is.
const GROUPS: u64 = 1 << 32 | 0xf << 16 | 0xf;

type Guest = VirtnetInfo<VhostUser>;

/// The counts of each of `groups` of virtqueue `index`, by the group's number.
fn get(guest: &mut Guest, index: u16, groups: u64) -> Vec<(u8, Vec<u64>)> {
    let mut request = [index, 0, 0, 0].map(u16::to_le_bytes).concat();
    request.extend(groups.to_le_bytes());
    let fields = [(0, 6), (1, 4), (16, 6), (17, 2), (32, 2)];
    let asked = || {
        fields
            .into_iter()
            .filter(|(group, _)| groups & (1 << group) != 0)
    };
    let mut reply = vec![0; asked().map(|(_, fields)| 8 + 8 * fields).sum()];
    guest
        .send_command_reply(STATS, GET, &request, &mut reply)
        .expect("statistics");
    let mut rest = &reply[..];
    let mut records = Vec::new();
    for (group, fields) in asked() {
        let (record, behind) = rest.split_at(8 + 8 * fields);
        let [low, high] = index.to_le_bytes();
        assert_eq!(
            record[..8],
            [group, 0, low, high, 0, 0, record.len() as u8, 0]
        );
        let words = record[8..].chunks_exact(8);
        let counts = words.map(|word| u64::from_le_bytes(word.try_into().expect("8 octets")));
        records.push((group, counts.collect()));
        rest = behind;
    }
    records
}

#[test]
fn the_guest_reads_what_users_see() {
    let nic = TestNic::new("loopback");
    let mut guest = nic.guest(&ProbeOptions {
        features: f::SUPPORTED | DEVICE_STATS,
        ..ProbeOptions::default()
    });
    let mut capabilities = [0; 8];
    guest
        .send_command_reply(STATS, QUERY, &[], &mut capabilities)
        .expect("capabilities");
    assert_eq!(u64::from_le_bytes(capabilities), GROUPS);
    let frames: Vec<Vec<u8>> = (0..500).map(|number| numbered_frame(number, 90)).collect();
    assert_eq!(exchange(&mut guest, &frames), frames);
    let rx = get(&mut guest, 0, 3);
    let tx = get(&mut guest, 1, 3 << 16);
    let control = get(&mut guest, 2, 1 << 32);
    let status = nic.status().nic;
    let [receive, transmit, _] = &status.queues[..] else {
        panic!("three queues");
    };
    let (kicks, interrupts) = (receive.kicks, receive.interrupts_sent);
    assert_eq!(rx[0], (0, vec![kicks, 500, 500 * 90, interrupts, 0, 0]));
    assert_eq!(rx[1].1.iter().sum::<u64>(), 500);
    let (kicks, interrupts) = (transmit.kicks, transmit.interrupts_sent);
    assert!(kicks > 0);
    assert_eq!(tx[0], (16, vec![kicks, 500, 500 * 90, interrupts, 0, 0]));
    assert_eq!(tx[1], (17, vec![500, 0]));
    let commands = (status.control.commands, status.control.ok);
    assert_eq!(control, [(32, vec![commands.0, commands.1])]);
    assert!(commands.0 == commands.1 && commands.0 >= 4);
}
