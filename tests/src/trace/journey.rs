//! The journey as a moving picture: one page that needs nothing but itself.
//!
//! All that it tells is in the [`Report`], the same that `--json` prints. The template, `journey.html`, knows no scenario: only where on the
//! picture each stage is.

use super::report::Report;

const TEMPLATE: &str = include_str!("journey.html");
/// Where the report's place is in the template.
const PLACE: &str = "{{REPORT}}";

/// The page that shows a report's scenarios.
///
/// # Errors
/// The report cannot be written as JSON.
pub fn page(report: &Report<'_>) -> serde_json::Result<String> {
    // Nothing in JSON's strings ends a script element or begins a comment then, and nothing else in JSON has a `<`.
    let json = serde_json::to_string(report)?.replace('<', "\\u003c");
    Ok(TEMPLATE.replacen(PLACE, &json, 1))
}
