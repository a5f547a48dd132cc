//! Rate limits in both directions, against closed forms.

use super::scheduling::Senders;
use super::*;
use crate::host::Fetched;

const RATE: u64 = 123_456_789;
const BURST_OCTETS: u64 = 100_000;

fn limit() -> Limit {
    Limit {
        bits_per_second: RATE,
        burst: BURST_OCTETS as u32,
    }
}

fn limited(rates: Rates) -> Card {
    card(|c| {
        c.speed = Speed::from_mbps(1_000).unwrap();
        c.rates = rates;
    })
}

/// Octets that may go by `at`.
fn allowed(at: u64) -> u64 {
    BURST_OCTETS + (u128::from(RATE) * u128::from(at) / 8_000_000_000) as u64
}

/// When there is a token once `octets` octets have gone.
fn token_after(octets: u64) -> u64 {
    let lacks = octets.checked_sub(BURST_OCTETS).map(u128::from);
    let lacks = lacks.map_or(0, |lacks| lacks * 8_000_000_000 + 1);
    lacks.div_ceil(RATE.into()) as u64
}

#[test]
fn what_is_received_is_the_burst_and_the_rate_and_what_exceeds_them_is_dropped() {
    let rx = Some(limit());
    let mut port = limited(Rates { rx, tx: None });
    let (mut host, mut now) = (Recorder::default(), Nanos(0));
    // Line rate for two seconds.
    let burst: Vec<_> = (0..BURST).map(|_| broadcast(996)).collect();
    while now < Nanos(2_000_000_000) {
        arrive(&mut port, &mut host, now, &burst);
        now = port.next_deadline(now).expect("the line is busy");
        host.delivered.clear();
    }
    let counters = port.counters();
    let admitted = counters.rx_frames - counters.drops.get(Drop::RxRateExceeded);
    // The last frame's last bit, before the gap behind it.
    let end = port.phy.rx.busy_until().0 - 12 * 8;
    let exact = allowed(end) / 1_000;
    // The bucket was full, so its tokens begin with the first frame that took some.
    assert!(admitted.abs_diff(exact) <= 1, "{admitted}, not {exact}");
    let exceeded = port.line_counters(QueueIndex(0)).rx_exceeded;
    assert_eq!(exceeded.frames, counters.drops.get(Drop::RxRateExceeded));
    assert_eq!(exceeded.octets, 1_000 * exceeded.frames);
    assert_balanced(&port);
}

#[test]
fn what_comes_within_the_burst_passes_and_the_next_frame_does_not() {
    let rx = Some(Limit {
        bits_per_second: 1,
        burst: 100_000,
    });
    let mut port = limited(Rates { rx, tx: None });
    let (mut host, mut now) = (Recorder::default(), Nanos(0));
    for n in 1..=103 {
        arrive(&mut port, &mut host, now, &[broadcast(996)]);
        now += Duration::from_micros(10);
        port.receive(now, &mut Vec::new(), &mut host);
        assert_eq!(host.delivered.len(), n.min(100));
    }
    // Without a limit they all pass.
    port.set_rates(Rates::default());
    arrive(&mut port, &mut host, now, &[broadcast(996)]);
    port.receive(Nanos(now.0 + 10_000), &mut Vec::new(), &mut host);
    assert_eq!(host.delivered.len(), 101);
    assert_balanced(&port);
}

#[test]
fn what_is_sent_leaves_when_the_closed_form_says() {
    let tx = Some(limit());
    let mut card = limited(Rates { rx: None, tx });
    let mut host = Senders(vec![1_000]);
    let (mut now, mut out, mut frames) = (Nanos(0), Vec::new(), 0);
    while now < Nanos(2_000_000_000) {
        while card.transmit(now, &mut out, &mut host) {}
        for frame in out.drain(..) {
            frames += 1;
            // When it begins: as soon as the line is free, and there is a token beyond what went before.
            let tokens = token_after((frames - 1) * 1_000);
            let line = (frames - 1) * 1_020 * 8;
            let begins = frame.arrival.0 - 1_008 * 8;
            // While both run, a frame waits for whichever is later, and the line for none before it.
            assert_eq!(begins, tokens.max(line), "frame {frames}");
            card.pool.give(frame);
        }
        now = card.next_deadline(now).expect("the line is busy");
    }
    let counters = card.counters();
    assert_eq!(counters.tx_frames, frames);
    let exceeded = card.line_counters(QueueIndex(0)).tx_exceeded;
    assert_eq!(counters.tx_rate_exceeded, exceeded.frames);
    // The burst passes at line rate, and what the rate brings meanwhile: the others have waited.
    let free = (0..).take_while(|n| token_after(n * 1_000) <= n * 8_160);
    assert_eq!(frames - exceeded.frames, free.count() as u64);
    assert_eq!(exceeded.octets, 1_000 * exceeded.frames);
    assert_balanced(&card);
}

