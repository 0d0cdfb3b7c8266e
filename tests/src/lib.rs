//! The end-to-end lab: machines, network and servers of the tests.
