//! The fuzz targets' committed inputs, without a fuzzer.

#[path = "src/lib.rs"]
mod targets;

use std::fs;
use std::path::Path;

use targets::TARGETS;

/// The inputs of `target`: one a line, in hexadecimal digits.
fn inputs(target: &str) -> Vec<Vec<u8>> {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/fuzz");
    let file = corpora.join(format!("{target}.hex"));
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
    let octet = |digits: &[u8]| {
        let digits = str::from_utf8(digits).unwrap();
        u8::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("{digits} in {file:?}"))
    };
    let line = |line: &str| line.as_bytes().chunks(2).map(octet).collect();
    text.lines().map(line).collect()
}

fn replay(target: &str) {
    let run = (TARGETS.iter().find(|(name, _)| *name == target))
        .unwrap()
        .1;
    let inputs = inputs(target);
    assert!(!inputs.is_empty(), "{target} has no inputs");
    for (number, input) in (1..).zip(inputs) {
        println!("line {number} of {target}.hex");
        run(&input);
    }
}

macro_rules! replays {
    ($($target:ident)*) => {
        $(#[test] fn $target() { replay(stringify!($target)); })*

        #[test]
        fn each_target_is_replayed_and_is_a_program() {
            let replayed = [$(stringify!($target)),*];
            assert!(TARGETS.iter().map(|(name, _)| *name).eq(replayed));
            let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
            assert_eq!(fs::read_dir(programs).unwrap().count(), replayed.len());
            for target in replayed {
                assert!(!inputs(target).is_empty());
            }
        }
    };
}

replays! {
    ring_split
    ring_packed
    nic
    control_queue
    wire
    guest_stack
    guest_driver
    messages
    captures
    options
}
