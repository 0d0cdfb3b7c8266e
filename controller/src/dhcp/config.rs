//! The texts that dnsmasq reads.

use std::fmt::Write;

use super::{LOADERS, Settings};
use crate::db::Host;

/// Lease time. Hosts have fixed addresses: it only says how soon a changed one is noticed.
const LEASE: &str = "1h";

/// The configuration file.
pub(super) fn render(settings: &Settings, user: Option<&str>) -> String {
    let Settings { interface, subnet, http_url, run_dir, .. } = settings;
    let dir = run_dir.display();
    let [bios, uefi, uefi_http] = LOADERS;
    let mut text = format!(
        "# Written by imprint at every start; changes are lost.\n\
         port=0\n\
         interface={interface}\n\
         bind-interfaces\n\
         except-interface=lo\n\
         no-hosts\n\
         no-resolv\n\
         no-ping\n\
         log-facility=-\n\
         pid-file={dir}/dnsmasq.pid\n\
         dhcp-leasefile={dir}/leases\n\
         dhcp-hostsdir={dir}/hosts\n\
         # Known machines only.\n\
         dhcp-range={network},static,{mask},{LEASE}\n\
         dhcp-ignore=tag:!known\n\
         dhcp-authoritative\n\
         enable-tftp\n\
         tftp-root={dir}/tftp\n\
         tftp-secure\n\
         # Option 175 and the user class both say iPXE; either may be missing.\n\
         dhcp-match=set:ipxe,175\n\
         dhcp-userclass=set:ipxe,iPXE\n\
         dhcp-match=set:bios,option:client-arch,0\n\
         dhcp-match=set:uefi,option:client-arch,7\n\
         dhcp-match=set:uefi,option:client-arch,9\n\
         dhcp-match=set:uefihttp,option:client-arch,16\n\
         dhcp-boot=tag:bios,tag:!ipxe,{bios}\n\
         dhcp-boot=tag:uefi,tag:!ipxe,{uefi}\n\
         dhcp-option-force=tag:uefihttp,tag:!ipxe,60,HTTPClient\n\
         dhcp-boot=tag:uefihttp,tag:!ipxe,{http_url}/boot/{uefi_http}\n\
         # iPXE fills in the names.\n\
         dhcp-boot=tag:ipxe,{http_url}/boot/ipxe?mac=${{netX/mac}}&uuid=${{uuid}}\n",
        network = subnet.network(),
        mask = subnet.mask(),
    );
    let mut line = |name: &str, value: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name}={value}");
    };
    if let Some(user) = user {
        line("user", user);
    }
    // An option without a value is not sent; dnsmasq would otherwise name itself as the gateway.
    match settings.gateway {
        Some(gateway) => line("dhcp-option", &format!("option:router,{gateway}")),
        None => line("dhcp-option", "option:router"),
    }
    if let Some(dns) = settings.dns {
        line("dhcp-option", &format!("option:dns-server,{dns}"));
    }
    if settings.router_advertisements {
        // A private prefix, and a router lifetime of 0: nobody takes us for a way out.
        let prefix = &settings.pin;
        line(
            "dhcp-range",
            &format!(
                "fd{}:{}:{}::,ra-only,64,{LEASE}",
                &prefix[0..2],
                &prefix[2..6],
                &prefix[6..10]
            ),
        );
        line("ra-param", &format!("{interface},60,0"));
        text.push_str("enable-ra\n");
    }
    text
}

/// The file of a host.
pub(super) fn entry(host: &Host) -> String {
    let mut words: Vec<String> = host.macs.iter().map(ToString::to_string).collect();
    words.extend(host.ip.map(|ip| ip.to_string()));
    format!("{}\n", words.join(","))
}
