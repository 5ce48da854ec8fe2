//! Everything that touches sockets and the kernel's network state: addresses, options, redirect rules.

pub mod address;
pub mod adopt;
pub mod bpf;
pub mod buffers;
pub mod capability;
pub mod cgroup;
pub mod descriptors;
pub mod dial;
pub mod listen;
pub mod local;
pub mod namespace;
pub mod own_sockets;
pub mod redirect;
pub mod sockopt;
pub mod turns;
