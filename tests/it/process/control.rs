//! A running NIC, watched and changed from outside: `stats`, `link`, and the socket that they use.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use nic_backend::control::{Request, ask};
use nic_guest::virtio_net::header::VirtioNetHdr;
use nic_model::counters::Drop as Reason;
use serde_json::Value;

use super::child::{Finished, Serving, run};
use super::{assert_one_line, guest};
use crate::support::{PATIENCE, numbered_frame, wait_until};

#[test]
fn the_link_is_shown_and_changed_from_outside() {
    let nic = Serving::start(&["--wire", "loopback", "--speed", "1G"]);
    let mut guest = guest(&nic.socket());
    let control = nic.control();
    let control = control.to_str().expect("a name");
    let link = |args: &[&str]| {
        let end = run(&[&["link", "--control", control], args].concat());
        assert_eq!((end.code, end.err.as_str()), (Some(0), ""), "{args:?}");
        end.out
    };
    assert_eq!(link(&[]), "link up at 1000 Mb/s\n");
    for (state, up) in [("down", false), ("up", true), ("down", false)] {
        let said = if up {
            "link up at 1000 Mb/s\n"
        } else {
            "link down\n"
        };
        assert_eq!(link(&[state]), said);
        wait_until("an announcement", || {
            guest.handle_config_change().expect("a configuration space")
        });
        assert_eq!(guest.link_up(), up);
    }
    let answer: Value = serde_json::from_str(&link(&["--json"])).expect("JSON");
    assert_eq!(answer["link"], "down");
    let answer: Value = serde_json::from_str(&link(&["up", "--json"])).expect("JSON");
    assert_eq!(
        (&answer["link"], &answer["changed"]),
        (&"up".into(), &true.into())
    );
    let down = ask(&nic.control(), Request::Link { up: Some(false) }).expect("an answer");
    assert_eq!(down["link"], "down");
    // It may be down from the start.
    let nic = Serving::start(&["--link", "down"]);
    let link = ask(&nic.control(), Request::Link { up: None }).expect("an answer");
    assert_eq!(
        (&link["link"], &link["changed"]),
        (&"down".into(), &false.into())
    );
}

#[test]
fn a_guest_is_asked_to_announce_itself_from_outside() {
    let nic = Serving::start(&["--wire", "loopback"]);
    let control = nic.control();
    let announce = |args: &[&str]| {
        let control = control.to_str().expect("a name");
        run(&[&["announce", "--control", control], args].concat())
    };
    let end = announce(&[]);
    assert_eq!(end.code, Some(1));
    assert_one_line("announce", &end.err, &["GUEST_ANNOUNCE"]);
    let mut guest = guest(&nic.socket());
    for (args, out) in [
        (&[][..], "the guest is asked to announce itself\n"),
        (&["--json"], "{\n  \"asked\": true\n}\n"),
    ] {
        let end = announce(args);
        assert_eq!((end.code, end.out.as_str()), (Some(0), out), "{}", end.err);
        wait_until("the request", || {
            guest.handle_config_change().expect("a configuration space")
        });
        assert!(guest.config.announce());
        guest.ack_link_announce().expect("an answer");
    }
}

#[test]
fn stats_show_every_counter() {
    let nic = Serving::start(&["--wire", "sink"]);
    let mut guest = guest(&nic.socket());
    for number in 0..10 {
        let frame = numbered_frame(number, 60);
        guest
            .start_xmit(0, &frame, &VirtioNetHdr::default())
            .expect("room");
    }
    guest.flush(0);
    wait_until("the frames to be sent", || {
        guest.poll(0, 64, |_| {}).expect("sound rings");
        guest.stats().1.packets == 10
    });
    let control = nic.control();
    let stats = |args: &[&str]| {
        let control = control.to_str().expect("a name");
        let end = run(&[&["stats", "--control", control], args].concat());
        assert_eq!((end.code, end.err.as_str()), (Some(0), ""), "{args:?}");
        end.out
    };
    let json: Value = serde_json::from_str(&stats(&["--json"])).expect("one JSON document");
    let (all, brief) = (stats(&["--all"]), stats(&[]));
    for reason in Reason::ALL {
        assert_eq!(json["port"]["drops"][reason.name()], 0, "{reason}");
        assert!(
            all.contains(&format!("port.drops.{reason} ")),
            "{reason}: {all}"
        );
        assert!(!brief.contains(reason.name()), "{reason} is zero: {brief}");
    }
    let line = |text: &str, name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name));
        found
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .trim()
            .to_owned()
    };
    for (name, value) in [
        ("port.tx_frames ", "10"),
        ("wire_counters.sink_frames ", "10"),
        ("queues.tx0.packets ", "10"),
        ("connections ", "1"),
        ("wire ", "sink"),
        ("port.link ", "true"),
        ("port.mac ", "52:54:00:12:34:56"),
    ] {
        assert_eq!(line(&brief, name), value, "{name}");
        assert_eq!(line(&all, name), value, "{name}");
    }
    assert_eq!(json["port"]["tx_frames"], 10);
    assert_eq!(
        json["queues"].as_object().map(serde_json::Map::len),
        Some(3)
    );
    assert!(
        json["features"]
            .as_str()
            .is_some_and(|names| names.contains("CTRL_RX"))
    );
}

