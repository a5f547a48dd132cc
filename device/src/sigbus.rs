//! Guest memory that is taken away behind us.
//!
//! Guest memory is a file of the front-end's. If that is cut short, touching what was behind its new end raises SIGBUS, which kills a
//! process that has no answer. The answer is here: a page of zeros is put where the file's page was, the table of mappings that the
//! page belongs to is marked, and the access is made again. So whatever is under way ends as it would have, on zeros; whoever owns the
//! table looks at the mark between bursts ([`Guard::is_struck`]), lets go of the memory, and ends the connection.
//!
//! What enters: mappings ([`Guard::new`], for as long as the guard lives), and the signal. What leaves: marks. A SIGBUS anywhere else does
//! what it did before this handler was there.
//!
//! A signal handler may wait for nobody, so the mappings are in a fixed table of atomics. Its writers claim an entry, fill it in, and
//! only then show it; the handler reads entries that are shown, and believes what it read if the entry is still the same afterwards.
//! An entry and a mark carry a generation, so that a handler that was slow cannot strike whoever has the entry next. The entry of the
//! page at hand cannot go away meanwhile: whoever touches guest memory holds its guard, and a guard goes before its mappings do.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, compiler_fence, fence};
use std::sync::{Once, OnceLock};

use nix::errno::Errno;
use nix::libc::{self, c_int, c_void, siginfo_t};

/// Mappings that can be guarded at once: those of all NICs of the process, and of old tables until their last holder is gone. Enough for
/// 64 front-ends that give as many regions as they may (509) while their old tables are still held.
const ENTRIES: usize = 1 << 16;

/// Stages of an entry, in the lowest bits of its state; its generation is above them.
const FREE: u64 = 0;
const CLAIMED: u64 = 1;
const SHOWN: u64 = 2;
const STAGE: u64 = 3;
const GENERATION: u64 = STAGE + 1;

/// The mark of a table, in the lowest bit; its generation is above.
const STRUCK: u64 = 1;

/// No place was struck.
const NOWHERE: usize = usize::MAX;

/// One mapping.
struct Entry {
    state: AtomicU64,
    /// Where it is mapped, its octets, and those of its pages.
    start: AtomicUsize,
    len: AtomicUsize,
    page: AtomicUsize,
    /// The entry that has its table's mark, and what that mark is as long as nothing happened.
    head: AtomicUsize,
    sound: AtomicU64,
    /// How far behind `start` was touched first what is not there.
    at: AtomicUsize,
    /// The mark of the table whose head this is.
    mark: AtomicU64,
}

static ENTRY: [Entry; ENTRIES] = [const {
    Entry {
        state: AtomicU64::new(FREE),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        head: AtomicUsize::new(0),
        sound: AtomicU64::new(0),
        at: AtomicUsize::new(NOWHERE),
        mark: AtomicU64::new(0),
    }
}; ENTRIES];

/// How many of the first entries were ever in use: the handler looks at these alone.
static USED: AtomicUsize = AtomicUsize::new(0);

/// The mark of tables that nobody guards.
static NEVER: AtomicU64 = AtomicU64::new(0);

/// What did with SIGBUS before we did.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// A mapping that is to be guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it is mapped.
    pub start: usize,
    /// Octets of it.
    pub len: usize,
    /// Octets of its pages, a power of two: what can be replaced at once.
    pub page: usize,
}

/// All entries are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {ENTRIES} mappings of guest memory at once")]
pub struct Full;

impl From<Full> for io::Error {
    fn from(full: Full) -> Self {
        io::Error::other(full)
    }
}

/// A table of mappings that a SIGBUS does not kill the process for. Drop it before they are unmapped.
#[derive(Debug)]
pub struct Guard {
    entries: Vec<usize>,
    mark: &'static AtomicU64,
}

impl Guard {
    /// Guards nothing.
    #[must_use]
    pub fn none() -> Self {
        Guard {
            entries: Vec::new(),
            mark: &NEVER,
        }
    }

