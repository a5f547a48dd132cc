//! Each test that takes guest memory away has mappings of its own; those that end a process, or need all entries, have a process of
//! their own.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::memory::{Cut, GuestMemory, Place, Scatter};

const PAGE: usize = 4096;
/// Octets of the memory that is taken away, at guest address 0.
const LEN: usize = 16 * PAGE;
/// Where another mapping begins.
const OTHER: u64 = 1 << 20;

/// For tests that look whether an address is guarded: what one has unmapped, another may map.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn file(len: usize) -> File {
    let file = File::from(memfd_create(c"nic-sigbus", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len as u64).unwrap();
    file
}

fn map(ranges: &[(u64, &File)]) -> Arc<GuestMemoryMmap> {
    let range = |&(addr, file): &(u64, &File)| {
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let len = file.metadata().unwrap().len() as usize;
        (GuestAddress(addr), len, Some(offset))
    };
    let ranges: Vec<_> = ranges.iter().map(range).collect();
    Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap())
}

fn alarm() -> Arc<EventFd> {
    Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap())
}

fn guarded(mapped: Arc<GuestMemoryMmap>) -> Arc<GuestMemory> {
    Arc::new(GuestMemory::guarded(mapped, alarm()).unwrap())
}

/// Where guest address `addr` is mapped.
fn place_of(memory: &GuestMemory, addr: u64) -> usize {
    memory.find(addr, 1).unwrap().addr().get()
}

/// Whether an entry is shown that `addr` belongs to.
fn is_guarded(addr: usize) -> bool {
    ENTRY.iter().any(|entry| {
        let (start, len) = (
            entry.start.load(Ordering::Relaxed),
            entry.len.load(Ordering::Relaxed),
        );
        entry.state.load(Ordering::Acquire) & STAGE == SHOWN && addr.wrapping_sub(start) < len
    })
}

#[test]
fn what_is_taken_away_reads_as_zeros_and_is_told() {
    let _alone = alone();
    let (first, second) = (file(LEN), file(LEN));
    let alarm = alarm();
    let mapped = map(&[(0, &first), (OTHER, &second)]);
    let memory = Arc::new(GuestMemory::guarded(mapped.clone(), alarm.clone()).unwrap());
    mapped.write_slice(&[7; LEN], GuestAddress(0)).unwrap();
    mapped.write_slice(&[8; LEN], GuestAddress(OTHER)).unwrap();
    first.set_len(2 * PAGE as u64).unwrap();
    // Nobody has touched it yet.
    assert!(!memory.is_cut() && memory.cut().is_none());
    memory.tell();
    assert!(alarm.read().is_err());
    assert_eq!(memory.read::<16>(PAGE as u64), Some([7; 16]));
    assert!(!memory.is_cut());
    assert_eq!(memory.read::<16>(3 * PAGE as u64 + 8), Some([0; 16]));
    assert!(memory.is_cut());
    let cut = memory.cut().unwrap();
    let expected = Cut {
        region: (0, LEN as u64),
        offset: 3 * PAGE as u64 + 8,
        file: Some((2 * PAGE as u64, LEN as u64)),
    };
    assert_eq!(cut, expected);
    let text = cut.to_string();
    assert!(
        text.contains("offset 0x3008 of region 0x0+0x10000")
            && text.contains("to 8192 octets where the region needs 65536"),
        "{text}"
    );
    // What is left is as it was, on both sides of the cut and in the other file.
    assert_eq!(memory.read::<16>(2 * PAGE as u64 - 16), Some([7; 16]));
    assert_eq!(memory.read::<16>(OTHER + LEN as u64 - 16), Some([8; 16]));
    // It can be written to, where it is zeros by now and where it is not yet; and the first place is what counts.
    let place = Place::new(&memory, 3 * PAGE as u64, 64).unwrap();
    assert!(place.write(&[1; 12], &[2; 52]));
    let mut list = Scatter::new(memory.clone(), 1);
    list.push(5 * PAGE as u64, 2 * PAGE as u32).unwrap();
    assert_eq!(list.cursor().write(&[3; 2 * PAGE]), 2 * PAGE);
    assert_eq!(memory.cut(), Some(expected));
    memory.tell();
    memory.tell();
    assert_eq!(alarm.read(), Ok(1));
    // Made longer again, it says no less that it is gone.
    first.set_len(LEN as u64).unwrap();
    let text = memory.cut().unwrap().to_string();
    assert!(text.contains("was it cut short for a time"), "{text}");
}

