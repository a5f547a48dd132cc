//! `serve --config FILE`: options of `serve` in a file, in TOML, for one NIC or several in one process.
//!
//! ```toml
//! queues = 4
//!
//! [[nic]]
//! socket = "/tmp/a.sock"
//! control = "/tmp/a.ctl"
//!
//! [[nic]]
//! socket = "/tmp/b.sock"
//! mac = "52:54:00:12:34:57"
//! disable = ["RING_PACKED"]
//! ```
//!
//! A key is an option's name, its value what would follow it; for an option without a value, `true` gives it, `false` does not. Each
//! `[[nic]]` table is a NIC; what stands before the first is for all that do not say it themselves. The file becomes arguments that
//! stand before those of the command line, for each NIC its own, so that both are checked by the same rules; an option that is on the
//! command line is not taken from the file.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// Options that are none in a file.
pub const COMMAND_LINE_ONLY: &[&str] = &["config", "help"];

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something in it makes no sense.
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// What the command line names is no file.
    #[error("{}: {reason}", path.display())]
    Whole {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The program's arguments for one NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// All of them.
    pub args: Vec<OsString>,
    /// Where the file says so, if one does: its name and the line of the NIC's table.
    pub place: Option<String>,
}

/// `args`, the program's, with those of the file that `serve --config` names, if it names one: once for each NIC in it. `command` is
/// the program's.
///
/// # Errors
/// The file cannot be read, or makes no sense.
pub fn with_file(args: Vec<OsString>, command: &Command) -> Result<Vec<Given>, BadConfig> {
    let is_serve = args.get(1).is_some_and(|arg| arg == "serve");
    let Some(path) = named(&args).filter(|_| is_serve) else {
        return Ok(vec![Given { args, place: None }]);
    };
    let text = fs::read_to_string(&path).map_err(|source| BadConfig::Read {
        path: path.clone(),
        source,
    })?;
    let file = File {
        path,
        text: &text,
        command,
    };
    let with = |(at, mut found): (usize, Vec<GivenOption>)| {
        found.retain(|(name, _)| !gives(&args, name));
        if !gives(&args, "socket") && !found.iter().any(|(name, _)| name == "socket") {
            let reason =
                "this NIC has no socket: write a line socket = \"PATH\" below, or give --socket";
            return Err(file.wrong(at, reason));
        }
        let found = found.into_iter().flat_map(|(_, arguments)| arguments);
        let mut all: Vec<OsString> = args[..2].to_vec();
        all.extend(found.map(OsString::from));
        all.extend_from_slice(&args[2..]);
        let place = Some(format!("{}, line {}", file.path.display(), file.line(at)));
        Ok(Given { args: all, place })
    };
    file.nics()?.into_iter().map(with).collect()
}

/// The file that `args` name.
fn named(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    None
}

