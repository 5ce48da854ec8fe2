//! `traceparent` (W3C Trace Context): a name for one connection that both ends of a tunnel can log.
//!
//! Sent at random, read from a peer as a claim. What does not keep to the grammar is as if it were not there.

use std::fmt;

use http::HeaderValue;

use super::scratch::Scratch;

const LENGTH: usize = 55;

/// Neither number is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Traceparent {
    pub trace_id: u128,
    pub span_id: u64,
}

impl Traceparent {
    #[must_use]
    pub fn random(random: &mut fastrand::Rng) -> Self {
        Self { trace_id: random.u128(1..), span_id: random.u64(1..) }
    }

    /// `00-<trace id>-<span id>-<flags>` in lower case, of any version that looks like it.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() == LENGTH)?;
        let lower = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let mut parts = text.split('-');
        let mut part = |length: usize| parts.next().filter(|part| part.len() == length && lower(part));
        let version = part(2)?;
        let trace_id = u128::from_str_radix(part(32)?, 16).ok()?;
        let span_id = u64::from_str_radix(part(16)?, 16).ok()?;
        part(2)?;
        (version != "ff" && trace_id > 0 && span_id > 0).then_some(Self { trace_id, span_id })
    }

    pub(super) fn header(self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(Scratch::<LENGTH>::of(format_args!("{self}")).bytes()).ok()
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-00", self.trace_id, self.span_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_form_of_the_header() {
        let trace = Traceparent { trace_id: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, span_id: 0x00f0_67aa_0ba9_02b7 };
        assert_eq!(trace.to_string(), "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00");
        assert_eq!(trace.header().expect("a header"), "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00");
        let sampled = b"00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";
        assert_eq!(Traceparent::parse(sampled), Some(trace));
    }

    #[test]
    fn what_is_not_read() {
        for text in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-0",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-000",
            "ff-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00",
            "00-0AF7651916CD43DD8448EB211C80319C-00f067aa0ba902b7-00",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-00",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-00",
            "00-+af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00",
            "00-0af7651916cd43dd8448eb211c80319c00f067aa0ba902b7--00",
            "00 0af7651916cd43dd8448eb211c80319c 00f067aa0ba902b7 00",
        ] {
            assert_eq!(Traceparent::parse(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn random_ones_round_trip(seed in any::<u64>()) {
            let trace = Traceparent::random(&mut fastrand::Rng::with_seed(seed));
            prop_assert_eq!(Traceparent::parse(trace.to_string().as_bytes()), Some(trace));
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Traceparent::parse(&bytes);
        }
    }
}
