//! What lies between the driver and a device: features, config space, queues, kicks, interrupts.
//!
//! [`Transport`] knows of no socket and no file descriptor, so that a device in this process can
//! stand behind it as well as one at the other end of a vhost-user connection. The driver works
//! through it alone. Calls come in this order: features, queues, [`Transport::driver_ok`], then
//! kicks and interrupts until [`Transport::stop_queue`] or [`Transport::reset`].
//!
//! | Implementation | What it is |
//! |---|---|
//! | [`vhost_user::VhostUser`] | the `vhost` crate's `Frontend` over a socket |
//! | [`front_end::FrontEnd`] | our own messages over a socket, in the order of QEMU, cloud-hypervisor, crosvm, DPDK, UML |
//! | yours | e.g. a device in this process under a virtual clock |

pub mod backend_req;
pub mod front_end;
pub mod message;
mod order;
pub mod persona;
mod steps;
pub mod vhost_user;
pub mod vmm;
mod vring;

use std::sync::Arc;
use std::time::Duration;

use crate::memory::GuestMemory;
use crate::ring::RingLayout;

/// Where a queue is and where it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Queue number.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Guest addresses of the ring.
    pub layout: RingLayout,
    /// First available index the device is to look at: 0 for a fresh ring. Of a packed ring (the features say
    /// which it is) the next available descriptor in the lower half and the next used one in the upper, each with
    /// its wrap counter in the highest bit: 0x8000_8000.
    pub next: u32,
}

/// Why a transport could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The device said no, or answered what makes no sense.
    #[error("device refused {what}: {why}")]
    Refused {
        /// What was asked.
        what: String,
        /// What came back.
        why: String,
    },
    /// The connection is gone, or no answer came in time.
    #[error("device gone during {what}: {why}")]
    Gone {
        /// What was asked.
        what: String,
        /// What the system said.
        why: String,
    },
    /// This transport has no such thing.
    #[error("not possible here: {0}")]
    Unsupported(&'static str),
    /// The system refused something of our own.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl TransportError {
    /// The device refused `what`.
    #[allow(clippy::needless_pass_by_value)] // errors are made where they are reported
    pub fn refused(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Refused {
            what: what.into(),
            why: why.to_string(),
        }
    }

    /// The device is gone, noticed during `what`.
    #[allow(clippy::needless_pass_by_value)] // as above
    pub fn gone(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Gone {
            what: what.into(),
            why: why.to_string(),
        }
    }
}

/// The device as a driver sees it.
///
/// Control goes through `&mut self`; kicks and interrupts through `&self`, so that several threads
/// can share a transport that is `Sync`, each with queues of its own. An in-process device keeps
/// what these four methods change in cells or atomics.
pub trait Transport {
    /// The memory that rings and buffers are in.
    fn memory(&self) -> &Arc<GuestMemory>;

    /// Feature bits the driver may choose from (virtio 1.3, 2.2).
    ///
    /// # Errors
    /// When the device does not answer.
    fn device_features(&mut self) -> Result<u64, TransportError>;

    /// Tells the device what the driver chose.
    ///
    /// # Errors
    /// When the device refuses the set.
    fn set_driver_features(&mut self, features: u64) -> Result<(), TransportError>;

    /// Virtqueues that the device has, if it says so. (Some backends answer with pairs.)
    fn max_queues(&self) -> Option<u16> {
        None
    }

    /// Reads config space.
    ///
    /// # Errors
    /// When there is none, or the range is not in it.
    fn read_config(&mut self, offset: u32, buf: &mut [u8]) -> Result<(), TransportError>;

    /// Writes config space.
    ///
    /// # Errors
    /// When there is none, or the device refuses.
    fn write_config(&mut self, offset: u32, buf: &[u8]) -> Result<(), TransportError> {
        let _ = (offset, buf);
        Err(TransportError::Unsupported("writing config space"))
    }

    /// Changes whenever config space may have: a read between two equal values is not torn.
    fn config_generation(&mut self) -> u32 {
        0
    }

    /// Describes a queue. It runs from [`Self::driver_ok`] on, or at once if that was before.
    ///
    /// # Errors
    /// When the device refuses.
    fn setup_queue(&mut self, queue: &QueueConfig) -> Result<(), TransportError>;

    /// The driver is ready: all queues set up so far start, and are enabled.
    ///
    /// # Errors
    /// When the device refuses.
    fn driver_ok(&mut self) -> Result<(), TransportError>;

    /// Enables or disables a running queue.
    ///
    /// # Errors
    /// When the device refuses.
    fn enable_queue(&mut self, index: u16, enable: bool) -> Result<(), TransportError>;

    /// Stops a queue for good; afterwards the device touches neither ring nor buffers. What it
    /// returns is the next available index the device would have looked at, as in
    /// [`QueueConfig::next`].
    ///
    /// # Errors
    /// When the device does not answer.
    fn stop_queue(&mut self, index: u16) -> Result<u32, TransportError>;

    /// Resets the device: all queues stop and have to be set up again.
    ///
    /// # Errors
    /// When the device does not answer.
    fn reset(&mut self) -> Result<(), TransportError>;

    /// Tells the device that queue `index` has new buffers.
    fn kick(&self, index: u16);

    /// Interrupts of queue `index` since the last call. Never blocks.
    fn take_interrupt(&self, index: u16) -> u64;

    /// Waits until queue `index` has an interrupt to take, at most `timeout`; whether it has.
    fn wait_interrupt(&self, index: u16, timeout: Duration) -> bool;

    /// Waits until anything at all is to be taken, at most `timeout`; whether it is. What is not
    /// taken stays: the next wait ends at once.
    fn wait(&self, timeout: Duration) -> bool;

    /// Whether the device has gone for good: nothing will come from it any more. Never blocks.
    fn is_gone(&self) -> bool {
        false
    }

    /// Whether the device announced a change of config space since the last call. Never blocks.
    fn take_config_change(&mut self) -> bool {
        false
    }

    /// Errors that the device signalled for queue `index` since the last call. Never blocks.
    fn take_queue_error(&self, index: u16) -> u64 {
        let _ = index;
        0
    }

    /// A control command, for front-ends that answer it themselves (QEMU, cloud-hypervisor, DPDK
    /// own the control queue of a vhost-user device). `None`: it goes to the device's ring.
    fn vmm_control(&mut self, class: u8, command: u8, data: &[u8]) -> Option<u8> {
        let _ = (class, command, data);
        None
    }
}
