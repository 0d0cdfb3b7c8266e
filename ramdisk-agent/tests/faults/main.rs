//! What networks and servers do, to every kind of store: each scenario is one job (an image is written, read again and published; or
//! read) and one fault, and ends in success with the same bytes or in the right kind of failure, within its time.
//!
//! A store is one file here and one line in the list below. By default each group runs a few of its scenarios, evenly spread;
//! `IMPRINT_FAULTS=all` (`cargo xtask test --faults`) runs all of them. Where the bytes of a fault are chosen at random they are the
//! same in every run.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]

mod disturbed;
mod http;
mod job;
mod nfs;
mod report;
mod scenario;
mod several;
mod smb;
mod store;

#[path = "../store_nfs/ganesha.rs"]
#[allow(dead_code, reason = "its own tests use more of it")]
mod ganesha;

#[path = "../store_http/nginx.rs"]
#[allow(dead_code, reason = "its own tests use more of it")]
mod nginx;

#[path = "../real_servers/mod.rs"]
#[allow(dead_code, reason = "tests of one store use more of it")]
mod real_servers;

#[path = "../store_smb/samba.rs"]
#[allow(dead_code, reason = "its own tests use more of it")]
mod samba;

/// The groups of scenarios, as tests of one store.
macro_rules! faults_of {
    ($module:ident, $store:ty) => {
        mod $module {
            use super::*;

            #[test]
            fn cuts_around_messages() {
                scenario::cuts_around_messages::<$store>();
            }
            #[test]
            fn cuts_anywhere() {
                scenario::cuts_anywhere::<$store>();
            }
            #[test]
            fn silence_and_slow_closes() {
                scenario::silence_and_slow_closes::<$store>();
            }
            #[test]
            fn slow_networks_and_many_drops() {
                scenario::slow_networks_and_many_drops::<$store>();
            }
            #[test]
            fn outages() {
                disturbed::outages::<$store>();
            }
            #[test]
            fn killed_while_writing() {
                disturbed::killed_while_writing::<$store>();
            }
            #[test]
            fn shares_that_change() {
                disturbed::shares_that_change::<$store>();
            }
        }
    };
}

faults_of!(nfs_ganesha, nfs::Nfs);
faults_of!(samba_smb, smb::Smb);
faults_of!(nginx_http, http::Http);
faults_of!(nginx_https, http::Https);
