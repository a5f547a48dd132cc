//! The groups of counters that a device may have, in the order of their fields.

/// Of the control queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CvqStats {
    /// Commands.
    pub command_num: u64,
    /// Those that were obeyed.
    pub ok_num: u64,
}

impl From<[u64; 2]> for CvqStats {
    fn from([command_num, ok_num]: [u64; 2]) -> Self {
        Self {
            command_num,
            ok_num,
        }
    }
}

/// Of a receive queue: what it carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RxBasicStats {
    /// Kicks by the driver.
    pub notifications: u64,
    /// Packets given to the driver.
    pub packets: u64,
    /// Bytes of them, without the virtio header.
    pub bytes: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Packets dropped, for whatever reason.
    pub drops: u64,
    /// Those dropped because no buffer was there.
    pub drop_overruns: u64,
}

impl From<[u64; 6]> for RxBasicStats {
    fn from(words: [u64; 6]) -> Self {
        let [
            notifications,
            packets,
            bytes,
            interrupts,
            drops,
            drop_overruns,
        ] = words;
        Self {
            notifications,
            packets,
            bytes,
            interrupts,
            drops,
            drop_overruns,
        }
    }
}

/// Of a transmit queue: what it carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxBasicStats {
    /// Kicks by the driver.
    pub notifications: u64,
    /// Packets sent.
    pub packets: u64,
    /// Bytes of them, without the virtio header.
    pub bytes: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Packets dropped, for whatever reason.
    pub drops: u64,
    /// Those dropped because their descriptors or headers made no sense.
    pub drop_malformed: u64,
}

impl From<[u64; 6]> for TxBasicStats {
    fn from(words: [u64; 6]) -> Self {
        let [
            notifications,
            packets,
            bytes,
            interrupts,
            drops,
            drop_malformed,
        ] = words;
        Self {
            notifications,
            packets,
            bytes,
            interrupts,
            drops,
            drop_malformed,
        }
    }
}

/// Of a receive queue: packets by their checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RxCsumStats {
    /// With DATA_VALID.
    pub valid: u64,
    /// With NEEDS_CSUM.
    pub needs_csum: u64,
    /// Not looked at.
    pub none: u64,
    /// Wrong.
    pub bad: u64,
}

impl From<[u64; 4]> for RxCsumStats {
    fn from([valid, needs_csum, none, bad]: [u64; 4]) -> Self {
        Self {
            valid,
            needs_csum,
            none,
            bad,
        }
    }
}

/// Of a transmit queue: packets by their checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxCsumStats {
    /// None of the device's business.
    pub none: u64,
    /// With NEEDS_CSUM.
    pub needs_csum: u64,
}

impl From<[u64; 2]> for TxCsumStats {
    fn from([none, needs_csum]: [u64; 2]) -> Self {
        Self { none, needs_csum }
    }
}

/// Of a receive queue: packets put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RxGsoStats {
    /// Packets that stand for several.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Packets that went into them.
    pub packets_coalesced: u64,
    /// Bytes of those.
    pub bytes_coalesced: u64,
}

impl From<[u64; 4]> for RxGsoStats {
    fn from([packets, bytes, packets_coalesced, bytes_coalesced]: [u64; 4]) -> Self {
        Self {
            packets,
            bytes,
            packets_coalesced,
            bytes_coalesced,
        }
    }
}

/// Of a transmit queue: packets cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxGsoStats {
    /// Packets that stand for several.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Segments made of them.
    pub segments: u64,
    /// Bytes of those.
    pub segments_bytes: u64,
    /// Packets that stand for several and were not cut up.
    pub packets_noseg: u64,
    /// Bytes of those.
    pub bytes_noseg: u64,
}

impl From<[u64; 6]> for TxGsoStats {
    fn from(words: [u64; 6]) -> Self {
        let [
            packets,
            bytes,
            segments,
            segments_bytes,
            packets_noseg,
            bytes_noseg,
        ] = words;
        Self {
            packets,
            bytes,
            segments,
            segments_bytes,
            packets_noseg,
            bytes_noseg,
        }
    }
}

/// Of a queue of either kind: what a rate limit held up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpeedStats {
    /// Packets beyond their allowance.
    pub packets_allowance_exceeded: u64,
    /// Packets beyond the allowance of bytes.
    pub bytes_allowance_exceeded: u64,
}

impl From<[u64; 2]> for SpeedStats {
    fn from([packets, bytes]: [u64; 2]) -> Self {
        Self {
            packets_allowance_exceeded: packets,
            bytes_allowance_exceeded: bytes,
        }
    }
}

/// What the device counts of a virtqueue: the groups that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceStats {
    /// Virtqueue number.
    pub vq: u16,
    /// Of the control queue.
    pub cvq: Option<CvqStats>,
    /// Of a receive queue.
    pub rx_basic: Option<RxBasicStats>,
    /// Of a receive queue.
    pub rx_csum: Option<RxCsumStats>,
    /// Of a receive queue.
    pub rx_gso: Option<RxGsoStats>,
    /// Of a receive queue.
    pub rx_speed: Option<SpeedStats>,
    /// Of a transmit queue.
    pub tx_basic: Option<TxBasicStats>,
    /// Of a transmit queue.
    pub tx_csum: Option<TxCsumStats>,
    /// Of a transmit queue.
    pub tx_gso: Option<TxGsoStats>,
    /// Of a transmit queue.
    pub tx_speed: Option<SpeedStats>,
}

impl DeviceStats {
    /// Takes a group in; `None` when it has not the length of its type, or the type does not exist.
    pub(super) fn fill(&mut self, kind: u8, body: &[u8]) -> Option<()> {
        match kind {
            32 => self.cvq = Some(words(body)?.into()),
            0 => self.rx_basic = Some(words(body)?.into()),
            1 => self.rx_csum = Some(words(body)?.into()),
            2 => self.rx_gso = Some(words(body)?.into()),
            3 => self.rx_speed = Some(words(body)?.into()),
            16 => self.tx_basic = Some(words(body)?.into()),
            17 => self.tx_csum = Some(words(body)?.into()),
            18 => self.tx_gso = Some(words(body)?.into()),
            19 => self.tx_speed = Some(words(body)?.into()),
            _ => return None,
        }
        Some(())
    }
}

/// Exactly `N` little-endian words.
fn words<const N: usize>(body: &[u8]) -> Option<[u64; N]> {
    let (chunks, rest) = body.as_chunks::<8>();
    let chunks: &[[u8; 8]; N] = chunks.try_into().ok()?;
    rest.is_empty().then(|| chunks.map(u64::from_le_bytes))
}
