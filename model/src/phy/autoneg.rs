//! Auto-negotiation: the arbitration that brings a link up (IEEE 802.3, Figure 28-18; for 25 Gb/s and above Figure 73-11).
//!
//! ```text
//! TRANSMIT DISABLE -> ABILITY DETECT -> ACKNOWLEDGE DETECT -> COMPLETE ACKNOWLEDGE -> FLP LINK GOOD CHECK -> FLP LINK GOOD
//!  ^                   |     ^ NEXT PAGE WAIT <-----------------------'  |                ^    |                     |
//!  |                   '-> LINK STATUS CHECK (parallel detection) -------+----------------'    |                     |
//!  '-- what comes from the other end stops, or no link comes of it in time: from any state <---+---------------------'
//! ```
//!
//! What enters is the signal of the other end, and time; what leaves is whether there is a link, and what was agreed on. The
//! other end is taken to follow the same diagram in step with this one. Where the standard gives a timer a range, its shortest
//! time is taken. With auto-negotiation off the link comes up in the mode that was forced, if the other end's suits.

use std::time::Duration;

use super::mode::{Duplex, Mode, Modes};
use super::partner::LinkPartner;
use super::resolve::{Advertisement, Resolution, Role};
use crate::time::Nanos;

/// What the transceivers are, and so which clauses govern them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Twisted pair, up to 10 Gb/s: fast link pulses (Clauses 28, 40, 55 and 126).
    TwistedPair,
    /// Copper cable assemblies, from 25 Gb/s on: differential Manchester pages (Clause 73).
    CopperCable,
}

/// `break_link_timer`: how long nothing is sent, so that the other end loses its link, too (28.3.2; 73.10.2).
const BREAK_LINK: [Duration; 2] = [Duration::from_millis(1_200), Duration::from_millis(60)];
/// `autoneg_wait_timer`: how long a signal alone has to be there (28.3.2; 73.10.2).
const AUTONEG_WAIT: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(25)];
/// From one link code word to the next: a burst of fast link pulses every 16 ms, a page of 339.2 ns (28.2.1.1; 73.5).
const CODE_WORD: [Duration; 2] = [Duration::from_millis(16), Duration::from_nanos(340)];
/// Code words that have to be the same, without and then with the acknowledge bit (28.2.2.1).
const CONSISTENT: u32 = 3;
/// Code words that are sent after that was seen: `remaining_ack_cnt` (28.3.1).
const REMAINING: u32 = 6;

impl Family {
    fn index(self) -> usize {
        match self {
            Family::TwistedPair => 0,
            Family::CopperCable => 1,
        }
    }

    /// `break_link_timer`.
    pub(super) fn break_link(self) -> Duration {
        BREAK_LINK[self.index()]
    }

    /// `autoneg_wait_timer`.
    pub(super) fn autoneg_wait(self) -> Duration {
        AUTONEG_WAIT[self.index()]
    }

    /// `words` link code words.
    pub(super) fn code_words(self, words: u32) -> Duration {
        CODE_WORD[self.index()] * words
    }

    /// `link_fail_inhibit_timer`: how long `mode` has for its link to come up (28.3.2, 55.4.6; 73.10.2, 136.8.11).
    pub(super) fn link_fail_inhibit(self, mode: Mode) -> Duration {
        Duration::from_millis(match (self, mode.speed.mbps()) {
            (Family::TwistedPair, ..=1_000) => 750,
            (Family::TwistedPair, _) => 2_000,
            (Family::CopperCable, ..=2_500) => 40,
            (Family::CopperCable, 50_000 | 200_000 | 400_000) => 3_100,
            (Family::CopperCable, _) => 500,
        })
    }

    /// How long both ends take to train, within [`Family::link_fail_inhibit`]: the standard says no more than that.
    pub(super) fn training(self, mode: Mode) -> Duration {
        Duration::from_millis(match (self, mode.speed.mbps()) {
            (Family::TwistedPair, ..=10) => 112,
            (Family::TwistedPair, ..=100) => 1,
            (Family::TwistedPair, ..=1_000) => 350,
            (Family::TwistedPair, _) => 1_000,
            (Family::CopperCable, ..=2_500) => 10,
            (Family::CopperCable, 50_000 | 200_000 | 400_000) => 1_000,
            (Family::CopperCable, _) => 300,
        })
    }

