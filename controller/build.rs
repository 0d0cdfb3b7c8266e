//! Rebuilds the crate when a migration changes: their text is embedded.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
