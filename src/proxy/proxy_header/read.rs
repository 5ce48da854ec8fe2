//! From bytes to a PROXY protocol header, of version 1 or 2. Pure.
//!
//! In: what has arrived so far. Out: the header and its length, or that more is needed, or what is wrong. Whatever cannot
//! become a header is refused at its first wrong byte, so that nobody waits for the rest of it; every prefix of a valid
//! header is incomplete. Nothing is read generously: two readers that see different clients in the same bytes are how
//! addresses are forged.
//!
//! Deliberately absent: what the additional fields of version 2 say. They are checked for their lengths and passed over; the
//! identity that ztunnel writes there proves nothing outside of a tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::write::SIGNATURE;

/// The longest header of version 1, CR and LF included.
pub const LONGEST_V1: usize = 107;
/// What may follow the first 16 bytes of version 2: addresses and additional fields.
pub const LONGEST_V2_REST: usize = 4096;
/// The longest header.
pub const LONGEST: usize = V2_START + LONGEST_V2_REST;

const V1_START: &[u8] = b"PROXY ";
/// As text: an IPv6 one that ends in an IPv4 one.
const LONGEST_ADDRESS: usize = 45;
/// Signature, version with command, family, length.
const V2_START: usize = 16;
/// Type and length of an additional field.
const FIELD_START: usize = 3;

/// Who connected, and where to, as the header says.
pub type Ends = (SocketAddr, SocketAddr);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// It may become one.
    Incomplete,
    Header {
        /// How many bytes it has; what follows is the application's.
        length: usize,
        /// `None`: it says that it does not know (version 1 `UNKNOWN`, version 2 without addresses), or that the peer itself is the
        /// client, as in health checks (version 2 `LOCAL`). Either way the client is the socket's peer.
        source: Option<Ends>,
    },
}

/// Why these bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the first bytes are those of neither version")]
    Signature,
    #[error("longer than a header may be")]
    TooLong,
    #[error("the line is not TCP4, TCP6 or UNKNOWN with two addresses and two ports")]
    Line,
    #[error("not an address of the family that the header names")]
    Address,
    #[error("not a port")]
    Port,
    #[error("version {0} is not 2")]
    Version(u8),
    #[error("command {0} is neither LOCAL nor PROXY")]
    Command(u8),
    #[error("{0:#04x} is not TCP over IPv4 or IPv6")]
    Family(u8),
    #[error("too short for its addresses")]
    TooShort,
    #[error("an additional field is longer than the header")]
    Field,
}

/// # Errors
/// What is wrong, as soon as it is there.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    if starts(bytes, V1_START) { parse_v1(bytes) } else { parse_v2(bytes) }
}

/// Whether the bytes begin like `start`, as far as both go.
fn starts(bytes: &[u8], start: &[u8]) -> bool {
    bytes.iter().zip(start).all(|(byte, wanted)| byte == wanted)
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let within = bytes.get(..LONGEST_V1).unwrap_or(bytes);
    let Some(end) = within.iter().position(|byte| *byte == b'\n') else {
        return line_so_far(within);
    };
    let line = within.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(Malformed::Line)?;
    let line = std::str::from_utf8(line).or(Err(Malformed::Line))?;
    if line.contains('\r') {
        return Err(Malformed::Line);
    }
    let said = line.strip_prefix("PROXY ").ok_or(Malformed::Signature)?;
    Ok(Parsed::Header { length: end + 1, source: line_ends(said)? })
}

/// Of a line without an end: whether it can still become a header.
fn line_so_far(line: &[u8]) -> Result<Parsed, Malformed> {
    if line.len() == LONGEST_V1 {
        return Err(Malformed::TooLong);
    }
    let Some(said) = line.strip_prefix(V1_START) else { return Ok(Parsed::Incomplete) };
    if let Some(said) = said.strip_suffix(b"\r") {
        let said = std::str::from_utf8(said).or(Err(Malformed::Line))?;
        return line_ends(said).map(|_| Parsed::Incomplete);
    }
    if starts(said, b"UNKNOWN") {
        let after = said.get(b"UNKNOWN".len());
        let plain = said.iter().all(|byte| is_printable(*byte));
        return if plain && after.is_none_or(|byte| *byte == b' ') {
            Ok(Parsed::Incomplete)
        } else {
            Err(Malformed::Line)
        };
    }
    let v6 = match said.get(..said.len().min(5)).unwrap_or_default() {
        start if starts(start, b"TCP4 ") => false,
        start if starts(start, b"TCP6 ") => true,
        _ => return Err(Malformed::Line),
    };
    fields_so_far(said.get(5..).unwrap_or_default(), v6)
}

/// Two addresses and two ports, the last of them cut anywhere.
fn fields_so_far(fields: &[u8], v6: bool) -> Result<Parsed, Malformed> {
    let fields: Vec<&[u8]> = fields.split(|byte| *byte == b' ').collect();
    for (place, field) in fields.iter().enumerate() {
        let whole = place + 1 < fields.len();
        let text = std::str::from_utf8(field).or(Err(Malformed::Line))?;
        match place {
            0 | 1 if whole => drop(address(text, v6)?),
            0 | 1 if field.iter().all(|byte| is_of_address(*byte, v6)) && field.len() <= LONGEST_ADDRESS => {}
            0 | 1 => return Err(Malformed::Address),
            2 if whole => drop(port(text)?),
            2 | 3 if text.is_empty() => {}
            // Each beginning of a port is a port.
            2 | 3 => drop(port(text)?),
            _ => return Err(Malformed::Line),
        }
    }
    Ok(Parsed::Incomplete)
}