    /// What a signal of `mode` is taken for that comes without negotiation, if it is one that can be told
    /// (28.2.3.1: 10BASE-T and 100BASE-TX, whose duplex mode nobody can see; 73.7.4.1: 1000BASE-KX).
    fn detects(self, mode: Mode) -> Option<Mode> {
        match (self, mode.speed.mbps()) {
            (Family::TwistedPair, 10 | 100) => Some(Mode {
                duplex: Duplex::Half,
                ..mode
            }),
            (Family::CopperCable, 1_000) => Some(mode),
            _ => None,
        }
    }

    /// Rounds of link code words that two stations exchange: the base page, and next pages where they are needed to say it all. For
    /// 1000BASE-T a message and two unformatted pages (40.5.1.2); above, one extended page (28.2.3.4.2) if both have it.
    fn pages(self, local: &Advertisement, partner: &Advertisement) -> u8 {
        let both = |mbps| local.modes.reaches(mbps) && partner.modes.reaches(mbps);
        match self {
            Family::TwistedPair if both(2_500) => 2,
            Family::TwistedPair if both(1_000) => 4,
            _ => 1,
        }
    }
}

/// What comes from the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// Nothing.
    Silence,
    /// Link code words with what it can do.
    CodeWords(Advertisement),
    /// The idle signal of one mode.
    Idle(Mode),
}

impl Signal {
    /// What a partner sends to a card that can do `abilities`, and negotiates, or has been forced to a mode.
    pub(super) fn of(partner: &LinkPartner, abilities: Modes, forced: Option<Mode>) -> Self {
        match (partner, forced) {
            (LinkPartner::Same, Some(mode)) => Signal::Idle(mode),
            (LinkPartner::Forced(mode), _) => Signal::Idle(*mode),
            (partner, _) => match partner.says(abilities) {
                Some(said) => Signal::CodeWords(said),
                None => Signal::Silence,
            },
        }
    }
}

/// What arbitration goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Medium {
    pub(super) family: Family,
    /// What the transceiver can do.
    pub(super) abilities: Modes,
    /// The mode that was forced; `None`: to be negotiated.
    pub(super) forced: Option<Mode>,
    /// What this end says.
    pub(super) local: Advertisement,
    pub(super) signal: Signal,
}

/// A state of the diagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// AUTO-NEGOTIATION ENABLE, and it is not: the forced mode counts.
    #[default]
    Disabled,
    /// The same, and its link is there.
    ForcedGood,
    TransmitDisable,
    AbilityDetect,
    LinkStatusCheck,
    AcknowledgeDetect,
    CompleteAcknowledge,
    NextPageWait,
    LinkGoodCheck,
    LinkGood,
}

impl State {
    /// Its name in the diagram.
    pub(super) fn name(self) -> &'static str {
        match self {
            State::Disabled => "disabled",
            State::ForcedGood => "disabled, link good",
            State::TransmitDisable => "transmit disable",
            State::AbilityDetect => "ability detect",
            State::LinkStatusCheck => "link status check",
            State::AcknowledgeDetect => "acknowledge detect",
            State::CompleteAcknowledge => "complete acknowledge",
            State::NextPageWait => "next page wait",
            State::LinkGoodCheck => "link good check",
            State::LinkGood => "link good",
        }
    }
}

