//! What libFuzzer is told of the numbers that are compared.
//!
//! It makes new inputs of such numbers. To be told of each costs a third of the time where an input is a script, whose octets are seldom
//! the numbers that are compared; so it is told in one execution of [`SELDOM`] there. What an execution does is the same.
//!
//! `build.rs` has the linker lead the compiler's calls through here (`--wrap`), in the programs that have this module.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// One execution of so many.
const SELDOM: u32 = 16;

static TOLD: AtomicBool = AtomicBool::new(true);

/// Runs `execution`, of which libFuzzer is mostly not told what it compares.
pub(crate) fn seldom(execution: impl FnOnce()) {
    static EXECUTIONS: AtomicU32 = AtomicU32::new(0);
    let number = EXECUTIONS.fetch_add(1, Ordering::Relaxed);
    TOLD.store(number.is_multiple_of(SELDOM), Ordering::Relaxed);
    execution();
}

/// The names begin so because functions of such names are told of nothing themselves.
macro_rules! wrap {
    ($($ours:ident $theirs:ident $number:ty)*) => {
        $(
            unsafe extern "C" {
                fn $theirs(a: $number, b: $number);
            }

            #[unsafe(no_mangle)]
            extern "C" fn $ours(a: $number, b: $number) {
                if TOLD.load(Ordering::Relaxed) {
                    // SAFETY: libFuzzer's, called as the compiler would.
                    unsafe { $theirs(a, b) }
                }
            }
        )*
    };
}

wrap! {
    __sanitizer_nic_cmp1 __real___sanitizer_cov_trace_cmp1 u8
    __sanitizer_nic_cmp2 __real___sanitizer_cov_trace_cmp2 u16
    __sanitizer_nic_cmp4 __real___sanitizer_cov_trace_cmp4 u32
    __sanitizer_nic_cmp8 __real___sanitizer_cov_trace_cmp8 u64
    __sanitizer_nic_const_cmp1 __real___sanitizer_cov_trace_const_cmp1 u8
    __sanitizer_nic_const_cmp2 __real___sanitizer_cov_trace_const_cmp2 u16
    __sanitizer_nic_const_cmp4 __real___sanitizer_cov_trace_const_cmp4 u32
    __sanitizer_nic_const_cmp8 __real___sanitizer_cov_trace_const_cmp8 u64
}
