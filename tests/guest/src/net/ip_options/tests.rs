use super::*;

const OWN: u32 = 0x0a4d_0002;
const TIME: u32 = 0x0102_0304;

/// A header with options, padded; what was read, and the options afterwards.
fn compile(options: &[u8]) -> (Result<IpOptions, usize>, Vec<u8>) {
    let mut header = vec![0; IPHDR_LEN];
    header.extend(options);
    header.resize(header.len().next_multiple_of(4), 0);
    let own = Own {
        addr: OWN,
        time: TIME,
        addr_type: &|addr| {
            if addr == OWN {
                RtType::Local
            } else {
                RtType::Unicast
            }
        },
    };
    let mut opt = IpOptions::default();
    let compiled = opt.compile(&mut header, &own).map(|()| opt);
    (compiled, header.split_off(IPHDR_LEN))
}

#[test]
fn options_that_contradict_themselves_are_told_by_their_octet() {
    for (options, wrong) in [
        (&[7][..], 21),               // a length of nothing
        (&[1, 1, 1, 7], 23),          // cut off
        (&[7, 1, 0, 0], 20),          // shorter than itself
        (&[7, 5, 4, 0], 20),          // longer than the header
        (&[7, 2, 0, 0], 21),          // no pointer
        (&[7, 3, 3, 0], 22),          // the pointer points to itself
        (&[7, 6, 4, 0, 0, 0], 22),    // no room for an address
        (&[7, 3, 4, 7, 3, 4, 0], 23), // twice
        (&[68, 3, 5, 0], 21),
        (&[68, 4, 4, 0], 22),
        (&[68, 4, 5, 0xf0], 23), // too many hosts had no room
        (&[68, 8, 5, 1, 0, 0, 0, 0], 22),
        (&[131, 2, 0, 0], 21),
        (&[131, 3, 3, 0], 22),
        (&[131, 3, 4, 137, 3, 4, 0], 23),
        (&[148, 3, 0, 0], 21),
    ] {
        let want = if options == [7] { 20 } else { wrong };
        assert_eq!(compile(options).0, Err(want), "{options:?}");
    }
}

#[test]
fn what_options_ask_for_is_filled_in() {
    let own = OWN.to_be_bytes();
    let (opt, bytes) = compile(&[1, 7, 7, 4, 9, 9, 9, 9]);
    let opt = opt.unwrap();
    assert_eq!((opt.rr, opt.rr_needaddr), (21, true));
    assert_eq!(bytes, [&[1, 7, 7, 8][..], &own].concat());
    let (opt, bytes) = compile(&[68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(opt.is_ok_and(|opt| opt.ts_needaddr && opt.ts_needtime));
    assert_eq!(bytes, [&[68, 12, 13, 1][..], &own, &[1, 2, 3, 4]].concat());
    // It was not asked.
    let other = [68, 12, 5, 3, 10, 77, 0, 3, 0, 0, 0, 0];
    assert_eq!(compile(&other).1, other);
    // There is no room: for the route that is all, timestamps count it.
    assert_eq!(compile(&[7, 3, 4, 0]).1, [7, 3, 4, 0]);
    assert_eq!(compile(&[68, 4, 5, 0x21]).1, [68, 4, 5, 0x31]);
    // Behind the end nothing is read.
    assert_eq!(
        compile(&[0, 9, 9, 9]),
        (Ok(IpOptions::default()), vec![0; 4])
    );
}

#[test]
fn an_answer_goes_on_with_the_route() {
    let mut header = vec![0; IPHDR_LEN];
    header.extend([7, 11, 8, 10, 77, 0, 2, 0, 0, 0, 0, 0]);
    let opt = IpOptions {
        rr: 20,
        rr_needaddr: true,
        ..IpOptions::default()
    };
    let reply = ReplyOptions::echo(&header, &opt, |_| RtType::Unicast).unwrap();
    let (data, len) = reply.build(OWN, TIME);
    assert_eq!(data[..len], [7, 11, 12, 10, 77, 0, 2, 10, 77, 0, 2, 0]);
    // A host that finds no room adds nothing.
    header[22] = 12;
    let reply = ReplyOptions::echo(&header, &opt, |_| RtType::Unicast).unwrap();
    assert_eq!(reply.build(OWN, TIME).0[..12], header[20..]);
}

#[test]
fn an_option_that_is_not_there_any_more_is_not_answered() {
    for (rr, ts) in [(20, 0), (0, 20)] {
        let opt = IpOptions {
            rr,
            ts,
            ..IpOptions::default()
        };
        let least = if rr == 0 { 4 } else { 3 };
        for len in 0..4 {
            let mut header = vec![0; IPHDR_LEN];
            header.extend([7, len, 4, 0]);
            let reply = ReplyOptions::echo(&header, &opt, |_| RtType::Unicast);
            assert_eq!(reply.is_some(), len >= least, "{len} octets");
        }
        // Nor one of another packet's longer header.
        assert!(ReplyOptions::echo(&[0; IPHDR_LEN], &opt, |_| RtType::Unicast).is_none());
    }
}

#[test]
fn later_fragments_have_only_what_each_is_to_have() {
    let mut header = vec![0; IPHDR_LEN];
    header.extend([7, 3, 4, 148, 4, 0, 0, 0]);
    ip_options_fragment(&mut header);
    assert_eq!(header[IPHDR_LEN..], [1, 1, 1, 148, 4, 0, 0, 0]);
}
