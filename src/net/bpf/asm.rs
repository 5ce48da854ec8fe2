//! An assembler for the BPF instructions that capture at the socket uses. Calls in the order of the program come in,
//! instructions as the kernel takes them go out, in the byte order of this machine. What a program may do is the kernel's
//! verifier to judge; here only a label that is missing or too far away is an error.

use super::Map;

pub const INSTRUCTION_BYTES: usize = 8;

/// A register. `R0`: what a helper returns, and the program. `R1` to `R5`: arguments, lost in a call. `R6` to `R9`: kept.
/// `R10`: the end of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// Width of a load or store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 16 bits.
    Half = 0x08,
    /// 32 bits.
    Word = 0x00,
    /// 64 bits.
    Double = 0x18,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Equal = 0x10,
    Greater = 0x20,
    NotEqual = 0x50,
    NotGreater = 0xb0,
}

/// `enum bpf_func_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    CurrentUidGid = 15,
    SocketCookie = 46,
    SetSockOpt = 49,
    SocketMapUpdate = 53,
    Bind = 64,
    SocketRelease = 86,
    SkStorageGet = 107,
    SkStorageDelete = 108,
    NetnsCookie = 122,
    SocketAssign = 124,
    BootNanoseconds = 125,
}

/// A place in the program that is jumped to, forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// The program so far.
#[derive(Debug, Default)]
pub struct Asm {
    code: Vec<[u8; INSTRUCTION_BYTES]>,
    /// Where each label is.
    places: Vec<Option<usize>>,
    /// Which jumps lead to which label.
    jumps: Vec<(usize, Label)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AsmError {
    #[error("a jump leads nowhere")]
    Unbound,
    #[error("the program is too long for its jumps")]
    TooLong,
}

/// Classes of instructions, and what they have in common.
const LD_IMM64: u8 = 0x18;
const LDX: u8 = 0x61;
const ST: u8 = 0x62;
const STX: u8 = 0x63;
const ALU32: u8 = 0x04;
const ALU64: u8 = 0x07;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
/// The operand is a register.
const X: u8 = 0x08;
/// Operations.
const ADD: u8 = 0x00;
const AND: u8 = 0x50;
const RSH: u8 = 0x70;
const MOV: u8 = 0xb0;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
/// From or to the order of the network; the immediate value says how many bits.
const TO_BE: u8 = 0xdc;
/// The immediate value is a map's descriptor.
const PSEUDO_MAP_FD: u8 = 1;

impl Asm {
    /// A label that is not bound yet.
    pub fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The next instruction is where `label` leads.
    pub fn bind(&mut self, label: Label) {
        self.places[label.0] = Some(self.code.len());
    }

    pub fn mov(&mut self, to: Reg, from: Reg) {
        self.push(ALU64 | MOV | X, to, from, 0, 0);
    }

    /// Sign-extended to 64 bits.
    pub fn set(&mut self, to: Reg, value: i32) {
        self.push(ALU64 | MOV, to, Reg::R0, 0, value);
    }

    pub fn set64(&mut self, to: Reg, value: u64) {
        self.wide(to, 0, value);
    }

    pub fn map(&mut self, to: Reg, map: &Map) {
        self.wide(to, PSEUDO_MAP_FD, u64::from(map.raw_fd().cast_unsigned()));
    }

    pub fn add(&mut self, to: Reg, value: i32) {
        self.push(ALU64 | ADD, to, Reg::R0, 0, value);
    }

    /// On 32 bits; the others become 0.
    pub fn and32(&mut self, to: Reg, value: u32) {
        self.push(ALU32 | AND, to, Reg::R0, 0, value.cast_signed());
    }

    /// On 32 bits; the others become 0.
    pub fn shift_right32(&mut self, to: Reg, bits: i32) {
        self.push(ALU32 | RSH, to, Reg::R0, 0, bits);
    }

    pub fn shift_right(&mut self, to: Reg, bits: Reg) {
        self.push(ALU64 | RSH | X, to, bits, 0, 0);
    }

    /// The lowest 16 bits between the order of the network and this machine's; the others become 0.
    pub fn swap16(&mut self, to: Reg) {
        self.push(TO_BE, to, Reg::R0, 0, 16);
    }

    /// As [`Self::swap16`], of the lowest 32 bits.
    pub fn swap32(&mut self, to: Reg) {
        self.push(TO_BE, to, Reg::R0, 0, 32);
    }

    /// Into all of `to`, with zeros above.
    pub fn load(&mut self, width: Width, to: Reg, from: Reg, at: i16) {
        self.push(LDX | width as u8, to, from, at, 0);
    }

    pub fn store(&mut self, width: Width, to: Reg, at: i16, from: Reg) {
        self.push(STX | width as u8, to, from, at, 0);
    }

    /// Not into the context, which older kernels do not let it.
    pub fn store_value(&mut self, width: Width, to: Reg, at: i16, value: i32) {
        self.push(ST | width as u8, to, Reg::R0, at, value);
    }

    pub fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(JMP, Reg::R0, Reg::R0, 0, 0);
    }

    /// Compares all 64 bits, with `value` sign-extended: for pointers and small numbers.
    pub fn jump_if(&mut self, left: Reg, condition: Condition, value: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(JMP | condition as u8, left, Reg::R0, 0, value);
    }

    /// Compares the lower 32 bits.
    pub fn jump_if32(&mut self, left: Reg, condition: Condition, value: u32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(JMP32 | condition as u8, left, Reg::R0, 0, value.cast_signed());
    }

