//! Configuration files and the texts of options: what makes no sense is refused in words, and what is understood reads back as itself.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt::{Debug, Display};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use clap::{Arg, ArgAction, Command, value_parser};
use nic_backend::coalesce::CoalesceSpec;
use nic_backend::config::with_file;
use nic_backend::cpus::CpuList;
use nic_backend::packet_buffer::PacketBufferSpec;
use nic_backend::rate::RateSpec;
use nic_backend::weights::WeightsSpec;
use nic_backend::wire::WireSpec;
use nic_backend::wire::fault::FaultSpec;
use nic_model::filter::MacAddress;
use nic_model::phy::Speed;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// The longest text of an option.
const LONGEST: usize = 256;

thread_local! {
    static FILE: RefCell<Option<File>> = const { RefCell::new(None) };
}

/// A program with such options as `serve` has: its own are not in the library.
fn command() -> Command {
    let option = |name: &'static str| Arg::new(name).long(name);
    let serve = Command::new("serve").args([
        option("config"),
        option("socket").required(true),
        option("queues").value_parser(value_parser!(u16).range(1..=31)),
        option("mac").value_parser(MacAddress::from_str),
        option("speed").value_parser(Speed::from_str),
        option("wire").value_parser(WireSpec::from_str),
        option("coalesce").value_parser(CoalesceSpec::from_str),
        option("rate").value_parser(RateSpec::from_str),
        option("packet-buffer").value_parser(PacketBufferSpec::from_str),
        option("tx-weights").value_parser(WeightsSpec::from_str),
        option("fault").value_parser(FaultSpec::from_str),
        option("cpus").value_parser(CpuList::from_str),
        option("disable").action(ArgAction::Append),
        option("poll").num_args(0..=1),
        option("trace-protocol").action(ArgAction::SetTrue),
    ]);
    Command::new("program").subcommand(serve)
}

/// Runs the target.
///
/// # Panics
/// If something is understood as what it is not.
pub fn run(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(rest);
    let text = text.get(..LONGEST).unwrap_or(&text);
    match kind % 12 {
        0 => reads_back::<WireSpec>(text),
        1 => reads_back::<CoalesceSpec>(text),
        2 => reads_back::<RateSpec>(text),
        3 => reads_back::<PacketBufferSpec>(text),
        4 => reads_back::<WeightsSpec>(text),
        5 => reads_back::<FaultSpec>(text),
        6 => reads_back::<CpuList>(text),
        7 => reads_back::<Speed>(text),
        8 => reads_back::<MacAddress>(text),
        _ => file(rest),
    }
}

/// What is understood of an option says what it is, in words that are understood as the same.
fn reads_back<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => {
            let said = value.to_string();
            let again = said.parse::<T>();
            assert!(
                again.is_ok_and(|again| again == value),
                "{text:?} is {said:?}"
            );
        }
        Err(error) => assert!(!error.to_string().is_empty(), "{text:?}"),
    }
}

/// A file gives arguments, or a line says what is wrong with it and where.
fn file(octets: &[u8]) {
    let path = FILE.with_borrow_mut(|kept| {
        let file = kept.get_or_insert_with(|| {
            File::from(memfd_create(c"config", MFdFlags::empty()).expect("memory"))
        });
        file.set_len(0).expect("a file in memory");
        file.write_all_at(octets, 0).expect("a file in memory");
        format!("/proc/self/fd/{}", file.as_raw_fd())
    });
    let args: Vec<_> = ["program", "serve", "--config", &path]
        .map(OsString::from)
        .into();
    match with_file(args, &command()) {
        Ok(nics) => {
            assert!(!nics.is_empty(), "no NIC, and no error");
            for nic in nics {
                let place = nic.place.expect("it is from a file");
                // Each option was looked at by itself.
                let understood = command().try_get_matches_from(nic.args);
                assert!(understood.is_ok(), "{place}: {:?}", understood.err());
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.starts_with(&*path) || text.contains("cannot read"),
                "{text}"
            );
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }
}
