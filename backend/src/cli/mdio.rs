//! `vhost-user-nic mdio`: the registers of a running NIC's PHY.

use clap::Subcommand;
use nic_backend::control::{self, Request};
use nic_backend::mdio::{self, Named, Shown};
use serde_json::Value;

use crate::cli::usage;
use crate::{Target, print};

/// What to do with registers.
#[derive(Subcommand)]
pub enum Mdio {
    /// Read a register, which clears bits that wait for that
    Read {
        #[command(flatten)]
        register: RegisterArgs,
        #[command(flatten)]
        target: Target,
    },
    /// Write a register: mdio write bmcr an-enable,an-restart
    Write {
        #[command(flatten)]
        register: RegisterArgs,
        /// A number (4608, 0x1200), or names of single bits with commas between: those are set, all others cleared
        value: String,
        #[command(flatten)]
        target: Target,
    },
    /// Show all registers, with the names of their fields; clears nothing
    Dump {
        #[command(flatten)]
        target: Target,
    },
}

/// Which register.
#[derive(clap::Args)]
pub struct RegisterArgs {
    /// The device of Clause 45: 1 PMA/PMD, 3 PCS, 7 auto-negotiation; without it, the register is one of Clause 22
    #[arg(long, value_name = "N")]
    mmd: Option<u8>,
    /// Its number, MMD.NUMBER, or its name (bmcr, bmsr, anlpar, pma-ctrl1, ...: mdio dump shows them)
    #[arg(value_name = "REG")]
    register: Named,
}

/// What the user meant, or the end of the program with what is wrong with it.
fn usable<T>(meant: Result<T, mdio::BadText>) -> T {
    meant.unwrap_or_else(|error| usage::refuse(error))
}

/// Does it.
pub fn run(command: &Mdio) -> anyhow::Result<()> {
    let (target, request) = match command {
        Mdio::Read { register, target } => {
            let address = usable(register.register.at(register.mmd));
            let (mmd, reg) = (address.mmd, address.reg);
            (target, Request::MdioRead { mmd, reg })
        }
        Mdio::Write {
            register,
            value,
            target,
        } => {
            let address = usable(register.register.at(register.mmd));
            let value = usable(mdio::value(address, value));
            let (mmd, reg) = (address.mmd, address.reg);
            (target, Request::MdioWrite { mmd, reg, value })
        }
        Mdio::Dump { target } => (target, Request::MdioDump),
    };
    let answer = control::ask(&target.control, request)?;
    if target.json {
        return print(&serde_json::to_string_pretty(&answer)?);
    }
    let shown: Vec<Shown> = match answer {
        Value::Array(_) => serde_json::from_value(answer)?,
        one => vec![serde_json::from_value(one)?],
    };
    let lines: Vec<_> = shown.iter().map(Shown::line).collect();
    print(&lines.join("\n"))
}
