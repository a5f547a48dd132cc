//! The partner's services: echo (RFC 862, port 7) and discard (RFC 863, port 9), over UDP and over TCP.
//!
//! Octets and datagrams enter through the sockets; echo gives them back, discard counts them. TCP echo reads only
//! what it can send, so that a peer that does not read its echo is held up by its own window; when the
//! peer closes its half, what is left is echoed and ours closed too. A datagram that finds no room in
//! the socket that is to send it is dropped and counted.

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Duration;

const ECHO: u16 = 7;
const DISCARD: u16 = 9;

/// TCP connections that a service has at most at once.
pub const CONNECTIONS: usize = 8;
/// Octets that a TCP connection holds of what it received. No more than a window without scaling can say: a
/// scaled window is rounded down, so that its right edge moves back as it fills (RFC 9293, 3.8.6, advises against
/// that), and smoltcp then refuses the peer's window updates along with the data beyond the edge. Where both
/// directions are full, as an echo's are, the connection stands still for good.
const TCP_RECEIVE: usize = 65_535;
/// Octets that a TCP connection holds of what it sends.
const TCP_SEND: usize = 512 * 1024;
/// Octets and datagrams of a UDP service's buffers, each way.
const UDP_BUFFER: usize = 256 * 1024;
const UDP_DATAGRAMS: usize = 64;
/// The largest piece that is moved at once; a datagram is no longer.
const PIECE: usize = 65_536;
/// A peer is asked for a sign of life when it was silent so long, and given up when it has not answered for so
/// long: a guest that was ended leaves its connections behind.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const GIVE_UP: Duration = Duration::from_secs(30);

/// The sockets of all services, and what they have done.
pub struct Services {
    udp_echo: SocketHandle,
    udp_discard: SocketHandle,
    tcp_echo: Vec<SocketHandle>,
    tcp_discard: Vec<SocketHandle>,
    piece: Box<[u8]>,
    /// Datagrams echoed, and those there was no room for.
    pub udp_echoed: u64,
    pub udp_dropped: u64,
    /// Octets over TCP.
    pub tcp_echoed: u64,
    pub tcp_discarded: u64,
    /// Datagrams discarded.
    pub udp_discarded: u64,
}

impl Services {
    /// Puts the services' sockets into `sockets`.
    pub fn start(sockets: &mut SocketSet<'static>) -> Self {
        let mut tcp = || -> Vec<SocketHandle> {
            let sockets = (0..CONNECTIONS).map(|_| sockets.add(tcp_socket()));
            sockets.collect()
        };
        Services {
            tcp_echo: tcp(),
            tcp_discard: tcp(),
            udp_echo: sockets.add(udp_socket(ECHO)),
            udp_discard: sockets.add(udp_socket(DISCARD)),
            piece: vec![0; PIECE].into_boxed_slice(),
            udp_echoed: 0,
            udp_dropped: 0,
            tcp_echoed: 0,
            tcp_discarded: 0,
            udp_discarded: 0,
        }
    }

    /// Does what has become possible.
    pub fn serve(&mut self, sockets: &mut SocketSet<'static>) {
        self.echo_datagrams(sockets.get_mut(self.udp_echo));
        let discard: &mut udp::Socket<'_> = sockets.get_mut(self.udp_discard);
        while discard.recv().is_ok() {
            self.udp_discarded += 1;
        }
        for &handle in &self.tcp_echo {
            let socket: &mut tcp::Socket<'_> = sockets.get_mut(handle);
            listen(socket, ECHO);
            self.tcp_echoed += echo(socket, &mut self.piece);
            close_if_done(socket);
        }
        for &handle in &self.tcp_discard {
            let socket: &mut tcp::Socket<'_> = sockets.get_mut(handle);
            listen(socket, DISCARD);
            while socket.can_recv() {
                let Ok(octets) = socket.recv(|octets| (octets.len(), octets.len())) else {
                    break;
                };
                self.tcp_discarded += octets as u64;
            }
            close_if_done(socket);
        }
    }

    fn echo_datagrams(&mut self, socket: &mut udp::Socket<'_>) {
        while let Ok((len, meta)) = socket.recv_slice(&mut self.piece) {
            // `meta` has the address it was sent to, which becomes the one it comes from.
            match socket.send_slice(&self.piece[..len], meta) {
                Ok(()) => self.udp_echoed += 1,
                Err(_) => self.udp_dropped += 1,
            }
        }
    }
}

fn tcp_socket() -> tcp::Socket<'static> {
    let buffer = |octets| tcp::SocketBuffer::new(vec![0; octets]);
    let mut socket = tcp::Socket::new(buffer(TCP_RECEIVE), buffer(TCP_SEND));
    // What is echoed answers something: it does not wait for more.
    socket.set_nagle_enabled(false);
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.set_timeout(Some(GIVE_UP));
    socket
}

fn udp_socket(port: u16) -> udp::Socket<'static> {
    let buffer = || {
        udp::PacketBuffer::new(
            vec![udp::PacketMetadata::EMPTY; UDP_DATAGRAMS],
            vec![0; UDP_BUFFER],
        )
    };
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket
        .bind(port)
        .expect("a new socket may be bound to a port that is not zero");
    socket
}

/// Waits for the next connection if the last one is over.
fn listen(socket: &mut tcp::Socket<'_>, port: u16) {
    // A socket that has yet to send its reset has a peer.
    if !socket.is_open()
        && (socket.state() == tcp::State::TimeWait || socket.remote_endpoint().is_none())
    {
        socket
            .listen(port)
            .expect("a closed socket may listen on a port that is not zero");
    }
}

fn echo(socket: &mut tcp::Socket<'_>, piece: &mut [u8]) -> u64 {
    let mut echoed = 0;
    while socket.may_send() {
        let room = socket.send_capacity() - socket.send_queue();
        let len = socket.recv_queue().min(room).min(piece.len());
        let Ok(len @ 1..) = socket.recv_slice(&mut piece[..len]) else {
            break;
        };
        match socket.send_slice(&piece[..len]) {
            Ok(sent) => echoed += sent as u64,
            Err(_) => break,
        }
    }
    echoed
}

/// Closes our half once the peer has closed its own and everything it sent is dealt with.
fn close_if_done(socket: &mut tcp::Socket<'_>) {
    if socket.state() == tcp::State::CloseWait && socket.recv_queue() == 0 {
        socket.close();
    }
}
