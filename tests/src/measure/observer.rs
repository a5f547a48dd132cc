//! The reader behind the socket: it counts what arrives and how long that took.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Context;
use histogram::Histogram;
use nic_guest::net::{Errno, Fd, Kernel, Machine, Protocol, SockType};
use nic_guest::transport::Transport;

use super::{PORT, RCVBUF};

/// The longest datagram.
const LONGEST: usize = 9216;
/// Latencies are told apart to one in 2^10, up to 2^44 ns, almost five hours; what takes longer counts as that.
const PRECISION: u8 = 10;
const RANGE: u8 = 44;
/// Sequence number and instant, as the generator writes them.
const NUMBERS: usize = 16;

/// A process that reads the generator's datagrams and has nothing else to do.
pub(super) struct Observer {
    fd: Fd,
    buffer: Box<[u8]>,
    latency: Histogram,
    /// Datagrams read.
    pub(super) delivered: u64,
    /// The sequence number that is next.
    next: u64,
}

impl Observer {
    /// Opens a socket where the generator sends to.
    pub(super) fn new<T: Transport, M: Machine>(kernel: &mut Kernel<T, M>) -> anyhow::Result<Self> {
        let fd = kernel.socket(SockType::Dgram, Protocol::Udp)?;
        kernel.bind(fd, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT))?;
        kernel.set_rcvbuf(fd, RCVBUF)?;
        Ok(Observer {
            fd,
            buffer: vec![0; LONGEST].into(),
            latency: Histogram::new(PRECISION, RANGE).context("no histogram")?,
            delivered: 0,
            next: 0,
        })
    }

    /// Reads all that there is.
    ///
    /// # Errors
    /// What came is not what the generator sent, in its order.
    #[inline]
    pub(super) fn read<T: Transport, M: Machine>(
        &mut self,
        kernel: &mut Kernel<T, M>,
    ) -> anyhow::Result<()> {
        loop {
            let received = match kernel.recvfrom(self.fd, &mut self.buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error).context("recvfrom"),
            };
            let numbers = self.buffer[..received.len]
                .first_chunk::<NUMBERS>()
                .context("a datagram that the generator did not send")?;
            let numbers = u128::from_be_bytes(*numbers);
            let (sequence, due) = ((numbers >> 64) as u64, numbers as u64);
            anyhow::ensure!(
                sequence >= self.next,
                "datagram {sequence} came when {} was next: lost order",
                self.next
            );
            self.next = sequence + 1;
            self.delivered += 1;
            let latency = received.queued.saturating_sub(due);
            // Nothing is out of range now.
            let _ = self.latency.increment(latency.min((1 << RANGE) - 1));
        }
    }

    /// Nanoseconds from the wire to the socket's queue that `percent` of the datagrams took at most.
    pub(super) fn latency(&self, percent: f64) -> u64 {
        let bucket = self.latency.quantile_bucket(percent / 100.0);
        bucket.ok().flatten().map_or(0, |bucket| bucket.end())
    }
}
