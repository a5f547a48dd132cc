//! Options as users write them: most are names with values, `name=value,...`, and all say in one line what is wrong with them.

/// What is wrong with the text of an option.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} {is_none}: {reason}; use {usage}")]
pub struct BadSpec {
    text: String,
    is_none: &'static str,
    reason: String,
    usage: &'static str,
}

/// What `parse` makes of `text`. If that is nothing, it `is_none`, "is no wire" say, for the reason that `parse` has, and `usage` says what is to be
/// written.
pub(crate) fn read<T>(
    text: &str,
    is_none: &'static str,
    usage: &'static str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, BadSpec> {
    parse(text).map_err(|reason| BadSpec {
        text: text.to_owned(),
        is_none,
        reason,
        usage,
    })
}

/// The names and values in `text`, none of which may be there twice.
pub(crate) fn pairs(text: &str) -> Result<Vec<(&str, &str)>, String> {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for part in text.split(',') {
        let pair = part.split_once('=');
        let (name, value) = pair.ok_or_else(|| format!("{part:?} is not NAME=VALUE"))?;
        if pairs.iter().any(|&(before, _)| before == name) {
            return Err(format!("{name} is said twice"));
        }
        pairs.push((name, value));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_values_and_stand_there_once() {
        assert_eq!(
            pairs("a=1,b=,c=x=y"),
            Ok(vec![("a", "1"), ("b", ""), ("c", "x=y")])
        );
        for (text, reason) in [
            ("", "\"\" is not NAME=VALUE"),
            ("a=1,", "\"\" is not NAME=VALUE"),
            ("a=1,b", "\"b\" is not NAME=VALUE"),
            ("a=1,b=2,a=3", "a is said twice"),
        ] {
            assert_eq!(pairs(text), Err(reason.to_owned()));
        }
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        let error = read("x", "is no y", "z", |_| Err::<(), _>("it has no w".into()));
        let text = error.err().map(|error| error.to_string());
        assert_eq!(text.as_deref(), Some("\"x\" is no y: it has no w; use z"));
    }
}