#[test]
fn only_the_tables_that_have_it_are_struck() {
    let _alone = alone();
    let (first, second) = (file(LEN), file(LEN));
    let shared = map(&[(0, &first)]);
    let (old, new) = (guarded(shared.clone()), guarded(shared));
    let twin = guarded(map(&[(0, &first)]));
    let other = guarded(map(&[(0, &second)]));
    first.set_len(0).unwrap();
    assert_eq!(new.read::<8>(8), Some([0; 8]));
    // Two tables of one mapping; another mapping of the file finds it out for itself.
    assert!(old.is_cut() && new.is_cut());
    assert!(!twin.is_cut() && !other.is_cut());
    assert_eq!(twin.read::<8>(8), Some([0; 8]));
    assert!(twin.is_cut() && !other.is_cut());
}

#[test]
fn no_address_stays_guarded_when_its_mapping_is_gone() {
    let _alone = alone();
    let first = file(LEN);
    let memory = guarded(map(&[(0, &first)]));
    let addr = place_of(&memory, 0);
    assert!(is_guarded(addr) && is_guarded(addr + LEN - 1));
    drop(memory);
    assert!(!is_guarded(addr) && !is_guarded(addr + LEN - 1));
    assert!(!strike(addr));
    // A table that another holder keeps is guarded until he is gone.
    let memory = guarded(map(&[(0, &first)]));
    let (addr, kept) = (place_of(&memory, 0), memory.clone());
    drop(memory);
    assert!(is_guarded(addr));
    drop(kept);
    assert!(!is_guarded(addr));
    // Nor does one run out of entries, or find the mark of one of before.
    let mapped = map(&[(0, &first)]);
    for _ in 0..2 * ENTRIES {
        let memory = GuestMemory::guarded(mapped.clone(), alarm()).unwrap();
        assert!(!memory.is_cut());
    }
    first.set_len(0).unwrap();
    for _ in 0..100 {
        let memory = guarded(map(&[(0, &file(PAGE))]));
        let gone = guarded(mapped.clone());
        // The first one replaced the page for all that have this mapping.
        let _ = gone.read::<8>(0);
        assert!(!memory.is_cut());
    }
}

/// As many pages as would take more mappings than a process may have (`vm.max_map_count`, usually 65,530).
#[test]
fn any_number_of_pages_takes_few_mappings() {
    let _alone = alone();
    let len = 150_000 * PAGE;
    let gone = file(len);
    let memory = guarded(map(&[(0, &gone)]));
    gone.set_len(0).unwrap();
    for page in (0..150_000).step_by(2) {
        assert_eq!(memory.read::<1>(page * PAGE as u64), Some([0]));
    }
    let start = format!("{:x}-", place_of(&memory, 0));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(maps.contains(&start), "it is mapped");
    let mappings = maps.lines().count();
    assert!(mappings < 10_000, "{mappings}");
}