#[test]
fn many_watch_at_once() {
    let nic = Serving::start(&["--wire", "generator:pps=100000"]);
    let _guest = guest(&nic.socket());
    let path = nic.control();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let stats = ask(&path, Request::Stats).expect("an answer");
                    assert_eq!(stats["wire"], "generator:size=64,flows=1,pps=100000");
                }
            });
        }
        // One that says nothing, and one that asks and does not listen, hold nobody up.
        let _silent = UnixStream::connect(&path).expect("a connection");
        let mut deaf = UnixStream::connect(&path).expect("a connection");
        for _ in 0..100 {
            // At some point the NIC has enough of it.
            if deaf.write_all(b"{\"command\":\"stats\"}\n").is_err() {
                break;
            }
        }
        ask(&path, Request::Link { up: None }).expect("an answer");
    });
}

#[test]
fn too_many_connections_are_turned_away_and_room_is_made_again() {
    let nic = Serving::start(&[]);
    let connect = || UnixStream::connect(nic.control()).expect("a connection");
    // Each says something, so that it is known to have been taken.
    let taken: Vec<UnixStream> = (0..64)
        .map(|_| {
            let mut stream = connect();
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            stream.write_all(b"\n").expect("it listens");
            let answer = BufReader::new(&stream).lines().next();
            assert!(matches!(answer, Some(Ok(_))), "{answer:?}");
            stream
        })
        .collect();
    let error = ask(&nic.control(), Request::Stats).expect_err("there is no room");
    assert!(
        format!("{error:#}").contains("the NIC hung up"),
        "{error:#}"
    );
    drop(taken);
    wait_until("room", || ask(&nic.control(), Request::Stats).is_ok());
}

#[test]
fn what_makes_no_sense_on_the_control_socket_is_answered_with_an_error() {
    let nic = Serving::start(&[]);
    let mut stream = UnixStream::connect(nic.control()).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut answers = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
    let mut ask_raw = |line: &[u8]| {
        stream.write_all(line).expect("it listens");
        stream.write_all(b"\n").expect("it listens");
        let answer = answers
            .next()
            .expect("the connection lives")
            .expect("an answer in time");
        serde_json::from_str::<Value>(&answer).expect("JSON")
    };
    for garbage in [
        &b""[..],
        b"stats",
        b"{}",
        b"[1, 2",
        b"{\"command\":\"explode\"}",
        b"{\"command\":\"link\",\"up\":\"maybe\"}",
        b"{\"command\":\"link\",\"down\":true}",
        b"\xff\xfe\0",
        &[b'x'; 4000],
    ] {
        let answer = ask_raw(garbage);
        let error = answer["error"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"));
        assert!(error.starts_with("no request: "), "{error}");
        // The same connection still serves.
        assert_eq!(ask_raw(b"{\"command\":\"link\"}")["ok"]["link"], "up");
    }
    // Several at once are answered one by one.
    let two = ask_raw(b"{\"command\":\"link\"}\n{\"command\":\"nothing\"}");
    assert_eq!(two["ok"]["link"], "up");
    assert!(ask_raw(b"")["error"].is_string(), "the second one's answer");
    // A line without end is not kept.
    let mut endless = UnixStream::connect(nic.control()).expect("a connection");
    endless.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    endless
        .write_all(&[b'x'; 5000])
        .expect("room in the socket");
    let rest = BufReader::new(endless).lines().next();
    assert!(!matches!(rest, Some(Ok(_))), "it is hung up on: {rest:?}");
    ask(&nic.control(), Request::Stats).expect("an answer");
}

#[test]
fn without_a_nic_the_clients_say_so() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let missing = directory.path().join("control").display().to_string();
    for args in [
        &["stats"][..],
        &["stats", "--json"],
        &["link"],
        &["link", "up"],
    ] {
        let Finished { code, out, err } = run(&[args, &["--control", &missing]].concat());
        assert_eq!((code, out.as_str()), (Some(1), ""), "{args:?}: {err}");
        assert_one_line(
            "no NIC",
            &err,
            &[&missing, "no NIC answers", "serve --control"],
        );
    }
    // One that listens and hangs up.
    let listener = UnixListener::bind(&missing).expect("a socket");
    std::thread::scope(|scope| {
        let client = scope.spawn(|| run(&["stats", "--control", &missing]));
        let (stream, _) = listener.accept().expect("the client");
        let mut request = String::new();
        BufReader::new(stream)
            .read_line(&mut request)
            .expect("a request");
        assert_eq!(request, "{\"command\":\"stats\"}\n");
        let end = client.join().expect("no panic");
        assert_eq!((end.code, end.out.as_str()), (Some(1), ""));
        assert_one_line("hung up", &end.err, &["hung up without an answer"]);
    });
}
