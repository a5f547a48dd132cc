//! `/proc/net/dev` and `/proc/net/softnet_stat` (Linux: `net/core/net-procfs.c`).

use std::fmt;

use super::super::netdevice::NetDeviceOps;
use super::super::stats::TxDrop;
use super::super::{Kernel, Machine, RtnlLinkStats64};
use crate::transport::Transport;

impl<T: Transport, M: Machine> Kernel<T, M> {
    pub(super) fn dev_seq_show(&self, out: &mut impl fmt::Write) -> fmt::Result {
        out.write_str(
            "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|\
             bytes    packets errs drop fifo colls carrier compressed\n",
        )?;
        for device in self.net_devices() {
            let stats = self.dev_get_stats(device.ifindex()).unwrap_or_default();
            let tx_fifo_errors = match device.netdev_ops {
                NetDeviceOps::Virtnet => self.counters.tx_drops[TxDrop::TxFifoErrors as usize],
                _ => 0,
            };
            dev_seq_printf_stats(out, device.name(), &stats, tx_fifo_errors)?;
        }
        Ok(())
    }

    pub(super) fn softnet_seq_show(&self, out: &mut impl fmt::Write) -> fmt::Result {
        for (cpu, sd) in self.softnet.iter().enumerate() {
            let stats = &sd.stats;
            let (input, process) = (sd.input_pkt_queue.len(), sd.process_queue.len());
            let columns = [
                stats.processed,
                stats.dropped,
                stats.time_squeeze,
                0,
                0,
                0,
                0,
                0,
                0,
                stats.received_rps,
                0,
                (input + process) as u64,
                cpu as u64,
                input as u64,
                process as u64,
            ];
            for (at, column) in columns.iter().enumerate() {
                let gap = if at == 0 { "" } else { " " };
                // Linux's counters have 32 bits.
                write!(out, "{gap}{:08x}", *column as u32)?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

fn dev_seq_printf_stats(
    out: &mut impl fmt::Write,
    name: &str,
    stats: &RtnlLinkStats64,
    tx_fifo_errors: u64,
) -> fmt::Result {
    let frame = stats.rx_length_errors + stats.rx_frame_errors;
    write!(
        out,
        "{name:>6}: {:7} {:7} {:4} {:4} {:4} {frame:5} {:10} {:9} ",
        stats.rx_bytes, stats.rx_packets, 0, stats.rx_dropped, 0, 0, 0
    )?;
    writeln!(
        out,
        "{:8} {:7} {:4} {:4} {tx_fifo_errors:4} {:5} {:7} {:10}",
        stats.tx_bytes, stats.tx_packets, 0, stats.tx_dropped, 0, 0, 0
    )
}
