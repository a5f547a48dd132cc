use nic_model::port::{Port, PortConfig};
use nic_model::rss::{HashTypes, Mode};

use super::*;
use crate::control::tests::{execute, refused};

const PAIRS: u16 = 4;
/// Classes and commands.
const SET_PAIRS: [u8; 2] = [4, 0];
const SET_RSS: [u8; 2] = [4, 1];
const SET_HASH: [u8; 2] = [4, 2];

fn port() -> Port {
    Port::new(&PortConfig {
        queue_pairs: PAIRS,
        ..PortConfig::default()
    })
}

/// `struct virtio_net_rss_config`, whatever the values.
#[derive(Clone)]
struct Config {
    types: u32,
    mask: u16,
    unclassified: u16,
    table: Vec<u16>,
    max_tx_vq: u16,
    key_len: u8,
    key: Vec<u8>,
}

impl Config {
    /// One that is accepted.
    fn good() -> Self {
        Config {
            types: 0x3f,
            mask: 127,
            unclassified: 1,
            table: (0..128).map(|entry| entry % PAIRS).collect(),
            max_tx_vq: PAIRS,
            key_len: 40,
            key: vec![0x6d; 40],
        }
    }

    fn command(&self) -> Vec<u8> {
        let mut command = SET_RSS.to_vec();
        command.extend(self.types.to_le_bytes());
        command.extend(self.mask.to_le_bytes());
        command.extend(self.unclassified.to_le_bytes());
        command.extend(self.table.iter().flat_map(|queue| queue.to_le_bytes()));
        command.extend(self.max_tx_vq.to_le_bytes());
        command.push(self.key_len);
        command.extend(&self.key);
        command
    }

    fn with(change: impl FnOnce(&mut Self)) -> Vec<u8> {
        let mut config = Config::good();
        change(&mut config);
        config.command()
    }
}

#[test]
fn the_last_command_says_how_frames_are_steered() {
    let mut port = port();
    assert_eq!(port.rss().mode(), Mode::Single);
    execute(&mut port, Features::MQ, &[4, 0, 3, 0]).unwrap();
    assert_eq!(
        (port.rss().mode(), port.rss().pairs()),
        (Mode::Automatic, 3)
    );
    execute(&mut port, Features::RSS, &Config::good().command()).unwrap();
    let status = port.rss().status();
    assert_eq!((status.mode, status.hash_types), (Mode::Table, 0x3f));
    assert_eq!(
        (status.table, status.unclassified),
        (Config::good().table, 1)
    );
    assert_eq!(status.queue_pairs, PAIRS, "by what the driver transmits on");
    execute(&mut port, Features::MQ, &[4, 0, 1, 0]).unwrap();
    assert_eq!(port.rss().mode(), Mode::Single);
}

#[test]
fn hashes_alone_leave_the_steering_automatic() {
    let mut port = port();
    execute(&mut port, Features::MQ, &[4, 0, 4, 0]).unwrap();
    let data = [&[0xff, 1, 0, 0][..], &[0; 8], &[3, 1, 2, 3]].concat();
    let command = [&SET_HASH[..], &data].concat();
    execute(&mut port, Features::HASH_REPORT, &command).unwrap();
    assert_eq!(port.rss().mode(), Mode::Automatic);
    let hash = port.rss().hash_config();
    assert_eq!(hash.types(), HashTypes::ALL);
    assert_eq!((&hash.key()[..4], hash.key()[39]), (&[1, 2, 3, 0][..], 0));
    for refusal in [&command[..command.len() - 1], &command[..10]] {
        let refused = refused(&mut port, Features::HASH_REPORT, refusal);
        assert_eq!(refused, Refusal::Malformed);
    }
}

#[test]
fn tables_of_every_length_up_to_the_longest_are_taken() {
    for length in [1, 2, 64, 128] {
        let command = Config::with(|config| {
            config.mask = length - 1;
            config.table.truncate(length.into());
        });
        execute(&mut port(), Features::RSS, &command).unwrap();
    }
    let long = Config::with(|config| {
        config.mask = 511;
        config.table = vec![3; 512];
    });
    assert_eq!(
        refused(&mut port(), Features::RSS, &long),
        Refusal::Malformed
    );
    let mut port = Port::new(&PortConfig {
        queue_pairs: PAIRS,
        rss_table: 512,
        ..PortConfig::default()
    });
    execute(&mut port, Features::RSS, &long).unwrap();
    // No key at all is one of zeros.
    let command = Config::with(|config| (config.key_len, config.key) = (0, Vec::new()));
    execute(&mut port, Features::RSS, &command).unwrap();
}

#[test]
fn a_key_ends_where_its_length_says() {
    let command = Config::good().command();
    let (mut exact, mut padded) = (port(), port());
    execute(&mut exact, Features::RSS, &command).unwrap();
    execute(
        &mut padded,
        Features::RSS,
        &[&command[..], &[0x5a]].concat(),
    )
    .unwrap();
    assert_eq!(format!("{padded:?}"), format!("{exact:?}"));
}

#[test]
fn what_names_queues_that_there_are_not_is_refused() {
    let mut port = port();
    for pairs in [0, PAIRS + 1, u16::MAX] {
        let command = [&SET_PAIRS[..], &pairs.to_le_bytes()].concat();
        assert_eq!(refused(&mut port, Features::MQ, &command), Refusal::NoQueue);
    }
    for command in [
        Config::with(|config| config.unclassified = PAIRS),
        Config::with(|config| config.table[77] = PAIRS),
        Config::with(|config| config.table[0] = 0x8000),
        Config::with(|config| config.max_tx_vq = 0),
        Config::with(|config| config.max_tx_vq = PAIRS + 1),
    ] {
        assert_eq!(
            refused(&mut port, Features::RSS, &command),
            Refusal::NoQueue
        );
    }
}

#[test]
fn what_is_malformed_is_refused() {
    let mut port = port();
    for command in [&[4, 0][..], &[4, 0, 1], &[4, 0, 1, 0, 0]] {
        let refusal = refused(&mut port, Features::MQ, command);
        assert_eq!(refusal, Refusal::Malformed, "{command:?}");
    }
    let good = Config::good().command();
    for command in [
        Config::with(|config| config.mask = 126),
        Config::with(|config| config.mask = 255),
        Config::with(|config| config.mask = u16::MAX),
        Config::with(|config| config.types = 0x200),
        Config::with(|config| (config.key_len, config.key) = (41, vec![0; 41])),
        Config::with(|config| config.key_len = 41),
    ] {
        let refusal = refused(&mut port, Features::RSS, &command);
        assert_eq!(refusal, Refusal::Malformed, "{command:?}");
    }
    for len in 2..good.len() {
        let refusal = refused(&mut port, Features::RSS, &good[..len]);
        assert_eq!(refusal, Refusal::Malformed, "{len}");
    }
}

#[test]
fn what_was_not_negotiated_is_unknown() {
    let mut port = port();
    let hash = [&SET_HASH[..], &[0; 13]].concat();
    for (feature, command) in [
        (Features::MQ, &[4, 0, 1, 0][..]),
        (Features::RSS, &Config::good().command()),
        (Features::HASH_REPORT, &hash),
    ] {
        let others = Features::all() - feature;
        assert_eq!(refused(&mut port, others, command), Refusal::Unknown);
        execute(&mut port, feature, command).unwrap();
    }
    assert_eq!(
        refused(&mut port, Features::all(), &[4, 3]),
        Refusal::Unknown
    );
}
