//! The NFS store against a real server (nfs-ganesha), a proxy that damages connections, and a server that misbehaves.

mod ganesha;
mod real;
