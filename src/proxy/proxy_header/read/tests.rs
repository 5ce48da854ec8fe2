//! The PROXY protocol reader: every header, every prefix of one, and everything else.

use proptest::prelude::*;

use super::super::write::{proxy_v1, proxy_v2};
use super::*;

fn ends(source: &str, destination: &str) -> Option<Ends> {
    Some((source.parse().expect("address"), destination.parse().expect("address")))
}

/// A header of version 2 from its command, family and what follows.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
    [&SIGNATURE[..], &[command, family], &length, rest].concat()
}

const IPV4: [u8; 12] = [10, 0, 0, 1, 10, 0, 0, 2, 0x04, 0xd2, 0x1f, 0x90];
const IPV6: [u8; 36] = [
    0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 1,
    0xbb,
];

/// What a whole header says; and nothing of it is enough before its last byte.
fn whole(bytes: &[u8]) -> Option<Ends> {
    for cut in 0..bytes.len() {
        assert_eq!(parse(&bytes[..cut]), Ok(Parsed::Incomplete), "cut at {cut}");
    }
    let payload = [bytes, b"PROXY payload\r\n"].concat();
    assert_eq!(parse(bytes), parse(&payload), "what follows makes no difference");
    match parse(bytes) {
        Ok(Parsed::Header { length, source }) if length == bytes.len() => source,
        other => panic!("{other:?} of {:?}", String::from_utf8_lossy(bytes)),
    }
}

#[test]
fn version_1() {
    let longest =
        "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    let widest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let unknown = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_V1 - 16));
    let rows = [
        ("PROXY TCP4 10.0.0.1 10.0.0.2 1234 8080\r\n", ends("10.0.0.1:1234", "10.0.0.2:8080")),
        ("PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n", ends("255.255.255.255:65535", "0.0.0.0:0")),
        ("PROXY TCP6 2001:db8::1 fd00::2 1 443\r\n", ends("[2001:db8::1]:1", "[fd00::2]:443")),
        ("PROXY TCP6 ::ffff:10.0.0.1 ::1 1 2\r\n", ends("[::ffff:10.0.0.1]:1", "[::1]:2")),
        ("PROXY TCP6 FD00:0:0::A fd00::2 1 2\r\n", ends("[fd00::a]:1", "[fd00::2]:2")),
        (longest, ends(&format!("[{widest}]:65535"), &format!("[{widest}]:65535"))),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN ffff::1 anything at all 1 2\r\n", None),
        (unknown.as_str(), None),
    ];
    assert_eq!(rows.len(), 9);
    assert_eq!((longest.len(), unknown.len()), (104, LONGEST_V1));
    for (line, want) in rows {
        assert_eq!(whole(line.as_bytes()), want, "{line:?}");
    }
}

