//! Announcement: the driver says that it tells its neighbours where it is, as it was asked to (VIRTIO 1.3, 5.1.6.5.4).

use virtio_bindings::virtio_net::VIRTIO_NET_CTRL_ANNOUNCE_ACK;

use super::{Context, Refusal, Reply};
use crate::features::Features;

pub(super) fn execute(
    context: &mut Context<'_>,
    command: u32,
    data: &[u8],
) -> Result<Reply, Refusal> {
    context.negotiated(Features::GUEST_ANNOUNCE)?;
    match (command, data) {
        (VIRTIO_NET_CTRL_ANNOUNCE_ACK, []) => {
            // If it was not asked, there is nothing to take back; that is no error.
            context.port.announce = false;
            Ok(Reply::new())
        }
        (VIRTIO_NET_CTRL_ANNOUNCE_ACK, _) => Err(Refusal::Malformed),
        _ => Err(Refusal::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use nic_model::port::{Port, PortConfig};

    use super::*;
    use crate::control::tests::{execute, refused};

    const ANNOUNCE: Features = Features::CTRL_VQ.union(Features::GUEST_ANNOUNCE);

    #[test]
    fn the_request_is_taken_back_whether_there_was_one_or_not() {
        let mut port = Port::new(&PortConfig::default());
        for asked in [true, false] {
            port.announce = asked;
            assert_eq!(execute(&mut port, ANNOUNCE, &[3, 0]), Ok(vec![]));
            assert!(!port.announce);
        }
    }

    #[test]
    fn what_is_too_long_unknown_or_was_not_negotiated_leaves_it() {
        let mut port = Port::new(&PortConfig::default());
        port.announce = true;
        for (features, command, refusal) in [
            (ANNOUNCE, &[3][..], Refusal::Malformed),
            (ANNOUNCE, &[3, 0, 0], Refusal::Malformed),
            (ANNOUNCE, &[3, 1], Refusal::Unknown),
            (
                Features::all().difference(Features::GUEST_ANNOUNCE),
                &[3, 0],
                Refusal::Unknown,
            ),
        ] {
            assert_eq!(refused(&mut port, features, command), refusal);
        }
        assert!(port.announce);
    }
}
