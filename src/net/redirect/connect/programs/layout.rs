//! Where things are: in what the kernel hands to a program (`linux/bpf.h`), in the maps, and on the stack of the programs.

/// A destination as it is remembered: address, port in the order of the network, zeros.
pub(in super::super) const DESTINATION_BYTES: u32 = 24;
/// A client's end: address, port in this machine's order.
pub(in super::super) const CLIENT_BYTES: u32 = 20;
/// A connection within this namespace: both addresses, dialling and dialled, and both ports in this machine's order.
pub(in super::super) const CONNECTION_BYTES: u32 = 40;
pub(super) const PORT_AT: i16 = 16;
pub(super) const DIALLED_AT: i16 = 16;
pub(super) const DIALLING_PORT_AT: i16 = 32;
pub(super) const DIALLED_PORT_AT: i16 = 36;

pub(super) const AF_INET: u32 = 2;
pub(super) const AF_INET6: u32 = 10;
pub(super) const SOCK_STREAM: u32 = 1;
pub(super) const IPPROTO_TCP: u32 = 6;
pub(super) const SOL_IP: u32 = 0;
pub(super) const SOL_IPV6: u32 = 41;
pub(super) const SOL_SOCKET: i32 = 1;
pub(super) const SO_BINDTODEVICE: i32 = 25;
/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST` alike.
pub(super) const SO_ORIGINAL_DST: u32 = 80;
pub(super) const BPF_SOCK_OPS_TCP_CONNECT_CB: u32 = 3;
pub(super) const BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB: u32 = 5;
pub(super) const BPF_SOCK_OPS_TCP_LISTEN_CB: u32 = 11;
pub(super) const BPF_SK_STORAGE_GET_F_CREATE: i32 = 1;
pub(super) const BPF_NOEXIST: i32 = 1;
/// `lo`.
pub(super) const LOOPBACK_DEVICE: u32 = 1;

/// Fields of `struct bpf_sock_addr`.
pub(super) const ADDR_IP4: i16 = 4;
pub(super) const ADDR_IP6: i16 = 8;
pub(super) const ADDR_PORT: i16 = 24;
pub(super) const ADDR_TYPE: i16 = 32;
pub(super) const ADDR_PROTOCOL: i16 = 36;
pub(super) const ADDR_SK: i16 = 64;
/// Of `struct bpf_sock_ops`.
pub(super) const OPS_OP: i16 = 0;
pub(super) const OPS_FAMILY: i16 = 20;
pub(super) const OPS_REMOTE_IP4: i16 = 24;
pub(super) const OPS_LOCAL_IP4: i16 = 28;
pub(super) const OPS_REMOTE_IP6: i16 = 32;
pub(super) const OPS_LOCAL_IP6: i16 = 48;
pub(super) const OPS_REMOTE_PORT: i16 = 64;
pub(super) const OPS_LOCAL_PORT: i16 = 68;
pub(super) const OPS_SK: i16 = 184;
/// Of `struct bpf_sk_lookup`.
pub(super) const LOOKUP_FAMILY: i16 = 8;
pub(super) const LOOKUP_PROTOCOL: i16 = 12;
pub(super) const LOOKUP_REMOTE_IP4: i16 = 16;
pub(super) const LOOKUP_REMOTE_IP6: i16 = 20;
pub(super) const LOOKUP_LOCAL_IP4: i16 = 40;
pub(super) const LOOKUP_LOCAL_IP6: i16 = 44;
pub(super) const LOOKUP_LOCAL_PORT: i16 = 60;
pub(super) const LOOKUP_DEVICE: i16 = 64;
/// Of `struct bpf_sockopt`.
pub(super) const OPT_SK: i16 = 0;
pub(super) const OPT_VALUE: i16 = 8;
pub(super) const OPT_END: i16 = 16;
pub(super) const OPT_LEVEL: i16 = 24;
pub(super) const OPT_NAME: i16 = 28;
pub(super) const OPT_LENGTH: i16 = 32;
pub(super) const OPT_RESULT: i16 = 36;
/// Of `struct bpf_sock`.
pub(super) const SOCK_DEVICE: i16 = 0;
pub(super) const SOCK_FAMILY: i16 = 4;
pub(super) const SOCK_MARK: i16 = 16;
pub(super) const SOCK_LOCAL_PORT: i16 = 44;
pub(super) const SOCK_REMOTE_PORT: i16 = 48;
pub(super) const SOCK_REMOTE_IP4: i16 = 52;
pub(super) const SOCK_REMOTE_IP6: i16 = 56;

/// On the stack, below `R10`: an address with its port, the key of `exempt`, a number, an address for the kernel, a connection.
pub(super) const ENDS: i16 = -24;
pub(super) const PREFIX: i16 = -48;
pub(super) const NUMBER: i16 = -56;
pub(super) const SOCKADDR: i16 = -88;
pub(super) const CONNECTION: i16 = -128;

/// The third word of a mapped address.
pub(super) const MAPPED: u32 = 0xffff_u32.to_be();
