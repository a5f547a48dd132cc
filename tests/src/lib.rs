//! The NIC and the guest put together.
//!
//! [`in_process::InProcess`] joins the guest's driver to a card in this process, under a virtual clock: no socket,
//! no thread, no waiting, the same result every time. The integration tests in `it/` use it, and the same
//! guest over a real socket; `guests/` boots real kernels; `benches/` counts instructions. The program `nic-guest`
//! (`main.rs`) is for users: [`measure`] has the guest count interrupts, [`talk`] has it talk to any
//! vhost-user-net backend, [`trace`] shows a packet's way, [`check`] has it attack one.

pub mod baseline;
pub mod check;
pub mod in_process;
pub mod measure;
pub mod talk;
pub mod trace;
