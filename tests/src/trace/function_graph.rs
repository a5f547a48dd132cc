//! Reads what the kernel's function_graph tracer has recorded.
//!
//! Lines are `COLUMNS | CALL`, where a call is `name();`, `name() {` or `}`; a module in brackets behind the name
//! and comments count for nothing. Whatever the columns are, the first of them says to whom a line belongs: the task, or the CPU
//! with a bracket behind it, as `trace_pipe` has it. So calls of several CPUs may be mixed. Suffixes that the
//! compiler gave a function (`.isra.0`, `.constprop.0`, `.part.0`, `.cold`) are taken off.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};

/// A call that was recorded, with the calls that it made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The function, without the compiler's suffixes.
    pub name: String,
    /// Where it was entered, counted from 1.
    pub line: usize,
    /// Whether the recording ends before the function does.
    pub open: bool,
    /// What it called, in order.
    pub calls: Vec<Call>,
}

/// The calls of a recording that nobody called, in order.
///
/// # Errors
/// It is no such recording.
pub fn parse(text: &str) -> anyhow::Result<Vec<Call>> {
    let mut open: BTreeMap<&str, Vec<Call>> = BTreeMap::new();
    let mut roots = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        if text.starts_with('#') {
            continue;
        }
        let Some((columns, call)) = text.rsplit_once('|') else {
            continue;
        };
        // `/* ... */` may stand behind a bracket.
        let call = call.split("/*").next().unwrap_or_default().trim();
        let owner = columns.split([')', '|']).next().unwrap_or_default().trim();
        let stack = open.entry(owner).or_default();
        let done = if call == "}" {
            Some(stack.pop().with_context(|| {
                format!("line {line}: a function ends here that did not begin: give the recording from its first call on")
            })?)
        } else if let Some(name) = call.strip_suffix('{') {
            stack.push(begin(name, line)?);
            None
        } else if let Some(name) = call.strip_suffix(';') {
            Some(begin(name, line)?)
        } else if call.is_empty() {
            None
        } else {
            bail!(no_call(call, line));
        };
        if let Some(call) = done {
            stack
                .last_mut()
                .map_or(&mut roots, |caller| &mut caller.calls)
                .push(call);
        }
    }
    for stack in open.into_values() {
        let cut = stack.into_iter().rev().reduce(|inner, mut outer| {
            outer.calls.push(Call {
                open: true,
                ..inner
            });
            outer
        });
        roots.extend(cut.map(|call| Call { open: true, ..call }));
    }
    ensure!(
        !roots.is_empty(),
        "there is no call in it: give what the kernel's function_graph tracer recorded"
    );
    roots.sort_by_key(|call| call.line);
    Ok(roots)
}

/// A call of `text`: a name, perhaps a module, and brackets.
fn begin(text: &str, line: usize) -> anyhow::Result<Call> {
    let name = text
        .trim()
        .strip_suffix("()")
        .and_then(|name| name.split_whitespace().next())
        .and_then(|name| name.split('.').next())
        .filter(|name| !name.is_empty())
        .with_context(|| no_call(text, line))?;
    Ok(Call {
        name: name.into(),
        line,
        open: false,
        calls: Vec::new(),
    })
}

fn no_call(text: &str, line: usize) -> String {
    let text = text.trim();
    format!(
        "line {line}: {text:?} is no call: give what function_graph recorded, without funcgraph-retval and the like"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and nesting, as `a(b c(d))`.
    fn shape(calls: &[Call]) -> String {
        let calls: Vec<_> = calls
            .iter()
            .map(|call| match &call.calls[..] {
                [] => call.name.clone(),
                inner => format!("{}({})", call.name, shape(inner)),
            })
            .collect();
        calls.join(" ")
    }

    #[test]
    fn calls_nest_and_lose_suffixes_and_modules() {
        let recorded = "\
# A comment | of no call();
<idle>    | a() {
<idle>    |   b.isra.0 [virtio_net]() {
<idle>    |     c.constprop.0();
<idle>    |   } /* b.isra.0 [virtio_net] */
<idle>    | }
socat     | d.cold();
";
        let calls = parse(recorded).unwrap();
        assert_eq!(shape(&calls), "a(b(c)) d");
        assert_eq!((calls[0].line, calls[1].line), (2, 7));
        assert!(!calls[0].open);
    }

    #[test]
    fn cpus_are_told_apart() {
        let recorded = "\
 0)               |  a() {
 1)   0.151 us    |  x();
 0)   0.400 us    |    b();
 ------------------------------------------
 0)   ==========> |
 0)   1.000 us    |  }
";
        assert_eq!(shape(&parse(recorded).unwrap()), "a(b) x");
    }

    #[test]
    fn what_the_recording_cuts_off_stays_open() {
        let calls = parse("t | a() {\nt |   b();\nt |   c() {\nt |     d();\n").unwrap();
        assert_eq!(shape(&calls), "a(b c(d))");
        let [b, c] = &calls[0].calls[..] else {
            panic!("{calls:?}");
        };
        assert!(calls[0].open && c.open && !b.open && !c.calls[0].open);
    }

    #[test]
    fn what_is_no_recording_is_refused() {
        for (text, why) in [
            ("hello\n", "there is no call in it"),
            ("t | }\n", "line 1: a function ends"),
            (
                "t | a();\nt | 17 packets\n",
                "line 2: \"17 packets\" is no call",
            ),
            ("t | a {\n", "line 1: \"a\" is no call"),
            ("t | ();\n", "is no call"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
