//! End to end, on virtual machines: the programs as users run them, real servers, real firmware.
//!
//! Slow under software emulation, a few minutes each; two at a time. `cargo xtask test --only lab` runs these alone.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]

mod alone;
mod faults;
mod rack;
mod round_trip;
mod secrets;
mod witness;
