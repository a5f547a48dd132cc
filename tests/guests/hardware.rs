//! What Linux shows of the hardware while it changes: carrier, speed and duplex mode of a PHY that negotiates, and what faults on the
//! line and at the queues do to its traffic and to the counts of `ethtool -S`.

use serde_json::Value;

use super::support::{Nic, Shell, boot};

/// Frames of a look at what a fault does.
const PINGS: u64 = 200;

struct Lab {
    guest: Shell,
    nic: Nic,
}

fn count(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("no count: {value}"))
}

impl Lab {
    fn new(script: &str, options: &[&str]) -> Self {
        let nic = Nic::new(&["--speed", "1G", "--autoneg", "on"]);
        let mut guest = boot(script, &[&nic], options);
        guest.args(["--timeout", "600"]);
        let guest = Shell::start(guest, &nic.share());
        Lab { guest, nic }
    }

    /// Waits until Linux shows that carrier, and if there is one, that speed in Mb/s and that duplex mode.
    fn shows(&mut self, what: &str, link: Option<(&str, &str)>) {
        let carrier = u8::from(link.is_some());
        let (speed, duplex) = link.unwrap_or_default();
        self.guest.run(&format!(
            "cd /sys/class/net/eth0
            shows() {{
                [ \"$(cat carrier)\" = {carrier} ] || return 1
                [ {carrier} = 0 ] || [ \"$(cat speed) $(cat duplex)\" = '{speed} {duplex}' ]
            }}
            i=0; until shows; do
                i=$((i + 1)); sleep 0.05
                [ $i -lt 600 ] || {{ echo {what}; cat carrier speed duplex; exit 1; }}
            done"
        ));
        if link.is_none() {
            return;
        }
        let shown = self.guest.run("ethtool eth0");
        let duplex = duplex[..1].to_uppercase() + &duplex[1..];
        for line in [
            format!("Speed: {speed}Mb/s"),
            format!("Duplex: {duplex}"),
            "Link detected: yes".into(),
        ] {
            assert!(shown.contains(&line), "{what}: {line}\n{shown}");
        }
    }

    /// Linux follows what the PHY agrees on with whoever is at the other end.
    fn negotiates(&mut self) {
        self.shows("two alike", Some(("1000", "full")));
        let partner = |lab: &Self, spec: &str| lab.nic.change(&["link", "--partner", spec]);
        partner(self, "10full,100full");
        self.shows("a slower partner", Some(("100", "full")));
        partner(self, "100full,silent");
        self.shows("a partner that was forced", Some(("100", "half")));
        partner(self, "same");
        self.shows("two alike again", Some(("1000", "full")));
        self.nic.change(&["set", "speed=10M"]);
        self.shows("one mode only", Some(("10", "full")));
        self.nic.change(&["set", "speed=1G"]);
        self.shows("all modes", Some(("1000", "full")));
        self.nic.change(&["link", "down"]);
        self.shows("no cable", None);
        self.nic.change(&["link", "up"]);
        self.shows("the cable", Some(("1000", "full")));
        self.nic.change(&["mdio", "write", "bmcr", "power-down"]);
        self.shows("a PHY without power", None);
        self.nic
            .change(&["mdio", "write", "bmcr", "an-enable,an-restart"]);
        self.shows("a PHY with power", Some(("1000", "full")));
        self.guest
            .run("ping -q -c 20 -i 0.01 -W 5 10.77.0.1 | grep ' 0% packet loss'");
    }

    /// Pings under the fault `spec`; what came back, and what was sent twice, as ping has it.
    fn pings(&mut self, spec: &str) -> (u64, u64) {
        self.nic.change(&["fault", spec]);
        let said = self
            .guest
            .run(&format!("ping -q -c {PINGS} -i 0.005 -W 2 10.77.0.1 || :"));
        self.nic.change(&["fault", "none"]);
        let line = said
            .lines()
            .find(|line| line.contains(" transmitted"))
            .unwrap_or_else(|| panic!("no count: {said}"));
        let of = |what: &str| {
            let part = line.split(", ").find(|part| part.contains(what));
            part.map_or(0, |part| {
                let number = part.trim_start_matches('+').split(' ').next();
                number.and_then(|number| number.parse().ok()).expect(line)
            })
        };
        (of("received"), of("duplicates"))
    }

    /// Faults do to Linux's traffic what they say.
    fn suffers(&mut self) {
        assert_eq!(self.pings("none"), (PINGS, 0));
        assert_eq!(self.pings("rx:drop=100%").0, 0);
        let (received, duplicates) = self.pings("rx:duplicate=100%");
        assert_eq!(received, PINGS);
        assert!(duplicates >= PINGS - 1, "{duplicates}");
        // Half of the answers; six standard deviations are 42.
        let (received, _) = self.pings("rx:drop=50%,seed=4");
        assert!(received.abs_diff(PINGS / 2) <= 42, "{received}");
        // Each frame has a bit that is wrong, and the MAC sees it.
        let before = self.nic.stats();
        assert_eq!(self.pings("rx:ber=1%").0, 0);
        let after = self.nic.stats();
        let errors = |stats: &Value| count(&stats["port"]["drops"]["rx_fcs_errors"]);
        assert!(
            errors(&after) - errors(&before) >= PINGS,
            "{before:#} {after:#}"
        );
        // Late is not lost.
        assert_eq!(
            self.pings("delay=2ms+-1ms,slow-used=1ms,irq-spurious=1000"),
            (PINGS, 0)
        );
        assert_eq!(self.pings("rx:reorder=20%/3").0, PINGS);
        let resumed = self.pings("none");
        assert_eq!(resumed, (PINGS, 0));
    }

    /// `ethtool -S` shows what the NIC has counted through all of that.
    fn counts_alike(&mut self) {
        self.nic.change(&["link", "down"]);
        self.shows("the end", None);
        let shown = self.guest.run("sleep 0.3; ethtool -S eth0");
        let stats = self.nic.stats();
        for (name, queue, ours) in [
            ("rx_hw_packets", "rx0", "packets"),
            ("rx_hw_bytes", "rx0", "bytes"),
            ("rx_hw_interrupts", "rx0", "interrupts_sent"),
            ("tx_hw_packets", "tx0", "packets"),
        ] {
            let line = shown
                .lines()
                .filter_map(|line| line.trim().split_once(": "))
                .find(|(found, _)| *found == name);
            let (_, shown) = line.unwrap_or_else(|| panic!("no {name}: {shown}"));
            let ours = count(&stats["queues"][queue][ours]);
            assert_eq!(shown, ours.to_string(), "{name}: {stats:#}");
        }
    }

    fn walk(mut self) {
        self.negotiates();
        self.suffers();
        self.counts_alike();
        self.guest.end();
    }
}

#[test]
fn user_mode_linux_shows_what_changes() {
    Lab::new("guest-uml", &[]).walk();
}

#[test]
fn linux_on_the_bare_device_of_qemu_shows_what_changes() {
    Lab::new("guest-qemu", &["--device", "test-device"]).walk();
}
