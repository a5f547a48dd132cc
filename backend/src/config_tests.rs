//! `serve --config` with the program's own options.

use crate::{Command as Chosen, Options, Serve};
use std::ffi::OsString;
use std::fs;

use clap::{CommandFactory, Parser};
use nic_backend::config::{COMMAND_LINE_ONLY, Given, with_file};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/nic.toml");

/// What `serve` with `args` is told to do, with `toml` in a file: each NIC, and where the file says so.
fn serve_all(toml: &str, args: &[&str]) -> Result<Vec<(Serve, String)>, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nic.toml");
    fs::write(&path, toml).unwrap();
    let path = path.to_str().unwrap();
    let args = [&["vhost-user-nic", "serve", "--config", path], args].concat();
    let args = args.iter().map(OsString::from).collect();
    let args = with_file(args, &Options::command())
        .map_err(|error| error.to_string().replace(path, "nic.toml"))?;
    let options = |given: Given| {
        let options = Options::try_parse_from(given.args).map_err(|error| error.to_string())?;
        let Chosen::Serve(mut serve) = options.command else {
            panic!("it was told to serve");
        };
        serve.config = None;
        let place = given.place.expect("it is from a file");
        Ok((serve, place.replace(path, "nic.toml")))
    };
    args.into_iter().map(options).collect()
}

/// The only NIC.
fn serve(toml: &str, args: &[&str]) -> Result<Serve, String> {
    let mut all = serve_all(toml, args)?;
    assert_eq!(all.len(), 1, "{toml}");
    Ok(all.remove(0).0)
}

fn defaults(args: &[&str]) -> Serve {
    let args = [&["vhost-user-nic", "serve"], args].concat();
    match Options::try_parse_from(args).unwrap().command {
        Chosen::Serve(serve) => serve,
        _ => panic!("it was told to serve"),
    }
}

#[test]
fn the_example_has_every_option_at_its_default() {
    let example = fs::read_to_string(EXAMPLE).unwrap();
    let expected = defaults(&["--socket", "/tmp/nic.sock", "--control", "/tmp/nic.ctl"]);
    assert_eq!(serve(&example, &[]), Ok(expected));
    let command = Options::command();
    let options = command.find_subcommand("serve").unwrap().get_arguments();
    for name in options.filter_map(clap::Arg::get_long) {
        let is_there = |line: &str| {
            let line = line.strip_prefix("# ").unwrap_or(line);
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(" = "))
        };
        assert!(
            COMMAND_LINE_ONLY.contains(&name) || example.lines().any(is_there),
            "{name}"
        );
    }
    // With what is commented out, too.
    let all: String = example
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.split(' ').nth(1) == Some("=") || rest == "[[nic]]" => {
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    assert_ne!(all, example);
    let all = serve_all(&all, &[]).unwrap();
    assert_eq!(all.len(), 2);
    assert_ne!(all[0].0.socket, all[1].0.socket);
}

#[test]
fn what_stands_before_the_first_nic_is_for_all_that_do_not_say_it() {
    let toml = "queues = 4\ndisable = [\"MTU\"]\nring-reset = true\n\n[[nic]]\nsocket = \"/a\"\n\n\
                [[nic]]\nsocket = \"/b\"\nqueues = 2\ndisable = []\nring-reset = false\n";
    let all = serve_all(toml, &["--mtu=9000"]).unwrap();
    let first = [
        "--socket=/a",
        "--queues=4",
        "--disable=MTU",
        "--ring-reset",
        "--mtu=9000",
    ];
    let second = ["--socket=/b", "--queues=2", "--mtu=9000"];
    let expected = vec![
        (defaults(&first), "nic.toml, line 5".to_owned()),
        (defaults(&second), "nic.toml, line 8".to_owned()),
    ];
    assert_eq!(all, expected);
    let error = serve_all("[[nic]]\nsocket = \"/a\"\n[[nic]]\nmtu = 1500\n", &[]);
    let error = error.unwrap_err();
    assert!(
        error.starts_with("nic.toml, line 3: this NIC has no socket"),
        "{error}"
    );
    let error = serve_all("[[nic]]\nsocket = \"/a\"\n[[nic]]\nmtu = 15\n", &[]);
    let error = error.unwrap_err();
    assert!(
        error.starts_with("nic.toml, line 4: invalid value '15'"),
        "{error}"
    );
}

