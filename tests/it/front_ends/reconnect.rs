//! The NIC goes and comes back: nothing that a driver had posted is lost.

use std::time::Duration;

use nic_guest::transport::persona::Persona;
use nic_guest::transport::{Transport, TransportError};
use nic_guest::virtio_net::{VirtnetInfo, features as f};

use super::{assert_passes, attach, attach_with, catch_up, drain, nic_for, stuff};
use crate::support::{NicProcess, wait_until};

/// Waits until the NIC has sent all that is in the ring, and takes what has come back, without posting buffers.
fn settle<T: Transport>(guest: &mut VirtnetInfo<T>) {
    wait_until("the transmit ring to be empty", || {
        guest.sq[0].free_old_xmit().expect("a sound ring");
        guest.rq[0].receive(64, |_| ()).expect("a sound ring");
        guest.sq[0].vq.outstanding() == 0
    });
}

/// Proves that every posted buffer is still good for one frame: sends until all of them are used.
fn use_up_all_buffers<T: Transport>(guest: &mut VirtnetInfo<T>) {
    settle(guest);
    let mut number = 0;
    wait_until("all receive buffers to be used", || {
        // As many as there are buffers; frames that a dying NIC had under way may have taken some.
        if guest.sq[0].vq.outstanding() == 0 && number < 4 * u32::from(guest.rq[0].vq.size()) {
            let left = u32::from(guest.rq[0].vq.outstanding());
            number += stuff(guest, number..number + left.min(32));
        }
        guest.sq[0].free_old_xmit().expect("a sound ring");
        guest.rq[0].receive(64, |_| ()).expect("a sound ring");
        guest.rq[0].vq.outstanding() == 0
    });
    settle(guest);
    // And all of them are posted again.
    let size = usize::from(guest.rq[0].vq.size());
    assert_eq!(guest.rq[0].try_fill_recv(), size);
    let (transport, rq, _) = guest.parts();
    rq[0].kick(transport);
}

#[test]
fn no_posted_buffer_is_lost_when_the_nic_comes_back() {
    for persona in Persona::ALL
        .into_iter()
        .filter(|persona| persona.reconnects())
    {
        let mut nic = nic_for(persona);
        let mut guest = attach(persona, &nic.socket(), 128);
        for round in 0..20 {
            assert_passes(&mut guest, 0..100 + round);
            // It goes in mid-traffic; more is sent while it is away.
            stuff(&mut guest, 0..40);
            nic.stop();
            assert!(stuff(&mut guest, 40..60) > 0, "{persona:?}");
            nic.restart();
            guest.transport.reattach().expect("the NIC is back");
            catch_up(&guest);
            use_up_all_buffers(&mut guest);
            drain(&mut guest, &nic);
        }
        assert_passes(&mut guest, 0..1000);
        nic.assert_balanced();
        assert_eq!(nic.status().refused_messages, 0, "{persona:?}");
    }
}

#[test]
fn no_posted_buffer_is_lost_when_the_process_is_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("nic.sock");
    for persona in [Persona::Qemu, Persona::CloudHypervisor, Persona::VirtioUser] {
        let mut nic = NicProcess::start(&socket);
        let mut guest = attach(persona, &socket, 256);
        for round in 0..8 {
            // At another point of the traffic each time.
            let until = 50 * (round + 1);
            let mut number = 0;
            while number < until {
                number += stuff(&mut guest, number..until);
                guest.poll(0, 64, |_| ()).expect("sound rings");
            }
            drop(nic);
            stuff(&mut guest, 0..20);
            nic = NicProcess::start(&socket);
            // The dead process's socket is there at first, and refuses until the new one takes its place.
            guest.transport.reattach().expect("the NIC is back");
            catch_up(&guest);
            use_up_all_buffers(&mut guest);
        }
        // What the NIC still has comes first; then all in order.
        wait_until("the line to be empty", || {
            guest.poll(0, 64, |_| ()).expect("sound rings") == 0
                && guest.wait(Duration::from_millis(50)) == 0
        });
        assert_passes(&mut guest, 0..500);
    }
}

#[test]
fn those_that_do_not_reconnect_find_a_new_nic_all_the_same() {
    // Nobody knows where a packed ring stood when the NIC went.
    let packed = [Persona::Qemu, Persona::VirtioUser].map(|persona| (persona, f::RING_PACKED));
    let split = [Persona::Crosvm, Persona::Uml].map(|persona| (persona, 0));
    for (persona, rings) in [split, packed].concat() {
        let mut nic = nic_for(persona);
        let mut guest = attach_with(persona, &nic.socket(), 256, rings);
        assert_passes(&mut guest, 0..100);
        nic.restart();
        assert!(matches!(
            guest.transport.reattach(),
            Err(TransportError::Unsupported(_))
        ));
        drop(guest);
        let mut guest = attach_with(persona, &nic.socket(), 256, rings);
        assert_passes(&mut guest, 0..100);
    }
}