#[test]
fn who_waited_for_one_rate_has_not_waited_for_the_next() {
    let mut host = Recorder::default();
    let (mut card, now) = exhausted(&mut host);
    let before = card.counters().tx_rate_exceeded;
    let mut out = Vec::new();
    assert!(!card.transmit(now, &mut out, &mut host), "it waits");
    let tx = Some(limit());
    card.port.set_rates(Rates { rx: None, tx });
    assert!(card.transmit(now, &mut out, &mut host));
    assert_eq!(card.counters().tx_rate_exceeded, before);
    card.port.pool.give_all(out);
}

#[test]
fn no_more_packets_are_fetched_than_there_are_tokens_for_the_longest() {
    for (burst, sends_super, expected) in [
        (65_536, false, 42), // of 1526 octets
        (800_000, true, 1),  // of any length
        (800_000, false, BURST),
    ] {
        let tx = Some(Limit {
            bits_per_second: 10_000_000,
            burst,
        });
        let mut card = limited(Rates { rx: None, tx });
        card.port.host_sends_super = sends_super;
        let mut asked = Vec::new();
        card.port.transmit(Nanos(0), |_, _, budget| {
            asked.push(budget);
            Fetched::default()
        });
        assert_eq!(asked, [expected], "{burst} {sends_super}");
    }
}

#[test]
fn short_frames_do_not_wait_for_a_round_each_where_super_frames_may_come() {
    let tx = Some(limit());
    let mut card = limited(Rates { rx: None, tx });
    card.port.host_sends_super = true;
    let (mut host, mut out) = (Senders(vec![1_000]), Vec::new());
    assert!(card.transmit(Nanos(0), &mut out, &mut host));
    assert_eq!(out.len(), BURST);
    // As far as the tokens go.
    card.transmit(card.port.phy.tx.busy_until(), &mut out, &mut host);
    let by_then = allowed(BURST as u64 * 1_020 * 8) / 1_000 + 1;
    assert_eq!(out.len() as u64, by_then);
    card.port.pool.give_all(out);
}

#[test]
fn no_more_is_fetched_than_the_burst_and_the_rate_and_one_frame_whatever_came_before() {
    for (queues, lead, burst) in [(1, 0, 131_072), (1, 100, 131_072), (3, 100, 5_000_000)] {
        let tx = Limit {
            bits_per_second: 100_000_000,
            burst,
        };
        let mut card = card(|c| {
            c.speed = Speed::from_mbps(10_000).unwrap();
            c.queue_pairs = queues;
            c.lead = Duration::from_micros(lead);
            c.rates.tx = Some(tx);
        });
        card.port.host_sends_super = true;
        let mut host = Senders(vec![0; queues.into()]);
        let (mut now, mut out) = (Nanos(0), Vec::new());
        // Few and short, then as many and as long as may be, from another queue where there is one.
        for (lens, until) in [(64, 100_000), (scheduling::SUPER, 40_000_000)] {
            host.0.fill(if lens == 64 { 0 } else { lens });
            host.0[0] = lens;
            while now < Nanos(until) {
                let counters = card.counters();
                let free = card.port.phy.tx.busy_until().max(now);
                card.transmit(now, &mut out, &mut host);
                let frames = card.counters().tx_frames - counters.tx_frames;
                let octets = card.counters().tx_octets - counters.tx_octets;
                card.port.pool.give_all(out.drain(..));
                // A wire may have it at once, and a super-frame is no longer than that.
                let most = u128::from(u64::from(burst) + 70_000) * 8_000_000_000
                    + u128::from(now.0) * u128::from(tx.bits_per_second);
                let gone = u128::from(card.counters().tx_octets) * 8_000_000_000;
                assert!(gone <= most, "{queues} {lead} {burst} at {now:?}");
                // The line has what is on it, and nothing that waits.
                let on_line = (octets + 20 * frames) * 8 / 10;
                let busy = card.port.phy.tx.busy_until().0;
                assert!(busy <= free.0 + on_line + frames, "{queues} {lead} {burst}");
                now = Nanos(now.0 + 10_000);
            }
        }
        // It was the limit that they waited for.
        let sent = card.counters().tx_octets;
        assert!(sent > u64::from(burst) + 40_000_000 / 80 - 70_000, "{sent}");
        card.port.set_rates(Rates::default());
        assert!(card.transmit(now, &mut out, &mut host), "at once");
        card.port.pool.give_all(out);
        assert_balanced(&card);
    }
}

