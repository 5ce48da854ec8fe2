//! The programs at the sockets, instruction by instruction. A [`Plan`] and the maps come in, code for
//! each [`Hook`] goes out; the same for the same plan. What each does:
//!
//! ```text
//! connect      of this namespace, TCP, not adit's, to capture?  -> remember the destination with the socket, dial adit's door
//! sock_ops     the SYN to the door is about to leave            -> {source address, port} -> destination into `pending`
//! getsockopt   adit asks an accepted socket where it was going   -> answer from `pending`, and forget it there
//! getpeername  the application asks its socket                  -> the destination it remembers
//! ```
//!
//! And where the application is to see its clients, of which adit takes the place:
//!
//! ```text
//! bind         adit, to a client's address                      -> remember the client with the socket, bind to nothing
//! sock_ops     its SYN is about to leave                        -> both ends of the connection -> client into `clients`
//! sock_ops     the application's end has come about             -> move it from `clients` to that socket
//! getpeername  accept and getpeername of the application        -> the client it remembers
//! ```
//!
//! And where inbound connections are captured by sockets as well:
//!
//! ```text
//! sk_lookup    no connection has the packet: who listens?       -> one of adit's inbound doors, whatever the port
//! sock_ops     adit begins to listen                            -> its door into `doors`
//! ```
//!
//! Fails closed: where the destination cannot be remembered, `connect` is refused; where it cannot be noted, adit finds none
//! and resets the connection. Addresses are 16 bytes everywhere, IPv4 ones mapped, in the order of the network.

mod clients;
mod inbound;
mod layout;
mod parts;

use std::net::{Ipv4Addr, Ipv6Addr};

use super::tables::{Chosen, DEADLINE_AT, Tables};
use crate::net::bpf::Hook;
use crate::net::bpf::asm::{Asm, AsmError, Condition, Helper, Label, Reg, Width};
use crate::net::redirect::options::Mark;
use crate::net::sockopt::NOTED_DST;

use layout::*;
pub(super) use layout::{CLIENT_BYTES, CONNECTION_BYTES, DESTINATION_BYTES};
use parts::*;

use Condition::{Equal, Greater, NotEqual, NotGreater};
use Reg::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};
use Width::{Double, Half, Word};

/// What the programs are made from, beside what is in the maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// adit's outbound door, on loopback.
    pub(super) door: u16,
    /// The inbound one.
    pub(super) inbound_door: u16,
    /// Sockets that are adit's.
    pub(super) mark: Option<Mark>,
    /// Users who are adit.
    pub(super) uids: Vec<u32>,
    /// Whose connections: the kernel's number for the network namespace, which it never gives twice.
    pub(super) namespace: u64,
    /// What the client's end of a captured connection is, where it has not chosen one. `None`: loopback.
    pub(super) source_v4: Option<Ipv4Addr>,
    pub(super) source_v6: Option<Ipv6Addr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

/// What runs at `hook`. `R6` is the context throughout.
///
/// # Errors
/// More users than the jumps of a program reach over.
pub(super) fn program(hook: Hook, plan: &Plan, tables: &Tables) -> Result<Vec<u8>, AsmError> {
    let mut asm = Asm::default();
    // Every program has the map that tells whose it is, also where it does not look into it.
    asm.mov(R6, R1);
    asm.map(R1, &tables.state);
    match hook {
        Hook::Bind4 => clients::take(&mut asm, Version::V4, plan, tables),
        Hook::Bind6 => clients::take(&mut asm, Version::V6, plan, tables),
        Hook::Connect4 => connect(&mut asm, Version::V4, plan, tables),
        Hook::Connect6 => connect(&mut asm, Version::V6, plan, tables),
        Hook::PeerName4 => peer_name(&mut asm, Version::V4, plan, tables),
        Hook::PeerName6 => peer_name(&mut asm, Version::V6, plan, tables),
        Hook::SockOps => note(&mut asm, plan, tables),
        Hook::GetSockOpt => answer(&mut asm, plan, tables),
        Hook::SocketLookup => inbound::look_up_door(&mut asm, tables),
    }
    asm.finish()
}

