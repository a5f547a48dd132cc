//! Which CPUs the threads that move packets run on, as users write it: `2,3` or `2-5`.

use std::fmt;
use std::str::FromStr;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::written::{self, BadSpec};

/// CPUs in the order in which threads get them: the port's thread, or the only worker, the first, and the other workers
/// the next ones in turn, from the second on again when there are no more. Empty: wherever the system lets them run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuList(Vec<usize>);

/// Why threads cannot have these CPUs.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// The host has no such CPU.
    #[error("there is no CPU {cpu}: this host has CPUs 0 to {last}")]
    Missing {
        /// Which.
        cpu: usize,
        /// The host's last one.
        last: usize,
    },
    /// The process may not run there.
    #[error(
        "CPU {cpu} is none that this process may run on: taskset, a cgroup or whoever started it allows {allowed}"
    )]
    Excluded {
        /// Which.
        cpu: usize,
        /// Where it may run.
        allowed: CpuList,
    },
    /// Some would be used by nobody.
    #[error(
        "{cpus} CPUs are too many: {threads} thread(s) move packets, one with --workers 1, else the workers and the port's"
    )]
    TooMany {
        /// CPUs that were named.
        cpus: usize,
        /// Threads that there are for them.
        threads: usize,
    },
    /// The system does not tell, or does not do it.
    #[error("the system does not let threads choose their CPUs: {0}")]
    System(#[from] nix::Error),
}

impl FromStr for CpuList {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        written::read(
            text,
            "is no list of CPUs",
            "their numbers, as 2,3 or 2-5",
            parse,
        )
    }
}

fn parse(text: &str) -> Result<CpuList, String> {
    let number = |text: &str| {
        let number = text.parse().ok();
        // No set has more; so no range is longer either.
        let number = number.filter(|&number: &usize| number < CpuSet::count());
        number.ok_or_else(|| format!("{text:?} is no number of a CPU"))
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(format!("{part} runs backwards"));
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return Err(format!("CPU {cpu} is in it twice"));
            }
            cpus.push(cpu);
        }
    }
    Ok(CpuList(cpus))
}

/// As users write it, runs of numbers in one piece.
impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|one, next| one + 1 == *next);
        for (at, run) in runs.enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match run {
                [only] => write!(f, "{comma}{only}")?,
                run => write!(f, "{comma}{}-{}", run[0], run[run.len() - 1])?,
            }
        }
        Ok(())
    }
}

impl CpuList {
    /// The CPU of thread number `thread`: 0 is the port's, or the only worker's. `None`: any.
    #[must_use]
    pub fn of(&self, thread: usize) -> Option<usize> {
        match (self.0.as_slice(), thread) {
            ([], _) => None,
            ([first], _) | ([first, ..], 0) => Some(*first),
            ([_, others @ ..], thread) => Some(others[(thread - 1) % others.len()]),
        }
    }

    /// Whether the `workers` workers of a card can have these CPUs.
    ///
    /// # Errors
    /// One does not exist, or is not for this process, or they are too many; which, and what there is.
    pub fn check(&self, workers: u16) -> Result<(), CpuError> {
        let threads = match usize::from(workers) {
            0 | 1 => 1,
            workers => workers + 1,
        };
        if self.0.len() > threads {
            let cpus = self.0.len();
            return Err(CpuError::TooMany { cpus, threads });
        }
        let configured = sysconf(SysconfVar::_NPROCESSORS_CONF)?.unwrap_or(1);
        let last = usize::try_from(configured).unwrap_or(1).max(1) - 1;
        let mask = sched_getaffinity(Pid::from_raw(0))?;
        let may = |cpu: usize| mask.is_set(cpu) == Ok(true);
        for &cpu in &self.0 {
            if cpu > last {
                return Err(CpuError::Missing { cpu, last });
            }
            if !may(cpu) {
                let allowed = CpuList((0..=last).filter(|&cpu| may(cpu)).collect());
                return Err(CpuError::Excluded { cpu, allowed });
            }
        }
        Ok(())
    }
}

/// Keeps the calling thread on `cpu`.
///
/// # Errors
/// There is no such CPU, or the thread may not run there.
pub fn pin(cpu: usize) -> Result<(), CpuError> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_taskset_reads_them() {
        for (text, cpus, shown) in [
            ("3", &[3][..], "3"),
            ("2,3", &[2, 3], "2-3"),
            ("3,2", &[3, 2], "3,2"),
            ("2-5", &[2, 3, 4, 5], "2-5"),
            ("0,4-6,2", &[0, 4, 5, 6, 2], "0,4-6,2"),
            ("1023", &[1023], "1023"),
        ] {
            let list: CpuList = text.parse().expect(text);
            assert_eq!(list.0, cpus, "{text}");
            assert_eq!(list.to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_list_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "\"\" is no number"),
            ("2,", "\"\" is no number"),
            ("two", "\"two\" is no number"),
            ("-1", "\"\" is no number"),
            ("5-2", "5-2 runs backwards"),
            ("2-", "\"\" is no number"),
            ("1,0-3", "CPU 1 is in it twice"),
            ("1024", "\"1024\" is no number"),
            ("0-99999999999999999999", "is no number"),
        ] {
            let error = text.parse::<CpuList>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(error.contains("2-5"), "{text}: {error}");
        }
    }

    #[test]
    fn the_port_has_the_first_and_the_workers_share_the_rest() {
        let cpus = |text: &str| {
            let list: CpuList = text.parse().expect("a list");
            [0, 1, 2, 3].map(|thread| list.of(thread).expect("a CPU"))
        };
        assert_eq!(cpus("2-5"), [2, 3, 4, 5]);
        assert_eq!(cpus("7,2,3"), [7, 2, 3, 2]);
        assert_eq!(cpus("4"), [4, 4, 4, 4]);
        assert_eq!(CpuList::default().of(0), None);
    }

    #[test]
    fn cpus_that_cannot_be_had_are_named() {
        assert_eq!(CpuList::default().check(4), Ok(()));
        let missing = CpuList(vec![1023]).check(1);
        assert!(matches!(missing, Err(CpuError::Missing { cpu: 1023, .. })));
        for (cpus, workers, threads) in [(2, 1, 1), (4, 2, 3)] {
            let too_many = CpuList((0..cpus).collect()).check(workers);
            assert_eq!(too_many, Err(CpuError::TooMany { cpus, threads }));
        }
    }

    #[test]
    fn a_thread_is_kept_where_it_is_pinned_and_others_are_not_for_it() {
        let pinned = std::thread::spawn(|| {
            let mask = sched_getaffinity(Pid::from_raw(0)).expect("a mask");
            let allowed = (0..CpuSet::count()).filter(|&cpu| mask.is_set(cpu) == Ok(true));
            let allowed: Vec<_> = allowed.collect();
            let [.., last] = allowed[..] else {
                panic!("a CPU")
            };
            assert_eq!(CpuList(vec![last]).check(1), Ok(()));
            pin(last).expect("it may run there");
            if let [other, _, ..] = allowed[..] {
                let excluded = CpuList(vec![other]).check(1);
                let allowed = CpuList(vec![last]);
                let cpu = other;
                assert_eq!(excluded, Err(CpuError::Excluded { cpu, allowed }));
            }
        });
        pinned.join().expect("it is");
    }
}