#[test]
fn what_is_not_version_1() {
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_V1));
    // (bytes, what is wrong, how many of them tell)
    let rows: [(&[u8], Malformed, usize); 37] = [
        (b"GET / HTTP/1.1\r\n", Malformed::Signature, 1),
        (b"proxy TCP4", Malformed::Signature, 1),
        (b"PROXI", Malformed::Signature, 5),
        (b"PROXY\tTCP4", Malformed::Signature, 6),
        (b"PROXY\r\n", Malformed::Signature, 6),
        (b"\0", Malformed::Signature, 1),
        (b"PROXY \r\n", Malformed::Line, 7),
        (b"PROXY \n", Malformed::Line, 7),
        (b"PROXY  TCP4", Malformed::Line, 7),
        (b"PROXY TCP5 ", Malformed::Line, 10),
        (b"PROXY TCP4\t", Malformed::Line, 11),
        (b"PROXY UDP4", Malformed::Line, 8),
        (b"PROXY UNIX", Malformed::Line, 9),
        (b"PROXY UNKNOWNS\r\n", Malformed::Line, 14),
        (b"PROXY UNKNOWN \x01", Malformed::Line, 15),
        (b"PROXY UNKNOWN\n", Malformed::Line, 14),
        (b"PROXY UNKNOWN\rx", Malformed::Line, 15),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\n", Malformed::Line, 33),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1\r\n", Malformed::Line, 31),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2 \r\n", Malformed::Line, 33),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2 3\r\n", Malformed::Line, 33),
        (b"PROXY TCP4 10.0.0.1  10.0.0.2 1 2\r\n", Malformed::Address, 21),
        (b"PROXY TCP4 10.0.0.01 10.0.0.2 1 2\r\n", Malformed::Address, 21),
        (b"PROXY TCP4 10.0.0 10.0.0.2 1 2\r\n", Malformed::Address, 18),
        (b"PROXY TCP4 10.0.0.256 10.0.0.2 1 2\r\n", Malformed::Address, 22),
        (b"PROXY TCP4 0x0a.0.0.1 10.0.0.2 1 2\r\n", Malformed::Address, 13),
        (b"PROXY TCP4 ::1 ::2 1 2\r\n", Malformed::Address, 12),
        (b"PROXY TCP6 10.0.0.1 10.0.0.2 1 2\r\n", Malformed::Address, 20),
        (b"PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n", Malformed::Address, 19),
        (b"PROXY TCP6 [::1] ::2 1 2\r\n", Malformed::Address, 12),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 01 2\r\n", Malformed::Port, 31),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 00 2\r\n", Malformed::Port, 31),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 65536 2\r\n", Malformed::Port, 34),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 +1 2\r\n", Malformed::Port, 30),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 -2\r\n", Malformed::Port, 32),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2  2\r\n", Malformed::Port, 30),
        (long.as_bytes(), Malformed::TooLong, LONGEST_V1),
    ];
    refused(&rows);
}

#[test]
fn version_2() {
    let fields = [&[0x04, 0, 0, 0xd0, 0, 3, b'a', b'b', b'c'][..], &[0x20, 0, 1, 0]].concat();
    let full = [&IPV4[..], &[0x04, 0x0f, 0xf1], &[0; 4081]].concat();
    let four = ends("10.0.0.1:1234", "10.0.0.2:8080");
    let six = ends("[2001:db8::1]:1", "[fd00::2]:443");
    let rows = [
        (v2(0x21, 0x11, &IPV4), four),
        (v2(0x21, 0x21, &IPV6), six),
        (v2(0x21, 0x11, &[&IPV4[..], &fields].concat()), four),
        (v2(0x21, 0x21, &[&IPV6[..], &fields].concat()), six),
        (v2(0x21, 0x11, &full), four),
        (v2(0x21, 0x00, &[]), None),
        (v2(0x21, 0x00, &fields), None),
        (v2(0x21, 0x00, b"who knows what"), None),
        (v2(0x20, 0x00, &[]), None),
        (v2(0x20, 0x11, &IPV4), None),
        (v2(0x20, 0x11, &[1, 2, 3]), None),
        (v2(0x20, 0x31, b"/run/socket"), None),
        (v2(0x20, 0xff, &[0xff; 7]), None),
    ];
    assert_eq!(rows.len(), 13);
    assert_eq!(full.len(), LONGEST_V2_REST);
    for (bytes, want) in rows {
        assert_eq!(whole(&bytes), want, "{bytes:02x?}");
    }
}

#[test]
fn what_is_not_version_2() {
    let wrong = |command, family, rest: &[u8]| v2(command, family, rest);
    let short_field = wrong(0x21, 0x11, &[&IPV4[..], &[0x04, 0, 1]].concat());
    let long_field = wrong(0x21, 0x11, &[&IPV4[..], &[0x04, 0, 0, 0x04, 0xff, 0xff, 1, 2]].concat());
    let half_field = wrong(0x21, 0x11, &[&IPV4[..], &[0x04, 0]].concat());
    let too_long = wrong(0x21, 0x11, &[0; LONGEST_V2_REST + 1]);
    let local_too_long = wrong(0x20, 0x00, &[0; 0x1100]);
    let rows: [(&[u8], Malformed, usize); 16] = [
        (b"\r\n\r\n\0\r\nQUIX", Malformed::Signature, 11),
        (b"\r\r", Malformed::Signature, 2),
        (&wrong(0x11, 0x11, &IPV4), Malformed::Version(1), 13),
        (&wrong(0x31, 0x11, &IPV4), Malformed::Version(3), 13),
        (&wrong(0x22, 0x11, &IPV4), Malformed::Command(2), 13),
        (&wrong(0x2f, 0x11, &IPV4), Malformed::Command(15), 13),
        (&wrong(0x21, 0x12, &IPV4), Malformed::Family(0x12), 14),
        (&wrong(0x21, 0x22, &IPV6), Malformed::Family(0x22), 14),
        (&wrong(0x21, 0x31, &[0; 216]), Malformed::Family(0x31), 14),
        (&wrong(0x21, 0x10, &IPV4), Malformed::Family(0x10), 14),
        (&wrong(0x21, 0x11, &[0; 11]), Malformed::TooShort, 16),
        (&wrong(0x21, 0x21, &[0; 35]), Malformed::TooShort, 16),
        (&short_field, Malformed::Field, 31),
        (&long_field, Malformed::Field, 34),
        (&half_field, Malformed::Field, 16),
        (&too_long, Malformed::TooLong, 16),
    ];
    refused(&rows);
    refused(&[(&local_too_long, Malformed::TooLong, 15)]);
}