/// Where arbitration stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Arbitration {
    pub(super) state: State,
    /// When the state is left, if time alone does that.
    pub(super) due: Option<Nanos>,
    /// What the other end has said, by its base page.
    pub(super) heard: Option<Advertisement>,
    /// Rounds of pages that are complete; so many as were needed, when all has been heard.
    pages: u8,
    pub(super) heard_all: bool,
    /// What was agreed on, or detected.
    pub(super) resolution: Option<Resolution>,
    /// Whether the training at hand leads to a link.
    trains: bool,
    /// When link_fail_inhibit_timer is done.
    inhibited: Nanos,
    /// A page has come, and parallel detection has failed, since that was last asked for.
    pub(super) page_received: bool,
    pub(super) parallel_fault: bool,
    /// Both ends were told to be the master, or both the slave, at the last attempt.
    pub(super) role_fault: bool,
    draws: u16,
}

impl Arbitration {
    /// Whether there is a link.
    pub(super) fn link(&self) -> bool {
        matches!(self.state, State::LinkGood | State::ForcedGood)
    }

    /// Whether both ends have agreed, and the link is there.
    pub(super) fn complete(&self) -> bool {
        self.state == State::LinkGood
    }

    /// Whether pages are being exchanged, or have been, with success.
    pub(super) fn partner_negotiates(&self) -> bool {
        self.heard.is_some()
    }

    /// Begins anew for management, which enabled, disabled or restarted auto-negotiation: what has yet to be read of before is gone, too (Figure 28-18,
    /// AUTO-NEGOTIATION ENABLE).
    pub(super) fn begin(&mut self, now: Nanos, medium: &Medium) {
        self.clear_latches();
        self.restart(now, medium);
    }

    /// What stands until it is read, if nobody has read it.
    pub(super) fn clear_latches(&mut self) {
        self.page_received = false;
        self.parallel_fault = false;
    }

    /// Begins anew.
    fn restart(&mut self, now: Nanos, medium: &Medium) {
        self.forget();
        if medium.forced.is_some() {
            self.enter(State::Disabled, now, medium);
        } else {
            self.enter(State::TransmitDisable, now, medium);
        }
    }

    /// Forgets what the other end said, or was taken for.
    fn forget(&mut self) {
        self.heard = None;
        self.heard_all = false;
        self.pages = 0;
        self.resolution = None;
    }

    /// Brings a forced link up without delay, if the other end's signal suits.
    pub(super) fn hurry(&mut self, now: Nanos, medium: &Medium) {
        let suits = matches!(medium.signal, Signal::Idle(_)) && self.due.is_some();
        if self.state == State::Disabled && suits {
            self.enter(State::ForcedGood, now, medium);
        }
    }

    /// Nothing goes on: the power is off.
    pub(super) fn halt(&mut self) {
        self.state = State::Disabled;
        self.due = None;
        self.clear_latches();
        self.forget();
    }

    /// What comes from the other end has changed.
    pub(super) fn signal_changed(&mut self, now: Nanos, medium: &Medium) {
        match self.state {
            State::Disabled | State::ForcedGood => self.enter(State::Disabled, now, medium),
            // Its timer runs on, and whoever was detected is looked for when it is done. One that nothing came of is gone.
            State::TransmitDisable | State::LinkStatusCheck => self.forget(),
            State::AbilityDetect => {
                self.forget();
                self.enter(State::AbilityDetect, now, medium);
            }
            State::LinkGoodCheck => {
                self.trains = false;
                self.due = Some(self.inhibited);
            }
            State::AcknowledgeDetect
            | State::CompleteAcknowledge
            | State::NextPageWait
            | State::LinkGood => self.restart(now, medium),
        }
    }

    /// Does what is due at `at`, which is when something is.
    pub(super) fn step(&mut self, at: Nanos, medium: &Medium) {
        match self.state {
            State::Disabled => self.enter(State::ForcedGood, at, medium),
            State::TransmitDisable => self.enter(State::AbilityDetect, at, medium),
            State::AbilityDetect | State::NextPageWait => {
                self.enter(State::AcknowledgeDetect, at, medium);
            }
            State::AcknowledgeDetect => self.enter(State::CompleteAcknowledge, at, medium),
            State::CompleteAcknowledge => self.page_done(at, medium),
            State::LinkStatusCheck => match self.detected(medium) {
                Some(mode) => {
                    self.resolution = Some(Resolution::detected(mode));
                    self.enter(State::LinkGoodCheck, at, medium);
                }
                None => {
                    // PARALLEL DETECTION FAULT
                    self.parallel_fault = true;
                    self.restart(at, medium);
                }
            },
            State::LinkGoodCheck if self.trains => self.enter(State::LinkGood, at, medium),
            // link_fail_inhibit_timer_done
            State::LinkGoodCheck => self.restart(at, medium),
            State::ForcedGood | State::LinkGood => self.due = None,
        }
    }