/// Whether to capture what is dialled, and if so, where to.
fn connect(asm: &mut Asm, version: Version, plan: &Plan, tables: &Tables) {
    let (leave, exempt, not_chosen, refuse) = (asm.label(), asm.label(), asm.label(), asm.label());
    unless_tcp_of_ours(asm, plan, leave);
    unless_adit(asm, plan, leave);
    if tables.clients.is_some() {
        clients::unless_told_of(asm, leave);
    }
    address_to_stack(asm, version);
    unless_chosen(asm, &tables.outbound, tables, exempt, not_chosen);
    remember(asm, tables, refuse);
    unbind_device(asm);
    match version {
        Version::V4 => dial_door(
            asm,
            version,
            plan,
            Ipv4Addr::LOCALHOST.to_ipv6_mapped(),
            plan.source_v4.map(|v4| v4.to_ipv6_mapped()),
        ),
        Version::V6 => {
            let (native, dialled) = (asm.label(), asm.label());
            unless_mapped(asm, R10, ENDS, native);
            let mapped = plan.source_v4.map(|v4| v4.to_ipv6_mapped());
            dial_door(asm, version, plan, Ipv4Addr::LOCALHOST.to_ipv6_mapped(), mapped);
            asm.jump(dialled);
            asm.bind(native);
            dial_door(asm, version, plan, Ipv6Addr::LOCALHOST, plan.source_v6);
            asm.bind(dialled);
        }
    }
    asm.jump(leave);
    asm.bind(exempt);
    // Another program of ours, at a cgroup above or below, may have been here before.
    asm.jump_if32(R8, Equal, plan.door.into(), leave);
    // It may have been captured before: a socket whose connect has failed may dial again.
    asm.bind(not_chosen);
    forget(asm, tables);
    asm.bind(leave);
    asm.set(R0, 1);
    asm.exit();
    asm.bind(refuse);
    asm.set(R0, 0);
    asm.exit();
}

/// `R7`: the socket, if it is one for TCP in this namespace.
fn unless_tcp_of_ours(asm: &mut Asm, plan: &Plan, leave: Label) {
    unless(asm, R6, ADDR_TYPE, SOCK_STREAM, leave);
    unless(asm, R6, ADDR_PROTOCOL, IPPROTO_TCP, leave);
    unless_namespace(asm, plan, leave);
    asm.load(Double, R7, R6, ADDR_SK);
}

/// `R7` is the socket.
fn unless_adit(asm: &mut Asm, plan: &Plan, leave: Label) {
    if let Some(mark) = plan.mark {
        asm.load(Word, R1, R7, SOCK_MARK);
        asm.and32(R1, mark.mask());
        asm.jump_if32(R1, Equal, mark.value(), leave);
    }
    if !plan.uids.is_empty() {
        // Group above, user below.
        asm.call(Helper::CurrentUidGid);
        for uid in &plan.uids {
            asm.jump_if32(R0, Equal, *uid, leave);
        }
    }
}

/// `ENDS`: the address that a call was given; `R8`: its port, in this machine's order.
fn address_to_stack(asm: &mut Asm, version: Version) {
    match version {
        Version::V4 => mapped_to_stack(asm, R6, ADDR_IP4, ENDS),
        Version::V6 => native_to_stack(asm, R6, ADDR_IP6, ENDS),
    }
    asm.load(Word, R8, R6, ADDR_PORT);
    asm.store_value(Double, R10, ENDS + PORT_AT, 0);
    asm.store(Half, R10, ENDS + PORT_AT, R8);
    asm.swap16(R8);
}

/// By the address at `ENDS`, the port in `R8`, and time.
fn unless_chosen(asm: &mut Asm, chosen: &Chosen, tables: &Tables, exempt: Label, not_chosen: Label) {
    asm.store_value(Word, R10, PREFIX, 128);
    for word in [0, 4, 8, 12] {
        asm.load(Word, R1, R10, ENDS + word);
        asm.store(Word, R10, PREFIX + 4 + word, R1);
    }
    look_up(asm, &chosen.exempt, PREFIX);
    asm.jump_if(R0, NotEqual, 0, exempt);
    // A bit for each port, 64 to an entry.
    asm.mov(R1, R8);
    asm.shift_right32(R1, 6);
    asm.store(Word, R10, NUMBER, R1);
    look_up(asm, &chosen.ports, NUMBER);
    asm.jump_if(R0, Equal, 0, not_chosen);
    asm.load(Double, R1, R0, 0);
    asm.and32(R8, 63);
    asm.shift_right(R1, R8);
    asm.and32(R1, 1);
    asm.jump_if(R1, Equal, 0, not_chosen);
    let lasting = asm.label();
    asm.store_value(Word, R10, NUMBER, 0);
    look_up(asm, &tables.state, NUMBER);
    asm.jump_if(R0, Equal, 0, not_chosen);
    asm.load(Double, R8, R0, DEADLINE_AT);
    asm.jump_if(R8, Equal, 0, lasting);
    asm.call(Helper::BootNanoseconds);
    asm.jump_if_reg(R0, Greater, R8, not_chosen);
    asm.bind(lasting);
}