#[test]
fn the_command_line_counts_more_than_the_file() {
    let toml = "control = \"/c\"\n[[nic]]\nsocket = \"/s\"\nqueues = 4\nspeed = \"1G\"\n\
                disable = [\"MTU\", \"CSUM\"]\nring-reset = true\ntrace-protocol = false\npoll = \"always\"";
    let args = [
        "--socket=/s",
        "--control=/c",
        "--queues=4",
        "--speed=1G",
        "--disable=MTU",
        "--disable=CSUM",
        "--ring-reset",
        "--poll",
    ];
    assert_eq!(serve(toml, &[]), Ok(defaults(&args)));
    let given = ["--queues", "2", "--disable=MRG_RXBUF", "--socket", "/other"];
    let args = [
        "--socket=/other",
        "--control=/c",
        "--queues=2",
        "--speed=1G",
        "--disable=MRG_RXBUF",
        "--ring-reset",
        "--poll",
    ];
    assert_eq!(serve(toml, &given), Ok(defaults(&args)));
    let other = ["vhost-user-nic", "stats", "--config", "/nonexistent"].map(OsString::from);
    let same = with_file(other.to_vec(), &Options::command()).unwrap();
    let args = other.to_vec();
    assert_eq!(same, [Given { args, place: None }]);
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let nic = |line: &str| format!("[[nic]]\nsocket = \"/s\"\n{line}\n");
    for (toml, expected) in [
        (
            nic("colour = 3"),
            "nic.toml, line 3: there is no key \"colour\"; a NIC has socket, ",
        ),
        (
            nic("queues = 99"),
            "nic.toml, line 3: invalid value '99' for '--queues <N>'",
        ),
        (
            nic("queues = \"many\""),
            "nic.toml, line 3: invalid value 'many'",
        ),
        (
            nic("queues = true"),
            "nic.toml, line 3: queues is a text or a number",
        ),
        (
            nic("wire = \"cable\""),
            "nic.toml, line 3: invalid value 'cable' for '--wire <SPEC>'",
        ),
        (
            nic("disable = \"MTU\""),
            "nic.toml, line 3: disable is a list",
        ),
        (
            nic("disable = [1, []]"),
            "nic.toml, line 3: disable is a list of texts",
        ),
        (
            nic("ring-reset = \"yes\""),
            "nic.toml, line 3: ring-reset is true or false",
        ),
        (
            nic("config = \"x\""),
            "nic.toml, line 3: there is no key \"config\"",
        ),
        (
            nic("mtu = 1500\nmtu = 1500"),
            "nic.toml, line 4: duplicate key",
        ),
        (nic("mtu 1500"), "nic.toml, line 3: "),
        ("queues = 3\n".into(), "nic.toml: there is no NIC in it"),
        (
            "\n\nmetrics = 3\n".into(),
            "nic.toml, line 3: there is no key \"metrics\"; a NIC has socket, ",
        ),
        (
            "nic = [3]\n".into(),
            "nic.toml, line 1: a NIC begins with [[nic]]",
        ),
        (
            "[nic]\nqueues = 3\n".into(),
            "nic.toml, line 1: a NIC begins with [[nic]], with two",
        ),
        (
            "control = \"/c\"\n".into(),
            "nic.toml: there is no NIC in it",
        ),
        (String::new(), "nic.toml: there is no NIC in it"),
    ] {
        let error = serve(&toml, &[]).unwrap_err();
        assert!(error.starts_with(expected), "{toml}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let error = serve("[[nic]]\nqueues = 3", &[]).unwrap_err();
    assert!(error.contains("--socket"), "{error}");
    let args = ["vhost-user-nic", "serve", "--config=/nonexistent/nic.toml"];
    let args = args.map(OsString::from).to_vec();
    let error = with_file(args, &Options::command()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot read /nonexistent/nic.toml: ")
    );
}
