//! Which function of a real kernel is which stage of the guest: the table `fixtures/kernel-traces/stages.tsv`.
//!
//! A row is FUNCTION, STAGE, WHERE, WHY, with tabs between them. STAGE is the guest's name, or `-` for a function that has no stage,
//! with the reason in WHY. WHERE has the groups of recordings that the function is in: `igb`, `virtio_net`, `scenario`; the
//! recordings of a group were made with the same choice of functions, so that what is in none of them was not looked for. `-` is a
//! function that is in none of them, but may be in others: then its stage is compared, too.
//!
//! A row whose FUNCTION is a path, as `*/handle_irq_event` or `net_rx_action/__napi_poll[2]`, marks what is incidental: an interrupt
//! that came in the middle of something else, or what came of it, by the names of stages. STAGE is `irq` then, and WHERE the
//! recording that it is about, or `guest:` and the recording that has nothing of the sort where the guest has; `*` is all, the
//! guest's own trace as well. `*/` at the beginning stands for at least one
//! caller; a number in brackets is the how manieth of that name its caller called, or that nobody called.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};

/// The committed table.
pub const TABLE: &str = include_str!("../../../fixtures/kernel-traces/stages.tsv");

/// A function's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The guest's stage; none for a function that has none.
    pub stage: Option<String>,
    /// The groups of recordings that it is in.
    pub groups: Vec<String>,
    /// What is to be said of it; why it has no stage.
    pub why: String,
}

/// What is incidental.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incidental {
    path: Vec<(String, Option<usize>)>,
    /// It has callers beyond those named.
    called: bool,
    /// The recording, or none for all.
    recording: Option<String>,
    /// It is about the guest, as it is compared with that recording.
    guest: bool,
    /// Why.
    pub why: String,
}

impl Incidental {
    /// Whether it is about a stage, given the way to it: names, and the how manieth each is.
    pub fn matches(&self, way: &[(&str, usize)]) -> bool {
        let Some(rest) = way.len().checked_sub(self.path.len()) else {
            return false;
        };
        (rest > 0 || !self.called)
            && self.path.iter().zip(&way[rest..]).all(|(wanted, there)| {
                wanted.0 == there.0 && wanted.1.is_none_or(|nth| nth == there.1)
            })
    }

    /// Whether it is about a recording, or about all of them.
    pub fn is_of(&self, recording: &str) -> bool {
        !self.guest && self.recording.as_ref().is_none_or(|name| name == recording)
    }

    /// Whether it is about the guest when that is compared with a recording.
    pub fn is_of_guest(&self, recording: &str) -> bool {
        self.is_general() || self.guest && self.recording.as_deref() == Some(recording)
    }

    /// Whether it is about all of them.
    pub fn is_general(&self) -> bool {
        self.recording.is_none()
    }

    /// The recording that it has to do with, unless that is all.
    pub fn recording(&self) -> Option<&str> {
        self.recording.as_deref()
    }
}

/// The table.
#[derive(Clone, Debug, Default)]
pub struct Stages {
    /// By function.
    pub functions: BTreeMap<String, Row>,
    /// What is incidental.
    pub incidental: Vec<Incidental>,
}

impl Stages {
    /// Reads a table.
    ///
    /// # Errors
    /// A row makes no sense, or says something for the second time.
    pub fn parse(table: &str) -> anyhow::Result<Self> {
        let mut stages = Self::default();
        let rows = (1..).zip(table.lines());
        for (line, row) in rows.filter(|(_, row)| !row.is_empty() && !row.starts_with('#')) {
            stages
                .read_row(row)
                .with_context(|| format!("line {line} of the table of stages: {row:?}"))?;
        }
        Ok(stages)
    }