#[test]
fn many_are_struck_at_once_while_others_come_and_go() {
    let _alone = alone();
    let workers: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(|| {
                for round in 0..50_u64 {
                    let (gone, kept) = (file(LEN), file(PAGE));
                    let memory = guarded(map(&[(0, &gone), (OTHER, &kept)]));
                    let sound = guarded(map(&[(0, &kept)]));
                    gone.set_len(0).unwrap();
                    let readers: Vec<_> = (0..2)
                        .map(|reader| {
                            let memory = memory.clone();
                            thread::spawn(move || {
                                let page = (round + reader) % 16;
                                memory.read::<8>(page * PAGE as u64)
                            })
                        })
                        .collect();
                    for reader in readers {
                        assert_eq!(reader.join().unwrap(), Some([0; 8]));
                    }
                    assert!(memory.is_cut() && memory.cut().is_some() && !sound.is_cut());
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
}

/// Which of the tests in a process of their own this process is.
const ROLE: &str = "NIC_SIGBUS_TEST";
/// What a handler of somebody else's ends the process with.
const HANDLED: c_int = 42;

extern "C" fn handle(_: c_int) {
    // SAFETY: it may be called by a handler.
    unsafe { libc::_exit(HANDLED) }
}

extern "C" fn handle_with_info(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: as above; and it is what the kernel gave.
    unsafe { libc::_exit(HANDLED + i32::from((*info).si_code > 0)) }
}

fn set_handler(handler: SigHandler, flags: SaFlags) {
    let action = SigAction::new(handler, flags, SigSet::empty());
    // SAFETY: the handlers here do what they may.
    unsafe { sigaction(Signal::SIGBUS, &action) }.unwrap();
}

/// Reads guest memory that nobody guards, after it was cut short.
fn touch_what_is_not_guarded() {
    let file = file(LEN);
    let memory = GuestMemory::new(map(&[(0, &file)]));
    file.set_len(0).unwrap();
    let read = memory.read::<8>(0);
    panic!("{read:?} is there");
}

#[test]
#[ignore = "run by what_is_none_of_ours_does_what_it_did, in a process of its own"]
fn child() {
    let role = std::env::var(ROLE).unwrap_or_default();
    match role.as_str() {
        "handler" => set_handler(SigHandler::Handler(handle), SaFlags::empty()),
        "handler with info" => {
            set_handler(SigHandler::SigAction(handle_with_info), SaFlags::SA_SIGINFO);
        }
        "default" | "sent" => set_handler(SigHandler::SigDfl, SaFlags::empty()),
        "ignored" | "ignored when sent" => set_handler(SigHandler::SigIgn, SaFlags::empty()),
        "as Rust has it" | "full" | "sent, as Rust has it" => {}
        other => panic!("no role {other:?}"),
    }
    // It is there, and guards what it has to.
    let gone = file(PAGE);
    let memory = guarded(map(&[(0, &gone)]));
    gone.set_len(0).unwrap();
    assert_eq!(memory.read::<8>(0), Some([0; 8]));
    match role.as_str() {
        "full" => {
            let start = place_of(&memory, 0);
            let range = |_| Range {
                start,
                len: PAGE,
                page: PAGE,
            };
            let most = Guard::new((1..ENTRIES).map(range)).unwrap();
            assert_eq!(Guard::new((0..1).map(range)).unwrap_err(), Full);
            drop(most);
            assert_eq!(Guard::new((0..ENTRIES).map(range)).unwrap_err(), Full);
            // What was claimed was given back.
            Guard::new((1..ENTRIES).map(range)).unwrap();
        }
        "ignored when sent" => raise(Signal::SIGBUS).unwrap(),
        "sent, as Rust has it" => {
            for _ in 0..3 {
                raise(Signal::SIGBUS).unwrap();
            }
            let gone = file(PAGE);
            let memory = guarded(map(&[(0, &gone)]));
            gone.set_len(0).unwrap();
            assert_eq!(memory.read::<8>(0), Some([0; 8]));
        }
        "sent" => {
            raise(Signal::SIGBUS).unwrap();
            panic!("it was sent");
        }
        _ => touch_what_is_not_guarded(),
    }
}

#[test]
fn what_is_none_of_ours_does_what_it_did() {
    let sigbus = Some(libc::SIGBUS);
    for (role, code, signal) in [
        ("handler", Some(HANDLED), None),
        ("handler with info", Some(HANDLED + 1), None),
        ("default", None, sigbus),
        ("sent", None, sigbus),
        // The kernel does not let an access be ignored.
        ("ignored", None, sigbus),
        ("ignored when sent", Some(0), None),
        ("as Rust has it", None, sigbus),
        ("sent, as Rust has it", Some(0), None),
        ("full", Some(0), None),
    ] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "sigbus::tests::child", "--ignored"]);
        let ended = child.env(ROLE, role).output().unwrap();
        assert_eq!(
            (ended.status.code(), ended.status.signal()),
            (code, signal),
            "{role}: {}",
            String::from_utf8_lossy(&ended.stdout)
        );
    }
}
