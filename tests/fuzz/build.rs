//! Leads what the compiler tells libFuzzer of compares through `compares.rs`, in the programs that have it.

const PROGRAMS: [&str; 8] = [
    "ring_split",
    "ring_packed",
    "nic",
    "control_queue",
    "wire",
    "guest_stack",
    "guest_driver",
    "messages",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for program in PROGRAMS {
        for kind in ["cmp", "const_cmp"] {
            for octets in [1, 2, 4, 8] {
                let theirs = format!("__sanitizer_cov_trace_{kind}{octets}");
                let alias = format!("__wrap_{theirs}=__sanitizer_nic_{kind}{octets}");
                println!("cargo::rustc-link-arg-bin={program}=-Wl,--wrap={theirs}");
                println!("cargo::rustc-link-arg-bin={program}=-Wl,--defsym={alias}");
            }
        }
    }
}
