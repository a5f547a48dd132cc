//! Dynamically tuned interrupt moderation (Linux: `lib/dim/dim.c`, `lib/dim/net_dim.c`).
//!
//! In: counters of events, packets and bytes, and the time. Out: after each 64 events a decision, which of
//! five profiles to use. The tuner walks along the profiles as long as things get better, turns when they
//! do not, and rests where it found the top, or when it has walked to and fro for too long. Better is: more
//! bytes; as many bytes and more packets; as many of both and fewer events. Changes up to 10 % are none.

use super::coalesce::IntrCoal;

/// Events between two decisions.
const DIM_NEVENTS: u16 = 64;
/// Changes above so many per cent count.
const SIGNIFICANT: u64 = 10;
/// Profiles of receive queues whose timer starts with an event (`NET_DIM_RX_EQE_PROFILES`).
pub const RX_EQE_PROFILES: [IntrCoal; 5] = [
    IntrCoal::new(256, 1),
    IntrCoal::new(256, 8),
    IntrCoal::new(256, 64),
    IntrCoal::new(256, 128),
    IntrCoal::new(256, 256),
];
/// The profile to begin with (`NET_DIM_DEF_PROFILE_EQE`).
const DEF_PROFILE: usize = 1;
/// Steps after which the tuner rests.
const TIRED: u32 = 2 * RX_EQE_PROFILES.len() as u32;

/// Counters at an instant (`struct dim_sample`); they may wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DimSample {
    /// Microseconds.
    pub time: u64,
    /// Packets.
    pub pkt_ctr: u64,
    /// Bytes.
    pub byte_ctr: u64,
    /// Interrupts.
    pub event_ctr: u16,
}

/// Rates between two samples (`struct dim_stats`), each per millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DimStats {
    /// Packets.
    pub ppms: u64,
    /// Bytes.
    pub bpms: u64,
    /// Events.
    pub epms: u64,
}

/// What to do with the next sample (`dim->state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    StartMeasure,
    MeasureInProgress,
    ApplyNewProfile,
}

/// Where the tuner walks (`dim->tune_state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TuneState {
    ParkingOnTop,
    ParkingTired,
    GoingRight,
    GoingLeft,
}

/// How rates compare with those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Same,
    Better,
    Worse,
}

/// Whether a step could be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Stepped,
    TooTired,
    OnEdge,
}

/// A tuner (`struct dim`).
#[derive(Debug, Clone)]
pub struct Dim {
    state: State,
    tune_state: TuneState,
    start_sample: DimSample,
    prev_stats: DimStats,
    profile_ix: usize,
    steps_right: u32,
    steps_left: u32,
    tired: u32,
}

impl Default for Dim {
    fn default() -> Self {
        Self {
            state: State::StartMeasure,
            tune_state: TuneState::ParkingOnTop,
            start_sample: DimSample::default(),
            prev_stats: DimStats::default(),
            profile_ix: DEF_PROFILE,
            steps_right: 0,
            steps_left: 0,
            tired: 0,
        }
    }
}

impl Dim {
    /// Takes a sample; whether another profile is to be put in force. Until [`Self::applied`] says that it
    /// was, nothing is measured.
    pub fn net_dim(&mut self, end_sample: DimSample) -> bool {
        match self.state {
            State::ApplyNewProfile => return false,
            State::MeasureInProgress => {
                let start = &self.start_sample;
                if end_sample.event_ctr.wrapping_sub(start.event_ctr) < DIM_NEVENTS {
                    return false;
                }
                let Some(curr_stats) = dim_calc_stats(start, &end_sample) else {
                    return false;
                };
                if self.net_dim_decision(curr_stats) {
                    self.state = State::ApplyNewProfile;
                    return true;
                }
            }
            State::StartMeasure => {}
        }
        self.start_sample = end_sample;
        self.state = State::MeasureInProgress;
        false
    }

    /// The profile is in force, or will not be: measuring begins anew.
    pub fn applied(&mut self) {
        self.state = State::StartMeasure;
    }

    /// The profile that was chosen.
    #[must_use]
    pub fn profile(&self) -> IntrCoal {
        RX_EQE_PROFILES[self.profile_ix]
    }

