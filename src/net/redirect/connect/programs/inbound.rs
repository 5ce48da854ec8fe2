//! What the programs do with inbound connections, where no rule does it: the kernel asks who listens for a packet that belongs to no
//! connection, and gets one of adit's doors for an answer, whatever address and port it is for. Nothing is done with any other
//! packet.

use super::layout::*;
use super::parts::*;
use super::{Plan, Tables, unless_chosen};
use crate::net::bpf::Map;
use crate::net::bpf::asm::{Asm, Condition, Helper, Label, Reg, Width};
use crate::net::redirect::connect::tables::MOST_DOORS;

use Condition::{Equal, NotEqual};
use Reg::{R0, R1, R2, R3, R4, R6, R7, R8, R9, R10};
use Width::{Double, Word};

/// Which socket gets the packet: the one that it would, a door of adit's or, where adit does not listen, none, and whoever sent
/// it is refused.
pub(super) fn look_up_door(asm: &mut Asm, tables: &Tables) {
    let leave = asm.label();
    if let Some(inbound) = &tables.inbound {
        unless(asm, R6, LOOKUP_PROTOCOL, IPPROTO_TCP, leave);
        end_to_stack(asm, R6, LOOKUP_FAMILY, (LOOKUP_REMOTE_IP4, LOOKUP_REMOTE_IP6), ENDS);
        unless_from_outside(asm, leave);
        asm.load(Word, R8, R6, LOOKUP_LOCAL_PORT);
        unless_chosen(asm, &inbound.chosen, tables, leave, leave);
        for place in 0..MOST_DOORS {
            try_door(asm, &inbound.doors, place.cast_signed(), leave);
        }
        asm.set(R0, 0);
        asm.exit();
    }
    asm.bind(leave);
    asm.set(R0, 1);
    asm.exit();
}

/// From this namespace to itself, as adit dials the application. On loopback that is, for whoever asks, with the device of the
/// address that is dialled; but no packet from outside may have our own address for its source.
fn unless_from_outside(asm: &mut Asm, leave: Label) {
    let outside = asm.label();
    asm.load(Word, R1, R6, LOOKUP_DEVICE);
    asm.jump_if32(R1, Equal, LOOPBACK_DEVICE, leave);
    end_to_stack(asm, R6, LOOKUP_FAMILY, (LOOKUP_LOCAL_IP4, LOOKUP_LOCAL_IP6), CONNECTION);
    for double in [0, 8] {
        asm.load(Double, R1, R10, ENDS + double);
        asm.load(Double, R2, R10, CONNECTION + double);
        asm.jump_if_reg(R1, NotEqual, R2, outside);
    }
    asm.jump(leave);
    asm.bind(outside);
}

/// Takes the door at this place, if there is one and it is for this family.
fn try_door(asm: &mut Asm, doors: &Map, place: i32, found: Label) {
    let next = asm.label();
    asm.store_value(Word, R10, NUMBER, place);
    look_up(asm, doors, NUMBER);
    asm.jump_if(R0, Equal, 0, next);
    asm.mov(R7, R0);
    asm.mov(R1, R6);
    asm.mov(R2, R7);
    asm.set(R3, 0);
    asm.call(Helper::SocketAssign);
    asm.mov(R9, R0);
    asm.mov(R1, R7);
    asm.call(Helper::SocketRelease);
    asm.jump_if(R9, Equal, 0, found);
    asm.bind(next);
}

/// How many places in a row are tried for a door.
const TRIES: usize = 16;

/// The socket has just begun to listen. Its place is by its number, which those that were made together have in a row; whoever is
/// there stays, and if there is no place at all, it does without.
pub(super) fn register_door(asm: &mut Asm, plan: &Plan, doors: &Map, leave: Label) {
    let others = asm.label();
    unless(asm, R6, OPS_OP, BPF_SOCK_OPS_TCP_LISTEN_CB, others);
    unless(asm, R6, OPS_LOCAL_PORT, plan.inbound_door.into(), leave);
    unless_namespace(asm, plan, leave);
    asm.mov(R1, R6);
    asm.call(Helper::SocketCookie);
    asm.mov(R7, R0);
    for _ in 0..TRIES {
        asm.and32(R7, MOST_DOORS - 1);
        asm.store(Word, R10, NUMBER, R7);
        asm.mov(R1, R6);
        asm.map(R2, doors);
        asm.mov(R3, R10);
        asm.add(R3, NUMBER.into());
        asm.set(R4, BPF_NOEXIST);
        asm.call(Helper::SocketMapUpdate);
        asm.jump_if(R0, Equal, 0, leave);
        asm.add(R7, 1);
    }
    asm.jump(leave);
    asm.bind(others);
}
