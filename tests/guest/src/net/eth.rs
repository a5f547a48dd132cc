//! Ethernet (Linux: `net/ethernet/eth.c`).
//!
//! In: frames as the driver built them. Out: packets that know what they carry and to whom they
//! were sent. Nothing is dropped here: the driver passes no frame without a whole header.

use super::netdevice::NetDevice;
use super::skbuff::{PktType, SkBuff};

pub(crate) const ETH_HLEN: usize = 14;
/// Bytes of an address.
pub(crate) const ETH_ALEN: usize = 6;
pub(crate) const ETH_P_IP: u16 = 0x0800;
pub(crate) const ETH_P_ARP: u16 = 0x0806;
pub(crate) const ETH_P_IPV6: u16 = 0x86dd;
/// A customer's VLAN tag, and a service provider's.
pub(crate) const ETH_P_8021Q: u16 = 0x8100;
pub(crate) const ETH_P_8021AD: u16 = 0x88a8;
/// What IEEE 802.3 frames, with a length in place of the type, are called.
pub(crate) const ETH_P_802_2: u16 = 0x0004;
/// Values from here on are types, below they are lengths.
const ETH_P_802_3_MIN: u16 = 0x0600;
pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];

/// Reads the Ethernet header of a frame that came by `dev` and takes it off.
#[inline]
pub(crate) fn eth_type_trans(skb: &mut SkBuff, dev: &NetDevice) {
    skb.dev = dev.ifindex();
    let Some(hdr) = skb.data().first_chunk::<ETH_HLEN>() else {
        // The driver gives none so short; it ends as a frame of unknown type.
        skb.protocol = 0;
        return;
    };
    let (dest, proto) = (
        [hdr[0], hdr[1], hdr[2], hdr[3], hdr[4], hdr[5]],
        u16::from_be_bytes([hdr[12], hdr[13]]),
    );
    if dest != dev.dev_addr {
        skb.pkt_type = if dest == BROADCAST {
            PktType::Broadcast
        } else if dest[0] & 1 != 0 {
            PktType::Multicast
        } else {
            PktType::OtherHost
        };
    }
    skb.protocol = if proto >= ETH_P_802_3_MIN {
        proto
    } else {
        ETH_P_802_2
    };
    skb.pull(ETH_HLEN);
}

/// The header of frames to `dest`.
#[inline]
pub(crate) fn eth_header(dest: [u8; 6], source: [u8; 6], proto: u16) -> [u8; ETH_HLEN] {
    let mut hdr = [0; ETH_HLEN];
    hdr[..6].copy_from_slice(&dest);
    hdr[6..12].copy_from_slice(&source);
    hdr[12..].copy_from_slice(&proto.to_be_bytes());
    hdr
}

#[cfg(test)]
mod tests {
    use super::super::netdevice::NetDeviceOps;
    use super::super::skbuff::SkbCache;
    use super::*;

    #[test]
    fn frames_are_sorted_by_destination_and_type() {
        let mac = [2, 0, 0, 0, 0, 1];
        let dev = NetDevice::new("eth0", NetDeviceOps::Virtnet, mac, 1500);
        for (dest, proto, pkt_type, protocol) in [
            (mac, 0x0800, PktType::Host, ETH_P_IP),
            (BROADCAST, 0x0806, PktType::Broadcast, ETH_P_ARP),
            ([1, 0, 0x5e, 0, 0, 1], 0x86dd, PktType::Multicast, 0x86dd),
            ([2, 0, 0, 0, 0, 2], 0x05ff, PktType::OtherHost, ETH_P_802_2),
        ] {
            let mut skb = SkbCache::default().alloc(64, 60);
            skb.put(ETH_HLEN)
                .copy_from_slice(&eth_header(dest, [9; 6], proto));
            skb.put(3).fill(5);
            eth_type_trans(&mut skb, &dev);
            assert_eq!((skb.pkt_type, skb.protocol), (pkt_type, protocol));
            assert_eq!(skb.data(), [5; 3]);
        }
    }
}