    /// Decides; whether the profile is another now.
    fn net_dim_decision(&mut self, curr_stats: DimStats) -> bool {
        let (prev_state, prev_ix) = (self.tune_state, self.profile_ix);
        let change = net_dim_stats_compare(&curr_stats, &self.prev_stats);
        match self.tune_state {
            TuneState::ParkingOnTop => {
                if change != Change::Same {
                    self.net_dim_exit_parking();
                }
            }
            TuneState::ParkingTired => {
                self.tired -= 1;
                if self.tired == 0 {
                    self.net_dim_exit_parking();
                }
            }
            TuneState::GoingRight | TuneState::GoingLeft => {
                if change != Change::Better {
                    self.dim_turn();
                }
                if self.dim_on_top() {
                    self.dim_park_on_top();
                } else {
                    match self.net_dim_step() {
                        Step::Stepped => {}
                        Step::OnEdge => self.dim_park_on_top(),
                        Step::TooTired => self.dim_park_tired(),
                    }
                }
            }
        }
        // While it rests on the top, what it was like there is what all is compared with.
        let rests = TuneState::ParkingOnTop;
        if prev_state != rests || self.tune_state != rests {
            self.prev_stats = curr_stats;
        }
        self.profile_ix != prev_ix
    }

    fn net_dim_step(&mut self) -> Step {
        if self.tired == TIRED {
            return Step::TooTired;
        }
        match self.tune_state {
            TuneState::GoingRight => {
                if self.profile_ix == RX_EQE_PROFILES.len() - 1 {
                    return Step::OnEdge;
                }
                self.profile_ix += 1;
                self.steps_right += 1;
            }
            TuneState::GoingLeft => {
                if self.profile_ix == 0 {
                    return Step::OnEdge;
                }
                self.profile_ix -= 1;
                self.steps_left += 1;
            }
            TuneState::ParkingOnTop | TuneState::ParkingTired => {}
        }
        self.tired += 1;
        Step::Stepped
    }

    fn net_dim_exit_parking(&mut self) {
        self.tune_state = if self.profile_ix > 0 {
            TuneState::GoingLeft
        } else {
            TuneState::GoingRight
        };
        self.net_dim_step();
    }

    /// Whether the last turn was one step beyond the best profile.
    fn dim_on_top(&self) -> bool {
        match self.tune_state {
            TuneState::ParkingOnTop | TuneState::ParkingTired => true,
            TuneState::GoingRight => self.steps_left > 1 && self.steps_right == 1,
            TuneState::GoingLeft => self.steps_right > 1 && self.steps_left == 1,
        }
    }

    fn dim_turn(&mut self) {
        match self.tune_state {
            TuneState::ParkingOnTop | TuneState::ParkingTired => {}
            TuneState::GoingRight => {
                self.tune_state = TuneState::GoingLeft;
                self.steps_left = 0;
            }
            TuneState::GoingLeft => {
                self.tune_state = TuneState::GoingRight;
                self.steps_right = 0;
            }
        }
    }

    fn dim_park_on_top(&mut self) {
        (self.steps_right, self.steps_left, self.tired) = (0, 0, 0);
        self.tune_state = TuneState::ParkingOnTop;
    }

    fn dim_park_tired(&mut self) {
        (self.steps_right, self.steps_left) = (0, 0);
        self.tune_state = TuneState::ParkingTired;
    }
}

/// Rates between two samples; none where no time has passed.
fn dim_calc_stats(start: &DimSample, end: &DimSample) -> Option<DimStats> {
    let delta_us = end.time.saturating_sub(start.time);
    if delta_us == 0 {
        return None;
    }
    let per_ms = |count: u64| count.saturating_mul(1000).div_ceil(delta_us);
    Some(DimStats {
        ppms: per_ms(end.pkt_ctr.wrapping_sub(start.pkt_ctr)),
        bpms: per_ms(end.byte_ctr.wrapping_sub(start.byte_ctr)),
        epms: per_ms(DIM_NEVENTS.into()),
    })
}

fn is_significant_diff(value: u64, reference: u64) -> bool {
    value.abs_diff(reference).saturating_mul(100) / reference > SIGNIFICANT
}

fn net_dim_stats_compare(curr: &DimStats, prev: &DimStats) -> Change {
    let better = |is: bool| if is { Change::Better } else { Change::Worse };
    for (curr, prev) in [(curr.bpms, prev.bpms), (curr.ppms, prev.ppms)] {
        if prev == 0 {
            return if curr > 0 {
                Change::Better
            } else {
                Change::Same
            };
        }
        if is_significant_diff(curr, prev) {
            return better(curr > prev);
        }
    }
    if prev.epms > 0 && is_significant_diff(curr.epms, prev.epms) {
        return better(curr.epms < prev.epms);
    }
    Change::Same
}

#[cfg(test)]
mod tests {
    use TuneState::{GoingLeft, GoingRight, ParkingOnTop, ParkingTired};

    use super::*;

    fn rates(bpms: u64, ppms: u64, epms: u64) -> DimStats {
        DimStats { ppms, bpms, epms }
    }

