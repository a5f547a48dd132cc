//! Streams: `nic-guest talk tcp-send` and `tcp-recv`.

use std::net::{Ipv4Addr, Shutdown, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nic_guest::net::{Errno, Fd, Protocol, SockType};

use super::{Host, say};

/// The octet at a place of a stream: both ends know what comes.
fn octet(at: u64) -> u8 {
    (at * 7 + at / 251) as u8
}

impl Host {
    /// Sends `octets` to a service and waits until it has ended the connection; what it sends back has to be what it got.
    pub(super) fn tcp_send(&mut self, target: SocketAddrV4, octets: u64) -> anyhow::Result<()> {
        let fd = self.kernel.socket(SockType::Stream, Protocol::Tcp)?;
        let begin = self.clock.now();
        match self.kernel.connect(fd, target) {
            Err(Errno::EINPROGRESS) => {}
            other => other.with_context(|| format!("connecting to {target}"))?,
        }
        self.wait_for(target, |host| {
            Ok(host.kernel.poll_writable(fd)?.then_some(()))
        })?;
        let (mut sent, mut back, mut buffer) = (0, 0, vec![0; 65_536]);
        loop {
            let step = self.wait_for(target, |host| {
                let more = host.push(fd, &mut sent, octets)?;
                match host.kernel.recvfrom(fd, &mut buffer) {
                    Ok(received) => Ok(Some(Some(received.len))),
                    Err(Errno::EAGAIN) => Ok(more.then_some(None)),
                    Err(error) => Err(error).with_context(|| format!("the connection to {target}")),
                }
            })?;
            match step {
                None => {}
                Some(0) => break,
                Some(len) => {
                    check(&buffer[..len], back)?;
                    back += len as u64;
                }
            }
        }
        ensure!(
            sent == octets,
            "{target} ended the connection after {sent} of {octets} octets"
        );
        self.kernel.close(fd)?;
        self.linger()?;
        let seconds = self.clock.now().since(begin).as_secs_f64();
        let again = self.kernel.stats().snmp.tcp_retrans_segs;
        say(&format!(
            "{sent} octets sent to {target}, {back} came back, {again} segments sent again, in {seconds:.3} s"
        ))
    }

    /// Sends what there is room for, and says so when that was all; whether anything went.
    fn push(&mut self, fd: Fd, sent: &mut u64, octets: u64) -> anyhow::Result<bool> {
        let before = *sent;
        while *sent < octets {
            let end = octets.min(*sent + 65_536);
            let piece: Vec<u8> = (*sent..end).map(octet).collect();
            match self.kernel.sendto(fd, &piece, None) {
                Ok(len) => *sent += len as u64,
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error).context("sending"),
            }
        }
        if *sent == octets && (before < octets || octets == 0) {
            // The peer may have ended the connection already.
            let _ = self.kernel.shutdown(fd, Shutdown::Write);
        }
        Ok(*sent > before)
    }

    /// Is a service at `port` that takes what [`Self::tcp_send`] sends, until so many connections have ended.
    pub(super) fn tcp_recv(&mut self, port: u16, count: u64) -> anyhow::Result<()> {
        let listener = self.kernel.socket(SockType::Stream, Protocol::Tcp)?;
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        self.kernel.bind(listener, any)?;
        self.kernel.listen(listener, 16)?;
        let addr = self.kernel.config().addr;
        say(&format!("service at {addr}:{port}"))?;
        let mut buffer = vec![0; 65_536];
        for _ in 0..count {
            let (fd, from) = loop {
                match self.kernel.accept(listener) {
                    Ok(accepted) => break accepted,
                    Err(Errno::EAGAIN) => self.doze()?,
                    Err(error) => return Err(error).context("accept"),
                }
            };
            let mut got = 0;
            loop {
                let len =
                    self.wait_for(from, |host| match host.kernel.recvfrom(fd, &mut buffer) {
                        Ok(received) => Ok(Some(received.len)),
                        Err(Errno::EAGAIN) => Ok(None),
                        Err(error) => {
                            Err(error).with_context(|| format!("the connection from {from}"))
                        }
                    })?;
                if len == 0 {
                    break;
                }
                check(&buffer[..len], got)?;
                got += len as u64;
            }
            self.kernel.close(fd)?;
            say(&format!("{got} octets received from {from}"))?;
        }
        self.linger()
    }

    /// What the last acknowledgement needs to go out: it may be put off.
    fn linger(&mut self) -> anyhow::Result<()> {
        let end = self.after(Duration::from_millis(20));
        while self.clock.now().0 < end {
            self.doze()?;
        }
        Ok(())
    }

    /// Lets the kernel work until `ready` has something; gives up when nothing has happened for as long as an answer may
    /// take.
    fn wait_for<R>(
        &mut self,
        peer: SocketAddrV4,
        mut ready: impl FnMut(&mut Self) -> anyhow::Result<Option<R>>,
    ) -> anyhow::Result<R> {
        let patience = self.after(self.timeout);
        loop {
            while self.kernel.step()? {}
            if let Some(result) = ready(self)? {
                return Ok(result);
            }
            if self.clock.now().0 >= patience {
                bail!("{peer} says nothing: {}", self.diagnosis());
            }
            self.doze()?;
        }
    }

    /// Sleeps until something may have happened, and lets the kernel see to it.
    fn doze(&mut self) -> anyhow::Result<()> {
        let now = self.clock.now().0;
        let due = self
            .kernel
            .next_timer()
            .map_or(u64::MAX, |due| due.saturating_sub(now));
        let pause = Duration::from_nanos(due.min(10_000_000));
        self.kernel.wait(pause)?;
        while self.kernel.step()? {}
        Ok(())
    }
}

/// Whether octets of a stream, from a place on, are those that are sent.
fn check(octets: &[u8], from: u64) -> anyhow::Result<()> {
    let good = (from..).zip(octets).all(|(at, &got)| got == octet(at));
    ensure!(good, "what came is not what was sent, from octet {from} on");
    Ok(())
}
