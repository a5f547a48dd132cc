//! The journey's page: one document, complete, and whole in itself.

use std::collections::{BTreeMap, BTreeSet};

use nic_testbed::trace::COST;
use nic_testbed::trace::journey;
use nic_testbed::trace::report::{Journey, Report};
use nic_testbed::trace::scenario::{SCENARIOS, Scenario};
use serde_json::Value;

/// Elements without an end.
const VOID: [&str; 2] = ["meta", "input"];
/// Elements whose content is text.
const RAW: [&str; 2] = ["script", "style"];

/// The page and the document of `--json` for a scenario.
fn page(scenario: &Scenario) -> (String, Value) {
    let played = [Journey {
        scenario: scenario.name,
        about: scenario.about,
        stages: scenario.play(COST).expect("it plays"),
    }];
    let report = Report::new(&played, None);
    let json = serde_json::to_value(&report).expect("JSON");
    (journey::page(&report).expect("a page"), json)
}

/// What a page embeds under an element's name.
fn embedded(page: &str, id: &str) -> Value {
    let begin = format!("<script type=\"application/json\" id=\"{id}\">");
    let (_, rest) = page.split_once(&begin).expect("the element");
    let (json, _) = rest.split_once("</script>").expect("its end");
    serde_json::from_str(json).expect("JSON")
}

/// Every element is closed where it has to be; returns the names of attributes.
fn check_elements(page: &str) -> BTreeSet<String> {
    let (mut open, mut attributes) = (Vec::new(), BTreeSet::new());
    let mut rest = page.strip_prefix("<!doctype html>").expect("a doctype");
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        if let Some(comment) = rest.strip_prefix("!--") {
            rest = comment.split_once("-->").expect("a comment's end").1;
            continue;
        }
        let (tag, behind) = rest.split_once('>').expect("a tag's end");
        rest = behind;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{tag:?}");
            continue;
        }
        let name = tag.split_whitespace().next().expect("a name");
        let quoted: Vec<_> = tag.split('"').collect();
        assert!(quoted.len() % 2 == 1, "{tag:?}");
        let before = quoted.iter().step_by(2);
        attributes.extend(
            before
                .filter_map(|text| text.trim().strip_suffix('=')?.split_whitespace().last())
                .map(ToString::to_string),
        );
        if RAW.contains(&name) {
            let end = format!("</{name}");
            rest = &rest[rest.find(&end).expect("its end")..];
        }
        if !VOID.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    attributes
}

#[test]
fn every_scenarios_page_is_whole_and_refers_to_nothing_outside() {
    for scenario in &SCENARIOS {
        let (page, json) = page(scenario);
        let name = scenario.name;
        assert_eq!(embedded(&page, "report"), json, "{name}");
        let attributes = check_elements(&page);
        for outside in ["src", "href", "srcset", "data", "action", "xlink:href"] {
            assert!(!attributes.contains(outside), "{name}: {outside}");
        }
        for outside in [
            "://", "url(", "@import", "import(", "fetch(", "XMLHttp", "<link",
        ] {
            assert!(!page.contains(outside), "{name}: {outside}");
        }
        assert!(page.contains("default-src 'none'"), "{name}");
    }
}

/// Whatever a trace says, it stays text.
#[test]
fn what_is_told_does_not_leave_its_element() {
    let mut hostile = SCENARIOS[0];
    hostile.about = "</script><script>alert(1)</script><!-- <script> {{REPORT}}";
    let (page, json) = page(&hostile);
    assert_eq!(embedded(&page, "report"), json);
    assert!(!page.contains("alert(1)</script>"));
    check_elements(&page);
}

/// All stages of a document's forest, each with its caller's station.
fn place<'a>(
    stages: &'a Value,
    caller: Option<(&str, &str)>,
    stations: &BTreeMap<&str, &'a str>,
    used: &mut BTreeSet<String>,
) {
    for stage in stages.as_array().expect("stages") {
        let name = stage["stage"].as_str().expect("a name");
        let called = caller.map(|(caller, _)| format!("{caller}/{name}"));
        let row = called
            .filter(|called| stations.contains_key(called.as_str()))
            .or_else(|| stations.contains_key(name).then(|| name.to_string()));
        let station = match &row {
            Some(row) => stations[row.as_str()],
            None => caller.expect("a stage that nobody calls has a station").1,
        };
        used.extend(row);
        place(&stage["calls"], Some((name, station)), stations, used);
    }
}

/// Each stage has a place on the picture, and each place has a stage of some scenario.
#[test]
fn the_picture_has_a_place_for_each_stage() {
    let (first, _) = page(&SCENARIOS[0]);
    let picture = embedded(&first, "stations");
    let mut stations = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for station in picture.as_array().expect("stations") {
        let id = station["id"].as_str().expect("a name");
        for key in ["stages", "beside"] {
            for stage in station[key].as_array().into_iter().flatten() {
                let stage = stage.as_str().expect("a stage");
                assert_eq!(stations.insert(stage, id), None, "{stage}");
            }
        }
        let [row, column, width] = [0, 1, 2].map(|at| station["place"][at].as_u64());
        let (column, width) = (column.expect("a column"), width.expect("a width"));
        for column in column..column + width {
            assert!(column <= 6 && taken.insert((row, column)), "{id}");
        }
    }
    let mut used = BTreeSet::new();
    for scenario in &SCENARIOS {
        let (_, json) = page(scenario);
        let stages = &json["scenarios"][0]["stages"];
        place(stages, None, &stations, &mut used);
    }
    // No scenario's frame is dropped by the card.
    used.insert("drop".into());
    for stage in stations.keys() {
        assert!(used.contains(*stage), "{stage}");
    }
}