    /// Compares all 64 bits, without sign.
    pub fn jump_if_reg(&mut self, left: Reg, condition: Condition, right: Reg, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(JMP | X | condition as u8, left, right, 0, 0);
    }

    pub fn call(&mut self, helper: Helper) {
        self.push(JMP | CALL, Reg::R0, Reg::R0, 0, helper as i32);
    }

    /// Ends the program with what is in `R0`.
    pub fn exit(&mut self) {
        self.push(JMP | EXIT, Reg::R0, Reg::R0, 0, 0);
    }

    /// The instructions, with the distance of each jump filled in.
    ///
    /// # Errors
    /// A jump cannot be resolved.
    pub fn finish(mut self) -> Result<Vec<u8>, AsmError> {
        for (from, label) in &self.jumps {
            let to = self.places.get(label.0).copied().flatten().ok_or(AsmError::Unbound)?;
            let distance = to.checked_sub(from + 1).ok_or(AsmError::Unbound)?;
            let distance = i16::try_from(distance).map_err(|_too_far| AsmError::TooLong)?;
            self.code[*from][2..4].copy_from_slice(&distance.to_ne_bytes());
        }
        Ok(self.code.concat())
    }

    fn wide(&mut self, to: Reg, source: u8, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        let half = |bytes| i32::from_le_bytes(bytes);
        self.raw(LD_IMM64, to as u8, source, 0, half([a, b, c, d]));
        self.raw(0, 0, 0, 0, half([e, f, g, h]));
    }

    fn push(&mut self, code: u8, to: Reg, from: Reg, at: i16, value: i32) {
        self.raw(code, to as u8, from as u8, at, value);
    }

    fn raw(&mut self, code: u8, to: u8, from: u8, at: i16, value: i32) {
        // Which half of the byte is which register depends on the byte order.
        let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
        let ([c, d], [e, f, g, h]) = (at.to_ne_bytes(), value.to_ne_bytes());
        self.code.push([code, registers, c, d, e, f, g, h]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by hand from the kernel's description of its instruction set (RFC 9669).
    #[test]
    #[cfg(target_endian = "little")]
    fn instructions_are_the_kernels() {
        let mut asm = Asm::default();
        let out = asm.label();
        asm.mov(Reg::R6, Reg::R1);
        asm.load(Width::Word, Reg::R1, Reg::R6, 32);
        asm.jump_if32(Reg::R1, Condition::NotEqual, 1, out);
        asm.load(Width::Double, Reg::R7, Reg::R6, 64);
        asm.store(Width::Half, Reg::R10, -8, Reg::R1);
        asm.store_value(Width::Word, Reg::R10, -4, 7);
        asm.set64(Reg::R2, 0x1122_3344_5566_7788);
        asm.jump_if_reg(Reg::R0, Condition::Greater, Reg::R2, out);
        asm.swap16(Reg::R8);
        asm.swap32(Reg::R8);
        asm.shift_right32(Reg::R8, 6);
        asm.shift_right(Reg::R1, Reg::R8);
        asm.and32(Reg::R1, 0xfff);
        asm.add(Reg::R2, -24);
        asm.call(Helper::NetnsCookie);
        asm.jump(out);
        asm.bind(out);
        asm.set(Reg::R0, 1);
        asm.exit();
        let want: [[u8; 8]; 19] = [
            [0xbf, 0x16, 0, 0, 0, 0, 0, 0],
            [0x61, 0x61, 32, 0, 0, 0, 0, 0],
            [0x56, 0x01, 14, 0, 1, 0, 0, 0],
            [0x79, 0x67, 64, 0, 0, 0, 0, 0],
            [0x6b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0],
            [0x62, 0x0a, 0xfc, 0xff, 7, 0, 0, 0],
            [0x18, 0x02, 0, 0, 0x88, 0x77, 0x66, 0x55],
            [0, 0, 0, 0, 0x44, 0x33, 0x22, 0x11],
            [0x2d, 0x20, 8, 0, 0, 0, 0, 0],
            [0xdc, 0x08, 0, 0, 16, 0, 0, 0],
            [0xdc, 0x08, 0, 0, 32, 0, 0, 0],
            [0x74, 0x08, 0, 0, 6, 0, 0, 0],
            [0x7f, 0x81, 0, 0, 0, 0, 0, 0],
            [0x54, 0x01, 0, 0, 0xff, 0x0f, 0, 0],
            [0x07, 0x02, 0, 0, 0xe8, 0xff, 0xff, 0xff],
            [0x85, 0x00, 0, 0, 122, 0, 0, 0],
            [0x05, 0x00, 0, 0, 0, 0, 0, 0],
            [0xb7, 0x00, 0, 0, 1, 0, 0, 0],
            [0x95, 0x00, 0, 0, 0, 0, 0, 0],
        ];
        let got = asm.finish().expect("all bound");
        assert_eq!(got, want.concat());
    }

    #[test]
    fn a_jump_must_lead_forwards_and_not_too_far() {
        let mut asm = Asm::default();
        let label = asm.label();
        asm.jump(label);
        assert_eq!(asm.finish(), Err(AsmError::Unbound));
        let mut asm = Asm::default();
        let label = asm.label();
        asm.bind(label);
        asm.jump(label);
        assert_eq!(asm.finish(), Err(AsmError::Unbound));
        let mut asm = Asm::default();
        let label = asm.label();
        asm.jump(label);
        (0..40_000).for_each(|_| asm.exit());
        asm.bind(label);
        assert_eq!(asm.finish(), Err(AsmError::TooLong));
    }
}
