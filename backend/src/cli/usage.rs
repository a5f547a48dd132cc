//! What users got wrong: one line on standard error, and exit status 2.

use std::fmt::Display;
use std::io::Write;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

use crate::Options;

/// Ends the program: `reason` is what is wrong with the arguments, though each for itself is right.
pub fn refuse(reason: impl Display) -> ! {
    // If nobody reads it any more, the status has to do.
    let _ = writeln!(std::io::stderr(), "error: {reason}");
    std::process::exit(2);
}

/// The program's options from its arguments, or its end.
pub fn parse(args: Vec<std::ffi::OsString>) -> Options {
    Options::try_parse_from(args).unwrap_or_else(|error| hint(error).exit())
}

/// Says where a socket may be named, too, if that is what is missing.
fn hint(mut error: Error) -> Error {
    let lacks_socket = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(missing)) => missing.iter().any(|arg| arg.contains("--socket")),
        _ => false,
    };
    if error.kind() == ErrorKind::MissingRequiredArgument && lacks_socket {
        let tip =
            "or give a file that names it: serve --config FILE, with a table [[nic]] for each NIC";
        let tip = ContextValue::StyledStrs(vec![tip.into()]);
        error.insert(ContextKind::Suggested, tip);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_no_socket_is_told_of_files() {
        let message = |args: &[&str]| {
            let error = Options::try_parse_from(args).err().expect("it is wrong");
            hint(error).to_string()
        };
        let missing = message(&["vhost-user-nic", "serve"]);
        assert!(missing.contains("--socket <PATH>") && missing.contains("serve --config FILE"));
        let other = message(&["vhost-user-nic", "stats"]);
        assert!(!other.contains("--config"), "{other}");
    }
}
