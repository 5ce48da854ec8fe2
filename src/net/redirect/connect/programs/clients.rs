//! What the programs do so that the application sees its clients: it accepts connections from adit, and is told whose they are.
//!
//! adit says so by binding its socket to the client's address, with the mark [`CLIENT_MARK`]. Both ends of the connection lead
//! from there to the application's socket; whoever dials with the same ends and says nothing crosses out what a connection that
//! failed has left.

use super::layout::*;
use super::parts::*;
use super::{Plan, Tables, Version, address_to_stack, remember, unless_tcp_of_ours};
use crate::net::bpf::Map;
use crate::net::bpf::asm::{Asm, Condition, Label, Reg, Width};
use crate::net::redirect::options::{CLIENT_MARK, MARK_MASK};

use Condition::{Equal, NotEqual};
use Reg::{R0, R1, R6, R7, R10};
use Width::{Double, Half, Word};

/// The socket in `R7` is none of adit's that speak for a client.
pub(super) fn unless_told_of(asm: &mut Asm, leave: Label) {
    asm.load(Word, R1, R7, SOCK_MARK);
    asm.and32(R1, MARK_MASK);
    asm.jump_if32(R1, Equal, CLIENT_MARK, leave);
}

/// Takes the address that adit binds to for the client's, and leaves the socket unbound.
pub(super) fn take(asm: &mut Asm, version: Version, plan: &Plan, tables: &Tables) {
    let (leave, told, refuse) = (asm.label(), asm.label(), asm.label());
    unless_tcp_of_ours(asm, plan, leave);
    unless_told_of(asm, told);
    asm.jump(leave);
    asm.bind(told);
    address_to_stack(asm, version);
    remember(asm, tables, refuse);
    match version {
        Version::V4 => set_context(asm, ADDR_IP4, 0),
        Version::V6 => {
            for word in [0, 4, 8, 12] {
                set_context(asm, ADDR_IP6 + word, 0);
            }
        }
    }
    set_context(asm, ADDR_PORT, 0);
    asm.bind(leave);
    asm.set(R0, 1);
    asm.exit();
    asm.bind(refuse);
    asm.set(R0, 0);
    asm.exit();
}

/// The socket in `R7` is about to dial.
pub(super) fn note(asm: &mut Asm, tables: &Tables, clients: &Map) {
    let (stale, told, noted) = (asm.label(), asm.label(), asm.label());
    connection_to_stack(asm, (OPS_LOCAL_IP4, OPS_LOCAL_IP6), (OPS_REMOTE_IP4, OPS_REMOTE_IP6));
    asm.load(Word, R1, R6, OPS_LOCAL_PORT);
    asm.store(Word, R10, CONNECTION + DIALLING_PORT_AT, R1);
    asm.load(Word, R1, R6, OPS_REMOTE_PORT);
    asm.swap32(R1);
    asm.store(Word, R10, CONNECTION + DIALLED_PORT_AT, R1);
    unless_told_of(asm, told);
    asm.jump(stale);
    asm.bind(told);
    remembered(asm, tables);
    asm.jump_if(R0, Equal, 0, stale);
    enter(asm, clients, CONNECTION);
    // Whom it has dialled itself is no secret to adit.
    forget(asm, tables);
    asm.jump(noted);
    asm.bind(stale);
    cross_out(asm, clients, CONNECTION);
    asm.bind(noted);
}

/// The application's end of a connection has come about; it has not been accepted yet, or is only just being so.
pub(super) fn tell(asm: &mut Asm, plan: &Plan, tables: &Tables, clients: &Map, leave: Label) {
    let (others, has_port) = (asm.label(), asm.label());
    unless(asm, R6, OPS_OP, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, others);
    unless_namespace(asm, plan, leave);
    asm.load(Double, R7, R6, OPS_SK);
    asm.jump_if(R7, Equal, 0, leave);
    connection_to_stack(asm, (OPS_REMOTE_IP4, OPS_REMOTE_IP6), (OPS_LOCAL_IP4, OPS_LOCAL_IP6));
    asm.load(Word, R1, R6, OPS_REMOTE_PORT);
    asm.swap32(R1);
    asm.store(Word, R10, CONNECTION + DIALLING_PORT_AT, R1);
    asm.load(Word, R1, R6, OPS_LOCAL_PORT);
    asm.store(Word, R10, CONNECTION + DIALLED_PORT_AT, R1);
    look_up(asm, clients, CONNECTION);
    asm.jump_if(R0, Equal, 0, leave);
    for double in [0, 8, 16] {
        copy(asm, Double, (R0, double), (R10, ENDS + double));
    }
    asm.load(Half, R1, R10, ENDS + PORT_AT);
    asm.jump_if32(R1, NotEqual, 0, has_port);
    // The client's own is not known: adit's, then.
    asm.load(Word, R1, R10, CONNECTION + DIALLING_PORT_AT);
    asm.swap16(R1);
    asm.store(Half, R10, ENDS + PORT_AT, R1);
    asm.bind(has_port);
    cross_out(asm, clients, CONNECTION);
    remember(asm, tables, leave);
    asm.jump(leave);
    asm.bind(others);
}

/// Both addresses of a connection at `CONNECTION`.
fn connection_to_stack(asm: &mut Asm, dialling: (i16, i16), dialled: (i16, i16)) {
    end_to_stack(asm, R6, OPS_FAMILY, dialling, CONNECTION);
    end_to_stack(asm, R6, OPS_FAMILY, dialled, CONNECTION + DIALLED_AT);
}
