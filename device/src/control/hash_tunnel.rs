//! Inner header hash: of which tunnels the packet inside is hashed (VIRTIO 1.4, 5.1.6.4.4).

use nic_model::tunnel::TunnelTypes;

use super::{Context, Refusal, Reply};
use crate::features::Features;

/// VIRTIO_NET_CTRL_HASH_TUNNEL.
pub(super) const CLASS: u32 = 7;
/// VIRTIO_NET_CTRL_HASH_TUNNEL_SET.
const SET: u32 = 0;

pub(super) fn execute(
    context: &mut Context<'_>,
    command: u32,
    data: &[u8],
) -> Result<Reply, Refusal> {
    context.negotiated(Features::HASH_TUNNEL)?;
    if command != SET {
        return Err(Refusal::Unknown);
    }
    // `struct virtnet_hash_tunnel`: the types that are enabled.
    let bits = data.try_into().map_err(|_| Refusal::Malformed)?;
    let types = TunnelTypes::from_bits(u32::from_le_bytes(bits)).ok_or(Refusal::Malformed)?;
    context.port.hash_tunnel_types = types;
    Ok(Reply::new())
}

#[cfg(test)]
mod tests {
    use nic_model::port::{Port, PortConfig};

    use super::*;
    use crate::control::tests::{execute, refused};
    use crate::nic::set_port_features;

    const TUNNEL: Features = Features::CTRL_VQ.union(Features::HASH_TUNNEL);

    #[test]
    fn types_are_enabled_and_disabled() {
        let mut port = Port::new(&PortConfig::default());
        assert_eq!(port.hash_tunnel_types, TunnelTypes::default());
        for (data, expected) in [
            ([0x10, 0, 0, 0], TunnelTypes::VXLAN),
            ([0xff, 1, 0, 0], TunnelTypes::ALL),
            ([0; 4], TunnelTypes::default()),
            ([0, 1, 0, 0], TunnelTypes::NVGRE),
        ] {
            let command = [&[7, 0][..], &data].concat();
            assert_eq!(execute(&mut port, TUNNEL, &command), Ok(vec![]));
            assert_eq!(port.hash_tunnel_types, expected);
        }
        set_port_features(&mut port, TUNNEL);
        assert_eq!(port.hash_tunnel_types, TunnelTypes::NVGRE);
        set_port_features(&mut port, Features::CTRL_VQ);
        assert_eq!(port.hash_tunnel_types, TunnelTypes::default());
    }

    #[test]
    fn what_the_card_does_not_know_is_refused_and_changes_nothing() {
        let mut port = Port::new(&PortConfig::default());
        execute(&mut port, TUNNEL, &[7, 0, 0x40, 0, 0, 0]).unwrap();
        for (command, refusal) in [
            (&[7][..], Refusal::Malformed),
            (&[7, 0], Refusal::Malformed),
            (&[7, 0, 1, 0, 0], Refusal::Malformed),
            (&[7, 0, 1, 0, 0, 0, 0], Refusal::Malformed),
            (&[7, 0, 0, 2, 0, 0], Refusal::Malformed),
            (&[7, 0, 1, 0, 0, 0x80], Refusal::Malformed),
            (&[7, 1, 1, 0, 0, 0], Refusal::Unknown),
        ] {
            assert_eq!(refused(&mut port, TUNNEL, command), refusal, "{command:?}");
        }
        let others = Features::all().difference(Features::HASH_TUNNEL);
        let refusal = refused(&mut port, others, &[7, 0, 1, 0, 0, 0]);
        assert_eq!(refusal, Refusal::Unknown);
        assert_eq!(port.hash_tunnel_types, TunnelTypes::GENEVE);
    }
}
