use super::*;
use nic_model::fault::RingLies;

fn liar(lies: &Lies, half: Option<Direction>) -> Liar {
    *Liar::new(lies, 7, 0, half).expect("it lies")
}

#[test]
fn who_has_nothing_to_lie_about_is_not_there() {
    let (rx, tx) = (Some(Direction::Receive), Some(Direction::Transmit));
    let all = RingLies {
        used_id: 1.0,
        used_len: 1.0,
        used_jump: 1.0,
    };
    for (lies, speak) in [
        (Lies::default(), [false; 3]),
        (
            Lies {
                receive: all,
                ..Lies::default()
            },
            [true, false, false],
        ),
        (
            Lies {
                transmit: all,
                ..Lies::default()
            },
            [false, true, false],
        ),
        (
            Lies {
                gso: 0.1,
                ..Lies::default()
            },
            [true, false, false],
        ),
        (
            Lies {
                silent: 0.1,
                ..Lies::default()
            },
            [false, false, true],
        ),
        (
            Lies {
                config_tear: 1.0,
                ..Lies::default()
            },
            [false; 3],
        ),
    ] {
        let is_there = |half| Liar::new(&lies, 1, 0, half).is_some();
        assert_eq!([rx, tx, None].map(is_there), speak, "{lies:?}");
    }
}

#[test]
fn no_header_that_lies_can_be_believed() {
    let only = |num_buffers, gso, csum| Lies {
        num_buffers,
        gso,
        csum,
        ..Lies::default()
    };
    let half = Some(Direction::Receive);
    let truth = || {
        let mut header = NetHeader::default();
        header.num_buffers.set(1);
        header
    };
    let mut about = liar(&only(1.0, 0.0, 0.0), half);
    for _ in 0..1000 {
        let mut header = truth();
        about.header(&mut header, 60);
        assert_ne!(header.num_buffers.get(), 1);
        assert_eq!((header.gso_type, header.flags), (0, 0));
    }
    assert_eq!((about.counts.num_buffers, about.counts.gso), (1000, 0));
    let mut about = liar(&only(0.0, 1.0, 0.0), half);
    for _ in 0..1000 {
        let mut header = truth();
        about.header(&mut header, 60);
        let needs_checksum = u32::from(header.flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
        let kind = u32::from(header.gso_type);
        let known = kind == VIRTIO_NET_HDR_GSO_TCPV4;
        assert_ne!(kind, 0);
        assert!(!known || !needs_checksum || header.gso_size.get() == 0);
    }
    assert_eq!(about.counts.gso, 1000);
    for len in [60, 1514, 65_000, 1 << 20] {
        let mut about = liar(&only(0.0, 0.0, 1.0), half);
        for _ in 0..1000 {
            let mut header = truth();
            about.header(&mut header, len);
            assert!(usize::from(header.csum_start.get()) >= len.min(usize::from(u16::MAX)));
        }
    }
}

#[test]
fn commands_go_unanswered_as_often_as_they_are_to() {
    let lies = Lies {
        silent: 0.25,
        ..Lies::default()
    };
    let mut about = liar(&lies, None);
    let silent = (0..4000).filter(|_| about.keeps_silent()).count();
    assert!((900..1100).contains(&silent), "{silent}");
    assert_eq!(about.counts.unanswered, silent as u64);
}