#[test]
fn a_limited_line_is_shared_by_octets_all_the_same() {
    let mut card = card(|c| {
        c.speed = Speed::from_mbps(1_000).unwrap();
        c.queue_pairs = 2;
        c.tx_weights = Weights::new(&[1, 3]).unwrap();
        c.rates.tx = Some(Limit {
            bits_per_second: 500_000_000,
            burst: 10_000,
        });
    });
    let mut host = Senders(vec![64, 1518]);
    let sent = scheduling::play(&mut card, &mut host, 200);
    let quantum = card.scheduler.quantum() as u64;
    assert!((3 * sent[0]).abs_diff(sent[1]) <= 3 * quantum, "{sent:?}");
    // Short frames cost the line more than the bucket, and yet it has time enough: 64 of each 84 octets.
    let total = sent[0] + sent[1];
    let exact = 500_000_000 / 8 / 5 + 10_000;
    assert!(total.abs_diff(exact) <= 64 * 1518, "{total}, not {exact}");
    assert_balanced(&card);
}

/// A limited card that obeys PAUSE frames, which has sent its burst, and when that was.
fn exhausted(host: &mut Recorder) -> (Card, Nanos) {
    let (mut card, up) = flow_control::linked("same");
    card.port.set_rates(Rates {
        rx: None,
        tx: Some(limit()),
    });
    flow_control::to_send(host, 200);
    let end = Nanos(up.0 + 5_000_000);
    let sent = flow_control::play(&mut card, host, up, end);
    assert!(sent.len() > 100 && !host.to_send.is_empty());
    assert!(sent.iter().all(|&(begins, _)| begins < end.0), "committed");
    (card, end)
}

#[test]
fn what_waits_for_its_rate_is_in_the_drivers_ring_and_obeys_a_pause() {
    let mut host = Recorder::default();
    let (mut card, now) = exhausted(&mut host);
    // A frame is due each 65 us.
    let left = host.to_send.len();
    flow_control::control(&mut card, &mut host, now, 1_000);
    let resumes = now.0 + (8 + 64) * 8 + 1_000 * 512;
    let sent = flow_control::play(&mut card, &mut host, now, Nanos(resumes + 1));
    assert_eq!(sent.first().map(|frame| frame.0), Some(resumes));
    assert_eq!(host.to_send.len() + sent.len(), left);
    assert_balanced(&card);
}

#[test]
fn what_waits_for_its_rate_holds_up_no_pause_of_the_cards_own() {
    let mut host = Recorder::default();
    let (mut card, mut now) = exhausted(&mut host);
    card.port.set_rates(Rates {
        rx: None,
        tx: Some(Limit {
            bits_per_second: 1_000_000,
            burst: 64,
        }),
    });
    host.buffers = Some(0);
    let mut told = Vec::new();
    while told.is_empty() {
        arrive(&mut card, &mut host, now, &[broadcast(1000)]);
        let mut out = Vec::new();
        card.transmit(now, &mut out, &mut host);
        told.extend(
            out.iter()
                .filter(|frame| frame.len() == 60)
                .map(|frame| frame.arrival),
        );
        card.pool.give_all(out);
        now = Nanos(now.0 + 10_000);
    }
    // It waits for the frame that is on the line, and for no token.
    assert!(told[0] < now, "{told:?} at {now:?}");
    assert!(host.to_send.len() > 1);
}

#[test]
fn a_limit_that_is_lifted_holds_nothing_up_any_more() {
    let mut host = Recorder::default();
    let (mut card, now) = exhausted(&mut host);
    let left = host.to_send.len();
    card.port.set_rates(Rates::default());
    let sent = flow_control::play(&mut card, &mut host, now, Nanos(now.0 + 1_000_000));
    let expected: Vec<_> = (0..left as u64).map(|n| now.0 + n * 1_024 * 8).collect();
    assert_eq!(
        sent.iter().map(|frame| frame.0).collect::<Vec<_>>(),
        expected
    );
}