/// The socket in `R7` remembers what is at `ENDS`.
fn remember(asm: &mut Asm, tables: &Tables, refuse: Label) {
    asm.map(R1, &tables.destinations);
    asm.mov(R2, R7);
    asm.mov(R3, R10);
    asm.add(R3, ENDS.into());
    asm.set(R4, BPF_SK_STORAGE_GET_F_CREATE);
    asm.call(Helper::SkStorageGet);
    asm.jump_if(R0, Equal, 0, refuse);
    // What it remembered before stays otherwise.
    for double in [0, 8, 16] {
        asm.load(Double, R1, R10, ENDS + double);
        asm.store(Double, R0, double, R1);
    }
}

/// A socket that is bound to a device would look for the door behind it.
fn unbind_device(asm: &mut Asm) {
    let unbound = asm.label();
    asm.load(Word, R1, R7, SOCK_DEVICE);
    asm.jump_if32(R1, NotGreater, LOOPBACK_DEVICE, unbound);
    asm.store_value(Double, R10, SOCKADDR, 0);
    asm.store_value(Double, R10, SOCKADDR + 8, 0);
    asm.mov(R1, R6);
    asm.set(R2, SOL_SOCKET);
    asm.set(R3, SO_BINDTODEVICE);
    asm.mov(R4, R10);
    asm.add(R4, SOCKADDR.into());
    asm.set(R5, 16);
    asm.call(Helper::SetSockOpt);
    asm.bind(unbound);
}

/// From `source`, where the socket has no address and this is still one of ours; else from what the kernel chooses.
fn dial_door(asm: &mut Asm, version: Version, plan: &Plan, door: Ipv6Addr, source: Option<Ipv6Addr>) {
    if let Some(source) = source {
        let length = sockaddr_to_stack(asm, version, source);
        asm.mov(R1, R6);
        asm.mov(R2, R10);
        asm.add(R2, SOCKADDR.into());
        asm.set(R3, length);
        asm.call(Helper::Bind);
    }
    let words = words(door);
    match version {
        Version::V4 => set_context(asm, ADDR_IP4, words[3]),
        Version::V6 => {
            for (word, at) in words.into_iter().zip([0, 4, 8, 12]) {
                set_context(asm, ADDR_IP6 + at, word);
            }
        }
    }
    set_context(asm, ADDR_PORT, network_port(plan.door));
}

/// `struct sockaddr_in` or `sockaddr_in6` at `SOCKADDR`, with port 0; its length.
fn sockaddr_to_stack(asm: &mut Asm, version: Version, ip: Ipv6Addr) -> i32 {
    for double in [0, 8, 16, 24] {
        asm.store_value(Double, R10, SOCKADDR + double, 0);
    }
    let words = words(ip).map(u32::cast_signed);
    match version {
        Version::V4 => {
            asm.store_value(Half, R10, SOCKADDR, AF_INET.cast_signed());
            asm.store_value(Word, R10, SOCKADDR + 4, words[3]);
            16
        }
        Version::V6 => {
            asm.store_value(Half, R10, SOCKADDR, AF_INET6.cast_signed());
            for (word, at) in words.into_iter().zip([8, 12, 16, 20]) {
                asm.store_value(Word, R10, SOCKADDR + at, word);
            }
            28
        }
    }
}

/// The application sees whom it has dialled, or who has dialled it.
fn peer_name(asm: &mut Asm, version: Version, plan: &Plan, tables: &Tables) {
    let leave = asm.label();
    unless(asm, R6, ADDR_TYPE, SOCK_STREAM, leave);
    if tables.clients.is_none() {
        unless(asm, R6, ADDR_PORT, network_port(plan.door), leave);
    }
    asm.load(Double, R7, R6, ADDR_SK);
    remembered(asm, tables);
    asm.jump_if(R0, Equal, 0, leave);
    match version {
        Version::V4 => {
            asm.load(Word, R1, R0, 12);
            asm.store(Word, R6, ADDR_IP4, R1);
        }
        Version::V6 => {
            for word in [0, 4, 8, 12] {
                asm.load(Word, R1, R0, word);
                asm.store(Word, R6, ADDR_IP6 + word, R1);
            }
        }
    }
    asm.load(Half, R1, R0, PORT_AT);
    asm.store(Word, R6, ADDR_PORT, R1);
    asm.bind(leave);
    asm.set(R0, 1);
    asm.exit();
}

