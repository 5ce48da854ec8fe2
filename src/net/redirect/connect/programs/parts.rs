//! What several of the programs do alike. `R6` is the context throughout.

use std::net::Ipv6Addr;

use super::layout::{AF_INET6, MAPPED};
use super::{Plan, Tables};
use crate::net::bpf::Map;
use crate::net::bpf::asm::{Asm, Condition, Helper, Label, Reg, Width};

use Condition::{Equal, Greater, NotEqual};
use Reg::{R0, R1, R2, R3, R4, R6, R7, R10};
use Width::{Double, Word};

/// Leaves if `bytes` from `R2` on reach beyond `R3`.
pub(super) fn room_for(asm: &mut Asm, bytes: i32, leave: Label) {
    asm.mov(R4, R2);
    asm.add(R4, bytes);
    asm.jump_if_reg(R4, Greater, R3, leave);
}

/// `R0`: what the socket in `R7` remembers, or 0.
pub(super) fn remembered(asm: &mut Asm, tables: &Tables) {
    asm.map(R1, &tables.destinations);
    asm.mov(R2, R7);
    asm.set(R3, 0);
    asm.set(R4, 0);
    asm.call(Helper::SkStorageGet);
}

/// The socket in `R7` remembers nothing from here on.
pub(super) fn forget(asm: &mut Asm, tables: &Tables) {
    asm.map(R1, &tables.destinations);
    asm.mov(R2, R7);
    asm.call(Helper::SkStorageDelete);
}

/// The entry of `map` for the key at `at` of the stack becomes what `R0` points to.
pub(super) fn enter(asm: &mut Asm, map: &Map, at: i16) {
    asm.mov(R3, R0);
    asm.map(R1, map);
    asm.mov(R2, R10);
    asm.add(R2, at.into());
    asm.set(R4, 0);
    asm.call(Helper::MapUpdate);
}

/// `map` has nothing more for the key at `at` of the stack.
pub(super) fn cross_out(asm: &mut Asm, map: &Map, at: i16) {
    asm.map(R1, map);
    asm.mov(R2, R10);
    asm.add(R2, at.into());
    asm.call(Helper::MapDelete);
}

/// `R0`: what `map` has for the key at `at` of the stack, or 0.
pub(super) fn look_up(asm: &mut Asm, map: &Map, at: i16) {
    asm.map(R1, map);
    asm.mov(R2, R10);
    asm.add(R2, at.into());
    asm.call(Helper::MapLookup);
}

pub(super) fn unless_namespace(asm: &mut Asm, plan: &Plan, leave: Label) {
    asm.mov(R1, R6);
    asm.call(Helper::NetnsCookie);
    asm.set64(R1, plan.namespace);
    asm.jump_if_reg(R0, NotEqual, R1, leave);
}

pub(super) fn unless(asm: &mut Asm, base: Reg, at: i16, value: u32, leave: Label) {
    asm.load(Word, R1, base, at);
    asm.jump_if32(R1, NotEqual, value, leave);
}

pub(super) fn unless_mapped(asm: &mut Asm, base: Reg, at: i16, leave: Label) {
    for (word, value) in [(0, 0), (4, 0), (8, MAPPED)] {
        unless(asm, base, at + word, value, leave);
    }
}

/// One end of a socket of either family, at `to` of the stack.
pub(super) fn end_to_stack(asm: &mut Asm, base: Reg, family: i16, (ip4, ip6): (i16, i16), to: i16) {
    let (native, written) = (asm.label(), asm.label());
    asm.load(Word, R1, base, family);
    asm.jump_if32(R1, Equal, AF_INET6, native);
    mapped_to_stack(asm, base, ip4, to);
    asm.jump(written);
    asm.bind(native);
    native_to_stack(asm, base, ip6, to);
    asm.bind(written);
}

/// An IPv4 address as 16 bytes at `to` of the stack.
pub(super) fn mapped_to_stack(asm: &mut Asm, base: Reg, at: i16, to: i16) {
    asm.store_value(Double, R10, to, 0);
    asm.store_value(Word, R10, to + 8, MAPPED.cast_signed());
    copy(asm, Word, (base, at), (R10, to + 12));
}

/// An IPv6 address at `to` of the stack.
pub(super) fn native_to_stack(asm: &mut Asm, base: Reg, at: i16, to: i16) {
    for word in [0, 4, 8, 12] {
        copy(asm, Word, (base, at + word), (R10, to + word));
    }
}

/// By way of `R1`.
pub(super) fn copy(asm: &mut Asm, width: Width, (from, from_at): (Reg, i16), (to, to_at): (Reg, i16)) {
    asm.load(width, R1, from, from_at);
    asm.store(width, to, to_at, R1);
}

/// Of a context only words can be set, and only from a register.
pub(super) fn set_context(asm: &mut Asm, at: i16, value: u32) {
    asm.set(R1, value.cast_signed());
    asm.store(Word, R6, at, R1);
}

/// As `user_port` has it.
pub(super) fn network_port(port: u16) -> u32 {
    port.to_be().into()
}

/// As they are in memory.
pub(super) fn words(ip: Ipv6Addr) -> [u32; 4] {
    let octets = ip.octets();
    let (words, _) = octets.as_chunks::<4>();
    [0, 1, 2, 3].map(|index: usize| u32::from_ne_bytes(words[index]))
}