/// Whether `args` give the option `name`.
fn gives(args: &[OsString], name: &str) -> bool {
    let option = format!("--{name}");
    args.iter().filter_map(|arg| arg.to_str()).any(|arg| {
        arg.strip_prefix(&option)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

/// An option's name, and the arguments that give it.
type GivenOption = (String, Vec<String>);

struct File<'a> {
    path: PathBuf,
    text: &'a str,
    command: &'a Command,
}

impl File<'_> {
    /// The line that octet `at` is in, from 1.
    fn line(&self, at: usize) -> usize {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        1 + before.iter().filter(|&&octet| octet == b'\n').count()
    }

    fn wrong(&self, at: usize, reason: impl Into<String>) -> BadConfig {
        BadConfig::Line {
            path: self.path.clone(),
            line: self.line(at),
            reason: reason.into(),
        }
    }

    fn serve(&self) -> &Command {
        self.command
            .find_subcommand("serve")
            .expect("there is that command")
    }

    fn option(&self, name: &str) -> Option<&Arg> {
        let mut options = self.serve().get_arguments();
        options.find(|option| option.get_long() == Some(name) && !COMMAND_LINE_ONLY.contains(&name))
    }

    /// Which keys a NIC may have.
    fn keys(&self) -> String {
        let options = self.serve().get_arguments().filter_map(Arg::get_long);
        let names = options.filter(|name| !COMMAND_LINE_ONLY.contains(name));
        names.collect::<Vec<_>>().join(", ")
    }

    /// Each NIC: where its table is, and what options it has.
    fn nics(&self) -> Result<Vec<(usize, Vec<GivenOption>)>, BadConfig> {
        let table = DeTable::parse(self.text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            self.wrong(at, error.message().replace('\n', ", "))
        })?;
        let (nics, usual): (Vec<_>, Vec<_>) = table
            .get_ref()
            .iter()
            .partition(|(key, _)| key.get_ref() == "nic");
        let usual = self.options(usual)?;
        let mut all = Vec::new();
        for (_, value) in nics {
            for (at, nic) in self.tables(value)? {
                let mut own = self.options(nic.iter())?;
                let others = usual.iter();
                let others = others.filter(|(name, _)| !own.iter().any(|(own, _)| own == name));
                let others: Vec<_> = others.cloned().collect();
                own.extend(others);
                all.push((at, own));
            }
        }
        if all.is_empty() {
            let reason =
                "there is no NIC in it: write [[nic]] and below it a line socket = \"PATH\"";
            return Err(BadConfig::Whole {
                path: self.path.clone(),
                reason: reason.into(),
            });
        }
        Ok(all)
    }

    /// The tables of NICs, and where each is.
    fn tables<'v, 'i>(
        &self,
        value: &'v Spanned<DeValue<'i>>,
    ) -> Result<Vec<(usize, &'v DeTable<'i>)>, BadConfig> {
        let DeValue::Array(nics) = value.get_ref() else {
            let reason = "a NIC begins with [[nic]], with two brackets";
            return Err(self.wrong(value.span().start, reason));
        };
        let table = |nic: &'v Spanned<DeValue<'i>>| match nic.get_ref() {
            DeValue::Table(table) => Ok((nic.span().start, table)),
            _ => Err(self.wrong(nic.span().start, "a NIC begins with [[nic]]")),
        };
        nics.iter().map(table).collect()
    }

    /// What the keys and values of a table give.
    fn options<'v, 'i: 'v>(
        &self,
        table: impl IntoIterator<Item = (&'v Spanned<DeString<'i>>, &'v Spanned<DeValue<'i>>)>,
    ) -> Result<Vec<GivenOption>, BadConfig> {
        let option = |(key, value): (&Spanned<DeString<'i>>, &Spanned<DeValue<'i>>)| {
            let (name, at) = (key.get_ref().as_ref(), key.span().start);
            if self.option(name).is_none() {
                let reason = format!("there is no key {name:?}; a NIC has {}", self.keys());
                return Err(self.wrong(at, reason));
            }
            self.give(name, at, value)
        };
        table.into_iter().map(option).collect()
    }

    /// The arguments that give option `name` as `value` says, checked as they would be on the command line.
    fn give(
        &self,
        name: &str,
        at: usize,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<GivenOption, BadConfig> {
        let option = self.option(name).expect("it was looked for");
        let wrong = |reason: String| self.wrong(at, reason);
        let arguments = match (option.get_action(), value.get_ref()) {
            (ArgAction::SetTrue, DeValue::Boolean(true)) => vec![format!("--{name}")],
            (ArgAction::SetTrue, DeValue::Boolean(false)) => Vec::new(),
            (ArgAction::SetTrue, _) => return Err(wrong(format!("{name} is true or false"))),
            (ArgAction::Append, DeValue::Array(values)) => {
                let values = values.iter().map(|value| text(value.get_ref()));
                let values: Option<Vec<_>> = values.collect();
                let values = values.ok_or_else(|| wrong(format!("{name} is a list of texts")))?;
                let argument = |value| format!("--{name}={value}");
                values.into_iter().map(argument).collect()
            }
            (ArgAction::Append, _) => {
                return Err(wrong(format!("{name} is a list, as in {name} = [\"...\"]")));
            }
            (_, value) => {
                let value =
                    text(value).ok_or_else(|| wrong(format!("{name} is a text or a number")))?;
                vec![format!("--{name}={value}")]
            }
        };
        self.check(&arguments).map_err(wrong)?;
        Ok((name.to_owned(), arguments))
    }

    /// Tries `arguments` alone.
    fn check(&self, arguments: &[String]) -> Result<(), String> {
        let serve = self.serve().clone().mut_args(|arg| arg.required(false));
        let args = std::iter::once("serve").chain(arguments.iter().map(String::as_str));
        let tried = serve.try_get_matches_from(args);
        tried.map(drop).map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            first.strip_prefix("error: ").unwrap_or(first).to_owned()
        })
    }
}

/// A value as it would stand on the command line.
fn text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        _ => None,
    }
}
