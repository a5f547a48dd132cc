//! What came out: a line for each case, one JSON document, or JUnit's XML.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::{Stop, Verdict};

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// As it should.
    #[serde(rename = "pass")]
    Pass,
    /// Otherwise.
    #[serde(rename = "fail")]
    Fail,
    /// The backend does not have what it is about.
    #[serde(rename = "not offered")]
    NotOffered,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Outcome::Pass => "pass",
            Outcome::Fail => "FAIL",
            Outcome::NotOffered => "not offered",
        }
    }
}

/// A case that is over.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    /// What it attacks or asks for.
    pub name: String,
    /// What it belongs to.
    pub group: &'static str,
    /// How it ended.
    pub result: Outcome,
    /// What was seen.
    pub detail: String,
    #[serde(skip)]
    took: Duration,
}

impl Done {
    /// The case `name` of `group` ended with `verdict` after `took`.
    #[must_use]
    pub fn new(group: &'static str, name: String, verdict: Verdict, took: Duration) -> Self {
        let (result, detail) = match verdict {
            Ok(seen) => (Outcome::Pass, seen),
            Err(Stop::Fail(why)) => (Outcome::Fail, why),
            Err(Stop::NotOffered(what)) => (Outcome::NotOffered, what),
        };
        Done {
            name,
            group,
            result,
            detail,
            took,
        }
    }

    /// Its line.
    #[must_use]
    pub fn line(&self) -> String {
        let (result, group) = (self.result.name(), self.group);
        format!("{result:<11}  {group:<9} {}: {}", self.name, self.detail)
    }
}

/// All cases that are over.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// In the order in which they ran.
    pub cases: Vec<Done>,
}

impl Report {
    /// How many ended as `result`.
    #[must_use]
    pub fn count(&self, result: Outcome) -> usize {
        let same = |case: &&Done| case.result == result;
        self.cases.iter().filter(same).count()
    }

    /// The last line.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "{} cases: {} passed, {} failed, {} not offered",
            self.cases.len(),
            self.count(Outcome::Pass),
            self.count(Outcome::Fail),
            self.count(Outcome::NotOffered)
        )
    }

    /// The same as JUnit's XML.
    #[must_use]
    pub fn junit(&self) -> String {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        // Writing to a string does not fail.
        let _ = writeln!(
            xml,
            "<testsuite name=\"nic-guest check\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">",
            self.cases.len(),
            self.count(Outcome::Fail),
            self.count(Outcome::NotOffered)
        );
        for case in &self.cases {
            let (name, detail) = (escaped(&case.name), escaped(&case.detail));
            let seconds = case.took.as_secs_f64();
            let _ = write!(
                xml,
                "  <testcase classname=\"{}\" name=\"{name}\" time=\"{seconds:.3}\"",
                case.group
            );
            let _ = match case.result {
                Outcome::Pass => writeln!(xml, "/>"),
                Outcome::Fail => writeln!(xml, "><failure message=\"{detail}\"/></testcase>"),
                Outcome::NotOffered => writeln!(xml, "><skipped message=\"{detail}\"/></testcase>"),
            };
        }
        xml.push_str("</testsuite>\n");
        xml
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let took = Duration::from_millis(1500);
        let verdicts = [
            Ok("refused".to_owned()),
            Err(Stop::fail("a \"<&>\" of\n1")),
            Err(Stop::missing("MQ")),
        ];
        let case = |verdict| Done::new("order", "a name".into(), verdict, took);
        Report {
            cases: verdicts.into_iter().map(case).collect(),
        }
    }

    #[test]
    fn json_has_what_was_promised_and_no_more() {
        let json = serde_json::to_string(&report()).unwrap();
        let first =
            r#"{"cases":[{"name":"a name","group":"order","result":"pass","detail":"refused"},"#;
        assert!(json.starts_with(first), "{json}");
        assert!(json.contains(r#""result":"not offered","detail":"MQ""#));
    }

    #[test]
    fn xml_is_escaped() {
        let xml = report().junit();
        assert!(
            xml.contains(r#"tests="3" failures="1" skipped="1""#),
            "{xml}"
        );
        assert!(
            xml.contains(r#"<failure message="a &quot;&lt;&amp;&gt;&quot; of 1"/>"#),
            "{xml}"
        );
        assert!(xml.contains(r#"time="1.500"/>"#));
    }

    #[test]
    fn the_summary_counts() {
        assert_eq!(
            report().summary(),
            "3 cases: 1 passed, 1 failed, 1 not offered"
        );
        assert_eq!(report().cases[1].line().split_once(' ').unwrap().0, "FAIL");
    }
}