fn is_printable(byte: u8) -> bool {
    (0x20..0x7f).contains(&byte)
}

fn is_of_address(byte: u8, v6: bool) -> bool {
    byte.is_ascii_digit() || byte == b'.' || v6 && (byte.is_ascii_hexdigit() || byte == b':')
}

/// What a line says after `PROXY `. What follows UNKNOWN is to be passed over, says the specification.
fn line_ends(said: &str) -> Result<Option<Ends>, Malformed> {
    if let Some(rest) = said.strip_prefix("UNKNOWN") {
        let plain = rest.bytes().all(is_printable);
        return if plain && (rest.is_empty() || rest.starts_with(' ')) { Ok(None) } else { Err(Malformed::Line) };
    }
    let mut fields = said.split(' ');
    let mut field = || fields.next().ok_or(Malformed::Line);
    let v6 = match field()? {
        "TCP4" => false,
        "TCP6" => true,
        _ => return Err(Malformed::Line),
    };
    let (source, destination) = (address(field()?, v6)?, address(field()?, v6)?);
    let (from, to) = (port(field()?)?, port(field()?)?);
    if field().is_ok() {
        return Err(Malformed::Line);
    }
    Ok(Some((SocketAddr::new(source, from), SocketAddr::new(destination, to))))
}

/// The standard library reads dotted decimals strictly (no leading zeros, four parts) and no zones.
fn address(text: &str, v6: bool) -> Result<IpAddr, Malformed> {
    if v6 {
        text.parse::<Ipv6Addr>().map(IpAddr::V6).or(Err(Malformed::Address))
    } else {
        text.parse::<Ipv4Addr>().map(IpAddr::V4).or(Err(Malformed::Address))
    }
}

fn port(text: &str) -> Result<u16, Malformed> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = text.len() > 1 && text.starts_with('0');
    if !digits || leading_zero {
        return Err(Malformed::Port);
    }
    text.parse().or(Err(Malformed::Port))
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, Malformed> {
    if !starts(bytes, &SIGNATURE) {
        return Err(Malformed::Signature);
    }
    let Some(command) = bytes.get(12) else { return Ok(Parsed::Incomplete) };
    let local = match (command >> 4, command & 0xf) {
        (2, 0) => true,
        (2, 1) => false,
        (2, command) => return Err(Malformed::Command(command)),
        (version, _) => return Err(Malformed::Version(version)),
    };
    let Some(family) = bytes.get(13) else { return Ok(Parsed::Incomplete) };
    // What a LOCAL header says beside is to be passed over, whatever it is.
    let addresses = match family {
        _ if local => None,
        0x00 => None,
        0x11 => Some(false),
        0x21 => Some(true),
        other => return Err(Malformed::Family(*other)),
    };
    let Some(length) = bytes.get(14..V2_START) else {
        // Its first byte alone may be too much.
        return match bytes.get(14) {
            Some(high) if usize::from(*high) << 8 > LONGEST_V2_REST => Err(Malformed::TooLong),
            _ => Ok(Parsed::Incomplete),
        };
    };
    let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let room = match addresses {
        None => 0,
        Some(false) => 12,
        Some(true) => 36,
    };
    if length > LONGEST_V2_REST {
        return Err(Malformed::TooLong);
    }
    if length < room {
        return Err(Malformed::TooShort);
    }
    let there = bytes.get(V2_START..).unwrap_or_default();
    let there = there.get(..length).unwrap_or(there);
    // Where no addresses are, it is not known what else is.
    if addresses.is_some() {
        check_fields(there.get(room..).unwrap_or_default(), length - room)?;
    }
    if there.len() < length {
        return Ok(Parsed::Incomplete);
    }
    let source = addresses.map(|v6| block(there, v6)).transpose()?;
    Ok(Parsed::Header { length: V2_START + length, source })
}

/// Additional fields, of which `fields` have arrived and which have `length` bytes in all: each must end where another begins
/// or the header ends.
fn check_fields(mut fields: &[u8], mut length: usize) -> Result<(), Malformed> {
    while length > 0 {
        if length < FIELD_START {
            return Err(Malformed::Field);
        }
        let Some(&[_, high, low]) = fields.get(..FIELD_START) else { return Ok(()) };
        let whole = FIELD_START + usize::from(u16::from_be_bytes([high, low]));
        length = length.checked_sub(whole).ok_or(Malformed::Field)?;
        fields = fields.get(whole..).unwrap_or_default();
    }
    Ok(())
}

fn block(bytes: &[u8], v6: bool) -> Result<Ends, Malformed> {
    let width = if v6 { 16 } else { 4 };
    let (source, rest) = bytes.split_at_checked(width).ok_or(Malformed::TooShort)?;
    let (destination, rest) = rest.split_at_checked(width).ok_or(Malformed::TooShort)?;
    let Some(&[from_high, from_low, to_high, to_low]) = rest.get(..4) else { return Err(Malformed::TooShort) };
    let ends = |ip: &[u8], port: [u8; 2]| Some(SocketAddr::new(ip_of(ip)?, u16::from_be_bytes(port)));
    let source = ends(source, [from_high, from_low]).ok_or(Malformed::TooShort)?;
    let destination = ends(destination, [to_high, to_low]).ok_or(Malformed::TooShort)?;
    Ok((source, destination))
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests;