/// Only now is the client's port known.
fn note(asm: &mut Asm, plan: &Plan, tables: &Tables) {
    let (leave, known, elsewhere) = (asm.label(), asm.label(), asm.label());
    if let Some(clients) = &tables.clients {
        clients::tell(asm, plan, tables, clients, leave);
    }
    if let Some(inbound) = &tables.inbound {
        inbound::register_door(asm, plan, &inbound.doors, leave);
    }
    unless(asm, R6, OPS_OP, BPF_SOCK_OPS_TCP_CONNECT_CB, leave);
    unless_namespace(asm, plan, leave);
    asm.load(Double, R7, R6, OPS_SK);
    asm.jump_if(R7, Equal, 0, leave);
    unless(asm, R6, OPS_REMOTE_PORT, u32::from(plan.door).to_be(), elsewhere);
    end_to_stack(asm, R6, OPS_FAMILY, (OPS_LOCAL_IP4, OPS_LOCAL_IP6), ENDS);
    asm.load(Word, R1, R6, OPS_LOCAL_PORT);
    asm.store(Word, R10, ENDS + PORT_AT, R1);
    remembered(asm, tables);
    asm.jump_if(R0, NotEqual, 0, known);
    // Somebody dials the door itself, from where a captured client may have been that adit never asked about.
    cross_out(asm, &tables.pending, ENDS);
    asm.jump(leave);
    asm.bind(known);
    enter(asm, &tables.pending, ENDS);
    asm.jump(leave);
    asm.bind(elsewhere);
    if let Some(clients) = &tables.clients {
        clients::note(asm, tables, clients);
    }
    asm.bind(leave);
    asm.set(R0, 1);
    asm.exit();
}

fn answer(asm: &mut Asm, plan: &Plan, tables: &Tables) {
    let (leave, asked, short, six, written) = (asm.label(), asm.label(), asm.label(), asm.label(), asm.label());
    asm.load(Word, R9, R6, OPT_NAME);
    asm.load(Word, R8, R6, OPT_LEVEL);
    asm.jump_if32(R9, Equal, NOTED_DST.into(), short);
    // As under redirect: whoever asks may know no other way.
    asm.jump_if32(R9, NotEqual, SO_ORIGINAL_DST, leave);
    asm.jump_if32(R8, Equal, SOL_IP, asked);
    asm.jump_if32(R8, Equal, SOL_IPV6, asked);
    asm.jump(leave);
    asm.bind(short);
    asm.jump_if32(R8, NotEqual, SOL_SOCKET.cast_unsigned(), leave);
    asm.bind(asked);
    unless_namespace(asm, plan, leave);
    asm.load(Double, R7, R6, OPT_SK);
    unless(asm, R7, SOCK_LOCAL_PORT, plan.door.into(), leave);
    end_to_stack(asm, R7, SOCK_FAMILY, (SOCK_REMOTE_IP4, SOCK_REMOTE_IP6), ENDS);
    asm.load(Half, R1, R7, SOCK_REMOTE_PORT);
    asm.swap16(R1);
    asm.store(Word, R10, ENDS + PORT_AT, R1);
    look_up(asm, &tables.pending, ENDS);
    asm.jump_if(R0, Equal, 0, leave);
    asm.mov(R9, R0);
    asm.load(Double, R2, R6, OPT_VALUE);
    asm.load(Double, R3, R6, OPT_END);
    asm.jump_if32(R8, NotEqual, SOL_IP, six);
    unless_mapped(asm, R9, 0, leave);
    room_for(asm, 16, leave);
    asm.store_value(Half, R2, 0, AF_INET.cast_signed());
    copy(asm, Half, (R9, PORT_AT), (R2, 2));
    copy(asm, Word, (R9, 12), (R2, 4));
    asm.store_value(Double, R2, 8, 0);
    set_context(asm, OPT_LENGTH, 16);
    asm.jump(written);
    asm.bind(six);
    room_for(asm, 28, leave);
    asm.store_value(Half, R2, 0, AF_INET6.cast_signed());
    copy(asm, Half, (R9, PORT_AT), (R2, 2));
    asm.store_value(Word, R2, 4, 0);
    for word in [0, 4, 8, 12] {
        copy(asm, Word, (R9, word), (R2, 8 + word));
    }
    asm.store_value(Word, R2, 24, 0);
    set_context(asm, OPT_LENGTH, 28);
    asm.bind(written);
    set_context(asm, OPT_RESULT, 0);
    cross_out(asm, &tables.pending, ENDS);
    asm.bind(leave);
    asm.set(R0, 1);
    asm.exit();
}