    /// Guards `ranges`, each a mapping, or several of them.
    ///
    /// # Errors
    /// There are too many.
    pub fn new(ranges: impl IntoIterator<Item = Range>) -> Result<Self, Full> {
        install();
        let mut guard = Guard::none();
        for range in ranges {
            // If there is none, those that were claimed are given back.
            let index = claim().ok_or(Full)?;
            if guard.entries.is_empty() {
                let mark = &ENTRY[index].mark;
                mark.store(
                    (mark.load(Ordering::Relaxed) | STRUCK) + 1,
                    Ordering::Relaxed,
                );
                guard.mark = mark;
            }
            guard.entries.push(index);
            let entry = &ENTRY[index];
            entry.start.store(range.start, Ordering::Relaxed);
            entry.len.store(range.len, Ordering::Relaxed);
            entry.page.store(range.page, Ordering::Relaxed);
            entry.head.store(guard.entries[0], Ordering::Relaxed);
            let sound = guard.mark.load(Ordering::Relaxed) & !STRUCK;
            entry.sound.store(sound, Ordering::Relaxed);
            entry.at.store(NOWHERE, Ordering::Relaxed);
            let claimed = entry.state.load(Ordering::Relaxed);
            entry
                .state
                .store((claimed & !STAGE) | SHOWN, Ordering::Release);
        }
        Ok(guard)
    }

    /// Whether something of it was touched that is not there any more.
    #[inline]
    #[must_use]
    pub fn is_struck(&self) -> bool {
        // The mark is made by a handler on the thread that touched it, if that is this one: what it touched before is not to be
        // moved behind this.
        compiler_fence(Ordering::SeqCst);
        self.mark.load(Ordering::Relaxed) & STRUCK != 0
    }

    /// What was touched: the range's number, and how far behind its start.
    #[must_use]
    pub fn struck(&self) -> Option<(usize, usize)> {
        if !self.is_struck() {
            return None;
        }
        let at = |&index: &usize| ENTRY[index].at.load(Ordering::Acquire);
        let places = self.entries.iter().map(at).enumerate();
        places.into_iter().find(|&(_, at)| at != NOWHERE)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        for &index in &self.entries {
            let state = &ENTRY[index].state;
            let shown = state.load(Ordering::Relaxed);
            state.store(shown & !STAGE, Ordering::Release);
        }
    }
}

/// An entry that was free, if there is one. It is the caller's.
fn claim() -> Option<usize> {
    let take = |entry: &Entry| {
        let state = entry.state.load(Ordering::Relaxed);
        let claimed = (state & !STAGE) + GENERATION + CLAIMED;
        let order = (Ordering::Acquire, Ordering::Relaxed);
        let taken = || {
            entry
                .state
                .compare_exchange(state, claimed, order.0, order.1)
        };
        state & STAGE == FREE && taken().is_ok()
    };
    let index = ENTRY.iter().position(take)?;
    // Before it is shown.
    USED.fetch_max(index + 1, Ordering::Release);
    Some(index)
}

/// Puts a page of zeros where `addr` is and marks all tables that it belongs to. Where one is marked already, all of the mapping is
/// replaced: each page by itself would take two of the mappings that a process may have, which are not many. Returns false if `addr`
/// belongs to no table, or that cannot be done. Called by the handler: nothing here allocates, waits, or panics.
fn strike(addr: usize) -> bool {
    let mut replaced = false;
    for entry in ENTRY.iter().take(USED.load(Ordering::Acquire)) {
        let state = entry.state.load(Ordering::Acquire);
        if state & STAGE != SHOWN {
            continue;
        }
        let start = entry.start.load(Ordering::Relaxed);
        let len = entry.len.load(Ordering::Relaxed);
        let page = entry.page.load(Ordering::Relaxed);
        let head = entry.head.load(Ordering::Relaxed);
        let sound = entry.sound.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        if entry.state.load(Ordering::Relaxed) != state || addr.wrapping_sub(start) >= len {
            continue;
        }
        let struck = ENTRY
            .get(head)
            .is_some_and(|head| head.mark.load(Ordering::Relaxed) == sound | STRUCK);
        let inside = page.wrapping_sub(1);
        let (from, to) = if struck {
            (start, start.saturating_add(len))
        } else {
            (addr, addr.saturating_add(1))
        };
        let from = from & !inside;
        let octets = (to.saturating_add(inside) & !inside).saturating_sub(from);
        replaced = replaced || replace(from, octets);
        if !replaced {
            return false;
        }
        let (at, first) = (&entry.at, addr - start);
        // Only the first is kept; and if somebody else has the table by now, its mark is not the same.
        let _ = at.compare_exchange(NOWHERE, first, Ordering::Release, Ordering::Relaxed);
        if let Some(head) = ENTRY.get(head) {
            let struck = sound | STRUCK;
            let mark = &head.mark;
            let _ = mark.compare_exchange(sound, struck, Ordering::Release, Ordering::Relaxed);
        }
    }
    replaced
}

