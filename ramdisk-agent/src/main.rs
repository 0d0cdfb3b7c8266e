//! The `imprint-agent` command.
fn main() {}