    /// The mode of the other end's signal, if it can be told and is one of ours.
    fn detected(&self, medium: &Medium) -> Option<Mode> {
        let Signal::Idle(mode) = medium.signal else {
            return None;
        };
        let mode = medium.family.detects(mode)?;
        medium.abilities.has(mode).then_some(mode)
    }

    /// A page is complete.
    fn page_done(&mut self, at: Nanos, medium: &Medium) {
        // It was there until now.
        let Signal::CodeWords(partner) = medium.signal else {
            return self.restart(at, medium);
        };
        self.page_received = true;
        self.pages += 1;
        self.heard = Some(partner);
        if self.pages < medium.family.pages(&medium.local, &partner) {
            return self.enter(State::NextPageWait, at, medium);
        }
        self.heard_all = true;
        let resolution = Resolution::of(&medium.local, &partner, self.draw());
        self.role_fault |= resolution.role == Some(Role::Fault);
        self.resolution = Some(resolution);
        if resolution.mode.is_none() {
            // incompatible_link: nothing can come of it.
            let heard = (self.heard, self.resolution);
            self.restart(at, medium);
            (self.heard, self.resolution) = heard;
            return;
        }
        self.enter(State::LinkGoodCheck, at, medium);
    }

    /// The seeds of both stations, drawn for each attempt (40.5.2): the same each time, so that all of it can be repeated.
    fn draw(&mut self) -> (u16, u16) {
        self.draws = self.draws.wrapping_add(1);
        let mixed = self.draws.wrapping_mul(0x9e37);
        (mixed >> 5, mixed & 0x7ff)
    }

    fn enter(&mut self, state: State, now: Nanos, medium: &Medium) {
        self.state = state;
        let family = medium.family;
        self.due = match state {
            State::Disabled => Self::forced_link(medium).map(|delay| now + delay),
            State::ForcedGood | State::LinkGood => None,
            State::TransmitDisable => Some(now + family.break_link()),
            State::AbilityDetect => match medium.signal {
                Signal::CodeWords(_) => Some(now + family.code_words(CONSISTENT)),
                Signal::Idle(_) if self.detected(medium).is_some() => {
                    self.state = State::LinkStatusCheck;
                    Some(now + family.autoneg_wait())
                }
                _ => None,
            },
            State::LinkStatusCheck => Some(now + family.autoneg_wait()),
            State::AcknowledgeDetect | State::NextPageWait => {
                Some(now + family.code_words(CONSISTENT))
            }
            State::CompleteAcknowledge => Some(now + family.code_words(REMAINING)),
            // It is not entered without.
            State::LinkGoodCheck => self.resolution.and_then(|agreed| {
                let mode = agreed.mode?;
                self.inhibited = now + family.link_fail_inhibit(mode);
                self.trains = agreed.role != Some(Role::Fault);
                Some(if self.trains {
                    now + family.training(mode)
                } else {
                    self.inhibited
                })
            }),
        };
    }

    /// How long the forced mode takes to have a link; `None`: the other end's does not suit.
    fn forced_link(medium: &Medium) -> Option<Duration> {
        let mode = medium.forced?;
        let family = medium.family;
        match medium.signal {
            Signal::Idle(theirs) => (theirs.speed == mode.speed).then(|| family.training(mode)),
            // It takes us for what it detects, if it can.
            Signal::CodeWords(said) => {
                let detected = family.detects(mode)?;
                let has = said.modes.iter().any(|one| one.speed == detected.speed);
                has.then(|| family.autoneg_wait() + family.training(mode))
            }
            Signal::Silence => None,
        }
    }
}