/// Replaces `len` octets from the page at `page` on by zeros.
fn replace(page: usize, len: usize) -> bool {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let place = ptr::without_provenance_mut(page);
    // SAFETY: the pages are of a mapping of guest memory that is guarded, so they are mapped, and nothing of Rust's is there: guest
    // memory is accessed by raw copies alone, which may find anything. They are unmapped with the rest of the mapping.
    let mapped = unsafe { libc::mmap(place, len, prot, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

/// Has SIGBUS come to us, once for the process.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Known before our handler could need it.
        if let Some(before) = action() {
            let _ = PREVIOUS.set(before);
        }
        catch();
    });
}

/// A `sigaction` of the default action.
fn default_action() -> libc::sigaction {
    // SAFETY: zeros are one: no flags, no signals, the default action.
    unsafe { std::mem::zeroed() }
}

/// What SIGBUS does.
fn action() -> Option<libc::sigaction> {
    let mut present = default_action();
    // SAFETY: it is only asked for what there is.
    let result = unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut present) };
    (result == 0).then_some(present)
}

/// Has SIGBUS do `action`. Returns whether it does.
fn set_action(action: &libc::sigaction) -> bool {
    // SAFETY: the two actions that there are here do only what a handler may.
    unsafe { libc::sigaction(libc::SIGBUS, ptr::from_ref(action), ptr::null_mut()) == 0 }
}

/// Has SIGBUS come to us.
fn catch() {
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_sigbus;
    let mut ours = default_action();
    ours.sa_sigaction = handler as *const () as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SIGBUS can be caught, and the arguments are right.
    let caught = set_action(&ours);
    debug_assert!(caught, "{}", Errno::last());
}

extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let errno = Errno::last_raw();
    // SAFETY: the kernel gives a handler with SA_SIGINFO what there is to know.
    let (addr, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    // Only the kernel's have an address; anybody may send one.
    let struck = code > 0 && strike(addr);
    if !struck {
        pass_on(signal, code, info, context);
    }
    Errno::set_raw(errno);
}

/// Does what would have been done before us.
fn pass_on(signal: c_int, code: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let previous = PREVIOUS.get();
    let handler = previous.map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
    match (previous, handler) {
        (Some(previous), handler) if handler != libc::SIG_DFL && handler != libc::SIG_IGN => {
            if previous.sa_flags & libc::SA_SIGINFO != 0 {
                type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
                // SAFETY: whoever installed it said that it is such a function.
                let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
                handler(signal, info, context);
            } else {
                // SAFETY: as above, without SA_SIGINFO.
                let handler =
                    unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler) };
                handler(signal);
            }
            // Rust's expects an access that is made again, and leaves the default action for it. One that was sent does not come
            // again, and guest memory is still to be guarded.
            if code <= 0 && action().is_some_and(|now| now.sa_sigaction == libc::SIG_DFL) {
                catch();
            }
        }
        // Somebody sent it, who wanted it to be ignored.
        (_, libc::SIG_IGN) if code <= 0 => {}
        _ => {
            // The access is made again, and ends the process as it would have; one that was sent is sent again, and waits until
            // the handler returns.
            set_action(&default_action());
            if code <= 0 {
                // SAFETY: a handler may.
                unsafe { libc::raise(signal) };
            }
        }
    }
}

#[cfg(test)]
mod tests;