/// Nobody waits for more than it takes to see that something is wrong, and more does not make it right.
fn refused(rows: &[(&[u8], Malformed, usize)]) {
    for (bytes, want, tells) in rows {
        let shown = String::from_utf8_lossy(bytes);
        for count in 0..*tells {
            assert_eq!(parse(&bytes[..count]), Ok(Parsed::Incomplete), "{count} of {shown:?}");
        }
        assert_eq!(parse(&bytes[..*tells]), Err(*want), "{tells} of {shown:?}");
        for count in *tells..=bytes.len() {
            assert!(parse(&bytes[..count]).is_err(), "{count} of {shown:?}");
        }
    }
}

/// Bytes that are nearly a header: one, with some places changed, cut or followed by others.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let any_ip = || any::<(IpAddr, u16)>().prop_map(SocketAddr::from);
    let header =
        (any_ip(), any_ip(), any::<bool>(), any::<Option<String>>()).prop_map(|(from, to, first, identity)| {
            if first { proxy_v1(from, to) } else { proxy_v2(from, to, identity.as_deref()) }
        });
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (header, changes, prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(mut bytes, changes, rest)| {
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.extend(rest);
        bytes
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(from: (IpAddr, u16), to: (IpAddr, u16), identity: Option<String>) {
        let (from, to) = (SocketAddr::from(from), SocketAddr::from(to));
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let (plain_from, plain_to) = (canonical(from), canonical(to));
        let want = (plain_from.is_ipv4() == plain_to.is_ipv4()).then_some((plain_from, plain_to));
        prop_assert_eq!(whole(&proxy_v1(from, to)), want);
        prop_assert_eq!(whole(&proxy_v2(from, to, identity.as_deref())), want);
    }

    /// However the bytes come, they mean the same: nothing that was refused is accepted later, nothing that was a header becomes
    /// another, and no beginning of a header is refused.
    #[test]
    fn a_byte_at_a_time(bytes in prop_oneof![nearly(), prop::collection::vec(any::<u8>(), 0..200)]) {
        let mut before = Ok(Parsed::Incomplete);
        for count in 0..=bytes.len() {
            let now = parse(&bytes[..count]);
            match before {
                Ok(Parsed::Incomplete) => {}
                Ok(Parsed::Header { length, .. }) => {
                    prop_assert!(length <= count);
                    prop_assert_eq!(now, before);
                }
                Err(_) => prop_assert!(now.is_err(), "{:?} after {:?}", now, before),
            }
            if let Ok(Parsed::Header { length, .. }) = now {
                prop_assert!(length <= LONGEST);
            }
            before = now;
        }
    }

    /// Both versions begin with fixed bytes: what begins otherwise is the application's.
    #[test]
    fn garbage_is_refused_at_once(first: u8, rest in prop::collection::vec(any::<u8>(), 0..50)) {
        prop_assume!(first != b'P' && first != b'\r');
        prop_assert_eq!(parse(&[first]), Err(Malformed::Signature));
        prop_assert_eq!(parse(&[&[first][..], &rest].concat()), Err(Malformed::Signature));
    }
}