    #[test]
    fn bytes_count_before_packets_before_events() {
        let before = rates(1000, 100, 50);
        let cases = [
            (rates(1000, 100, 50), Change::Same),
            (rates(1100, 100, 50), Change::Same),
            (rates(1110, 1, 500), Change::Better),
            (rates(900, 100, 50), Change::Same),
            (rates(889, 999, 1), Change::Worse),
            (rates(1000, 111, 500), Change::Better),
            (rates(1000, 89, 1), Change::Worse),
            (rates(1000, 100, 44), Change::Better),
            (rates(1000, 100, 45), Change::Same),
            (rates(1000, 100, 56), Change::Worse),
        ];
        for (curr, change) in cases {
            assert_eq!(net_dim_stats_compare(&curr, &before), change, "{curr:?}");
        }
        let nothing = DimStats::default();
        let first = net_dim_stats_compare(&before, &nothing);
        assert_eq!(first, Change::Better);
        let still = net_dim_stats_compare(&nothing, &nothing);
        assert_eq!(still, Change::Same);
        let only_bytes = net_dim_stats_compare(&before, &rates(1000, 0, 0));
        assert_eq!(only_bytes, Change::Better);
    }

    /// Bytes per millisecond that are seen, and where the tuner is then.
    fn walk(steps: &[(u64, usize, TuneState)]) {
        let mut dim = Dim::default();
        for (at, &(bpms, profile_ix, tune_state)) in steps.iter().enumerate() {
            let before = dim.profile_ix;
            let changed = dim.net_dim_decision(rates(bpms, 100, 50));
            let is = (dim.profile_ix, dim.tune_state);
            assert_eq!(is, (profile_ix, tune_state), "step {at}");
            assert_eq!(changed, before != profile_ix);
        }
    }

    #[test]
    fn what_gets_better_leads_to_the_edge() {
        walk(&[
            (1000, 0, GoingLeft),
            (800, 1, GoingRight),
            (1000, 2, GoingRight),
            (1200, 3, GoingRight),
            (1400, 4, GoingRight),
            (1600, 4, ParkingOnTop),
            // It rests, and compares with what was there.
            (1600, 4, ParkingOnTop),
            (1700, 4, ParkingOnTop),
            (1760, 4, ParkingOnTop),
            (1400, 3, GoingLeft),
        ]);
    }

    #[test]
    fn one_step_beyond_the_top_it_goes_back_and_rests() {
        walk(&[
            (1000, 0, GoingLeft),
            (800, 1, GoingRight),
            (1000, 2, GoingRight),
            (1200, 3, GoingRight),
            (1000, 2, GoingLeft),
            (1200, 2, ParkingOnTop),
            (1200, 2, ParkingOnTop),
            (1400, 1, GoingLeft),
        ]);
    }

    #[test]
    fn to_and_fro_makes_tired() {
        let mut steps = Vec::new();
        for _ in 0..5 {
            steps.push((1000, 0, GoingLeft));
            steps.push((1000, 1, GoingRight));
        }
        // Ten steps; it rests for as many decisions, whatever comes.
        steps.push((1000, 1, ParkingTired));
        for n in 0..9 {
            steps.push((1000 * (n + 2), 1, ParkingTired));
        }
        steps.push((1000, 0, GoingLeft));
        walk(&steps);
    }

    fn sample(time: u64, count: u16) -> DimSample {
        DimSample {
            time,
            pkt_ctr: u64::from(count) * 10,
            byte_ctr: u64::from(count) * 1000,
            event_ctr: u16::MAX.wrapping_add(count),
        }
    }

    #[test]
    fn it_decides_every_64_events_and_waits_for_its_profile() {
        let mut dim = Dim::default();
        assert_eq!(dim.profile(), IntrCoal::new(256, 8));
        assert!(!dim.net_dim(sample(0, 0)), "the first only starts");
        assert!(!dim.net_dim(sample(630, 63)));
        assert!(dim.net_dim(sample(640, 64)), "although the counter wrapped");
        assert_eq!(dim.profile(), IntrCoal::new(256, 1));
        assert_eq!(dim.prev_stats, rates(100_000, 1000, 100));
        assert!(!dim.net_dim(sample(2000, 500)), "not in force yet");
        dim.applied();
        assert!(!dim.net_dim(sample(3000, 600)), "a new start");
        assert!(!dim.net_dim(sample(3000, 700)), "no time has passed");
        assert!(dim.net_dim(sample(13_000, 800)), "slower: back");
        assert_eq!(dim.profile(), IntrCoal::new(256, 8));
    }
}
