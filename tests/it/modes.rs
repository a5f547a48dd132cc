//! The card's own moderation modes against others' implementations of the same rules.

use nic_guest::virtio_net::dim::{Dim, DimSample};
use nic_model::host::Direction;
use nic_model::moderation::dim::PeriodMode;
use nic_model::moderation::{Mode, ModeStatus, Moderation, Packet};
use nic_model::phy::Speed;
use nic_model::time::Nanos;
use proptest::prelude::*;

/// What the card's tuner and the guest's, which share nothing, make of the same interrupts: which profile after each.
struct Tuners {
    card: Moderation,
    guest: Dim,
    sample: DimSample,
    /// Packets and octets that wait for an interrupt.
    waiting: (u64, u64),
    decisions: u64,
}

impl Tuners {
    fn new() -> Self {
        let speed = Speed::from_mbps(10_000).expect("a rate");
        Tuners {
            card: Moderation::new(Mode::Dim(PeriodMode::Eqe), Direction::Receive, speed),
            guest: Dim::default(),
            sample: DimSample::default(),
            waiting: (0, 0),
            decisions: 0,
        }
    }

    /// A packet comes, and everything before it has been seen to in time.
    fn packet(&mut self, at: Nanos, octets: u32) {
        while let Some(deadline) = self.card.deadline().filter(|&due| due < at) {
            self.card.expire(deadline, deadline);
            self.interrupted(deadline);
        }
        self.waiting.0 += 1;
        self.waiting.1 += u64::from(octets);
        self.card
            .packets(std::iter::once(Packet { at, octets }), at);
        self.interrupted(at);
    }

    fn interrupted(&mut self, at: Nanos) {
        if !self.card.take_due() {
            return;
        }
        let (packets, octets) = std::mem::take(&mut self.waiting);
        self.sample.time = at.0 / 1_000;
        self.sample.pkt_ctr += packets;
        self.sample.byte_ctr += octets;
        self.sample.event_ctr = self.sample.event_ctr.wrapping_add(1);
        if self.guest.net_dim(self.sample) {
            // In force at once, and measured from here.
            self.guest.applied();
            assert!(!self.guest.net_dim(self.sample));
        }
        let card = self.card.coalesce();
        let guest = self.guest.profile();
        assert_eq!(
            (card.usecs, card.frames),
            (guest.max_usecs, guest.max_packets)
        );
        let ModeStatus::Dim { decisions, .. } = self.card.mode() else {
            panic!("another mode");
        };
        self.decisions = decisions;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn the_tuners_of_card_and_guest_come_to_the_same_profiles(
        // Loads in turn: nanoseconds between packets, octets, packets, how even they are.
        loads in prop::collection::vec((1u64..200, 60u32..9_000, 200u64..8_000, 0u64..3), 1..8),
    ) {
        let mut tuners = Tuners::new();
        let mut at = 0;
        for (distance, octets, count, uneven) in loads {
            for n in 0..count {
                // Whole microseconds, as the guest's clock has them: a measurement is as long for both.
                at += 1 + distance * (1 + n % (uneven + 1));
                tuners.packet(Nanos(at * 1_000), octets);
            }
        }
        prop_assert!(tuners.decisions > 0);
    }
}
