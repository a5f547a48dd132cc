//! Receive modes, addresses and VLANs: what the filters admit (VIRTIO 1.3, 5.1.6.5.1 to 5.1.6.5.3).

use nic_model::filter::MacAddress;
use nic_model::vlan::{VlanFilter, VlanId};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_RX_ALLMULTI,
    VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_CTRL_RX_NOMULTI,
    VIRTIO_NET_CTRL_RX_NOUNI, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_CTRL_VLAN_ADD,
    VIRTIO_NET_CTRL_VLAN_DEL,
};

use super::{Context, Refusal, Reply};
use crate::features::Features;

pub(super) fn receive_mode(
    context: &mut Context<'_>,
    command: u32,
    data: &[u8],
) -> Result<Reply, Refusal> {
    let feature = match command {
        VIRTIO_NET_CTRL_RX_PROMISC | VIRTIO_NET_CTRL_RX_ALLMULTI => Features::CTRL_RX,
        _ => Features::CTRL_RX_EXTRA,
    };
    context.negotiated(feature)?;
    let filter = &mut context.port.filter;
    let mode = match command {
        VIRTIO_NET_CTRL_RX_PROMISC => &mut filter.promiscuous,
        VIRTIO_NET_CTRL_RX_ALLMULTI => &mut filter.all_multicast,
        VIRTIO_NET_CTRL_RX_ALLUNI => &mut filter.all_unicast,
        VIRTIO_NET_CTRL_RX_NOMULTI => &mut filter.no_multicast,
        VIRTIO_NET_CTRL_RX_NOUNI => &mut filter.no_unicast,
        VIRTIO_NET_CTRL_RX_NOBCAST => &mut filter.no_broadcast,
        _ => return Err(Refusal::Unknown),
    };
    *mode = switch(data)?;
    Ok(Reply::new())
}

pub(super) fn address(
    context: &mut Context<'_>,
    command: u32,
    data: &[u8],
) -> Result<Reply, Refusal> {
    match command {
        VIRTIO_NET_CTRL_MAC_TABLE_SET => {
            context.negotiated(Features::CTRL_RX)?;
            let (unicast, rest) = table(data)?;
            let (multicast, rest) = table(rest)?;
            if !rest.is_empty() {
                return Err(Refusal::Malformed);
            }
            context.port.filter.set_tables(&unicast, &multicast);
        }
        VIRTIO_NET_CTRL_MAC_ADDR_SET => {
            context.negotiated(Features::CTRL_MAC_ADDR)?;
            let address = data.try_into().map_err(|_| Refusal::Malformed)?;
            context.port.filter.set_address(MacAddress(address));
        }
        _ => return Err(Refusal::Unknown),
    }
    Ok(Reply::new())
}

pub(super) fn vlan(context: &mut Context<'_>, command: u32, data: &[u8]) -> Result<Reply, Refusal> {
    context.negotiated(Features::CTRL_VLAN)?;
    let change = match command {
        VIRTIO_NET_CTRL_VLAN_ADD => VlanFilter::add,
        VIRTIO_NET_CTRL_VLAN_DEL => VlanFilter::remove,
        _ => return Err(Refusal::Unknown),
    };
    let id = data.try_into().map_err(|_| Refusal::Malformed)?;
    let id = VlanId::new(u16::from_le_bytes(id)).ok_or(Refusal::Malformed)?;
    change(&mut context.port.vlan, id);
    Ok(Reply::new())
}

/// One octet that switches something on or off (VIRTIO 1.3, 5.1.6.5.1).
fn switch(data: &[u8]) -> Result<bool, Refusal> {
    match data {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(Refusal::Malformed),
    }
}

/// `struct virtio_net_ctrl_mac`: a count and that many addresses. Returns them and what follows.
fn table(data: &[u8]) -> Result<(Vec<MacAddress>, &[u8]), Refusal> {
    let (count, rest) = data.split_first_chunk::<4>().ok_or(Refusal::Malformed)?;
    let octets = 6 * u64::from(u32::from_le_bytes(*count));
    let octets = usize::try_from(octets).map_err(|_| Refusal::Malformed)?;
    let (entries, rest) = rest.split_at_checked(octets).ok_or(Refusal::Malformed)?;
    let (addresses, _) = entries.as_chunks::<6>();
    Ok((
        addresses.iter().map(|&octets| MacAddress(octets)).collect(),
        rest,
    ))
}

#[cfg(test)]
mod tests;