    fn read_row(&mut self, row: &str) -> anyhow::Result<()> {
        let fields: Vec<_> = row.split('\t').collect();
        let [function, stage, place, why] = fields[..] else {
            bail!("not four fields with tabs between them");
        };
        if stage == "irq" {
            ensure!(!why.is_empty(), "no reason is given");
            let (called, path) = match function.strip_prefix("*/") {
                Some(path) => (true, path),
                None => (false, function),
            };
            let of_guest = place.strip_prefix("guest:");
            self.incidental.push(Incidental {
                path: path.split('/').map(segment).collect::<Result<_, _>>()?,
                called,
                recording: (place != "*").then(|| of_guest.unwrap_or(place).into()),
                guest: of_guest.is_some(),
                why: why.into(),
            });
            return Ok(());
        }
        ensure!(stage != "-" || !why.is_empty(), "no reason is given");
        let row = Row {
            stage: (stage != "-").then(|| stage.into()),
            groups: place
                .split(',')
                .filter(|group| *group != "-")
                .map(Into::into)
                .collect(),
            why: why.into(),
        };
        let before = self.functions.insert(function.into(), row);
        ensure!(before.is_none(), "the function has a row already");
        Ok(())
    }

    /// The stages that recordings of a group may show.
    pub fn of_group<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a str> {
        let rows = self.functions.values();
        rows.filter(move |row| row.groups.iter().any(|name| name == group))
            .filter_map(|row| row.stage.as_deref())
    }
}

/// A step of a path: a name, and perhaps the how manieth it is.
fn segment(text: &str) -> anyhow::Result<(String, Option<usize>)> {
    let Some((name, nth)) = text.split_once('[') else {
        return Ok((text.into(), None));
    };
    let nth = nth.strip_suffix(']').and_then(|nth| nth.parse().ok());
    Ok((name.into(), Some(nth.context("no number in brackets")?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_what_they_are_about() {
        let table = "# a comment\n\na\tb\tigb,scenario\t\nc\t-\tigb\tnothing to do\n";
        let stages = Stages::parse(table).unwrap();
        assert_eq!(stages.functions["a"].stage.as_deref(), Some("b"));
        assert_eq!(stages.functions["c"].stage, None);
        assert_eq!(stages.of_group("scenario").collect::<Vec<_>>(), ["b"]);
        assert_eq!(stages.of_group("virtio_net").count(), 0);
    }

    #[test]
    fn rows_that_make_no_sense_are_refused() {
        for table in [
            "a\tb\tigb",
            "a\t-\tigb\t",
            "a\tirq\t*\t",
            "a/b[x]\tirq\t*\tbecause",
            "a\tb\tigb\t\na\tc\tigb\t",
        ] {
            assert!(Stages::parse(table).is_err(), "{table:?}");
        }
    }

    #[test]
    fn paths_are_of_callers_and_how_many_there_were() {
        let mark = |path: &str| {
            let stages = Stages::parse(&format!("{path}\tirq\t*\tbecause")).unwrap();
            stages.incidental[0].clone()
        };
        let way = [("a", 1), ("b", 2), ("c", 1)];
        for (path, want) in [
            ("c", true),
            ("*/c", true),
            ("b/c", true),
            ("b[2]/c", true),
            ("b[1]/c", false),
            ("a/c", false),
            ("*/a/b/c", false),
            ("a/b/c", true),
            ("x/a/b/c", false),
            ("b", false),
        ] {
            assert_eq!(mark(path).matches(&way), want, "{path}");
        }
        assert!(!mark("*/a").matches(&way[..1]), "nobody called it");
    }

    #[test]
    fn marks_are_of_a_recording_or_of_the_guest_beside_it() {
        for (place, recording, guest) in [
            ("*", true, true),
            ("this", true, false),
            ("guest:this", false, true),
            ("other", false, false),
            ("guest:other", false, false),
        ] {
            let stages = Stages::parse(&format!("a\tirq\t{place}\tbecause")).unwrap();
            let mark = &stages.incidental[0];
            assert_eq!(
                (mark.is_of("this"), mark.is_of_guest("this")),
                (recording, guest)
            );
        }
    }
}
