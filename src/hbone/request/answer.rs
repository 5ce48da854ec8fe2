//! The answer to a CONNECT: 200, or a status with a word for the far side's log.
//!
//! The word says what the status cannot (503 is a dozen things). It is a header of our own, so a peer that is not adit
//! sends none and ignores ours; read from a peer it is a claim like the others: bounded, for logs only.

use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::claims::Claims;
use super::{BAGGAGE, REASON};

const MAX_REASON: usize = 40;

/// The stream is accepted; `baggage` describes the workload that it reached.
#[must_use]
pub fn accepted(baggage: Option<&HeaderValue>) -> Response<()> {
    let mut response = answer(StatusCode::OK);
    if let Some(baggage) = baggage {
        response.headers_mut().insert(BAGGAGE.clone(), baggage.clone());
    }
    response
}

/// The stream is refused. `word` is lower-case letters and underscores, at most 40; any other is not sent.
#[must_use]
pub fn refused(status: StatusCode, word: &str) -> Response<()> {
    let mut response = answer(status);
    if is_reason(word.as_bytes())
        && let Ok(word) = HeaderValue::from_str(word)
    {
        response.headers_mut().insert(REASON.clone(), word);
    }
    response
}

fn answer(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}

/// Why the far side refused a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub status: StatusCode,
    /// Its word, if it sent exactly one that is sound.
    pub reason: Option<Box<str>>,
}

/// Reads an answer: 200 alone accepts.
///
/// # Errors
/// Any other status.
pub fn read_answer<T>(response: &Response<T>) -> Result<Claims<'_>, Refused> {
    let headers = response.headers();
    match response.status() {
        StatusCode::OK => Ok(claims_of(headers)),
        status => Err(Refused { status, reason: reason_of(headers) }),
    }
}

/// What an answer that accepts says of the far side.
#[must_use]
pub fn claims_of(headers: &HeaderMap) -> Claims<'_> {
    Claims(headers)
}

/// The word that came with a refusal.
#[must_use]
pub fn reason_of(headers: &HeaderMap) -> Option<Box<str>> {
    let mut words = headers.get_all(&REASON).iter();
    match (words.next(), words.next()) {
        (Some(word), None) if is_reason(word.as_bytes()) => word.to_str().ok().map(Box::from),
        _ => None,
    }
}

fn is_reason(word: &[u8]) -> bool {
    (1..=MAX_REASON).contains(&word.len()) && word.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::CloseReason;

    #[test]
    fn an_accepted_stream() {
        let bare = accepted(None);
        assert_eq!((bare.status(), bare.headers().len()), (StatusCode::OK, 0));
        let baggage = HeaderValue::from_static("k8s.namespace.name=shop");
        let full = accepted(Some(&baggage));
        assert_eq!(full.headers().len(), 1);
        let claims = read_answer(&full).expect("accepted");
        assert_eq!(&*claims.peer().expect("labels").namespace, "shop");
    }

    #[test]
    fn a_refused_stream() {
        for status in
            [200_u16, 201, 204, 302, 400, 401, 503].map(|status| StatusCode::from_u16(status).expect("status"))
        {
            let refusal = read_answer(&refused(status, "connect_refused")).err();
            let want = Refused { status, reason: Some("connect_refused".into()) };
            assert_eq!(refusal, (status != StatusCode::OK).then_some(want));
        }
    }

    #[test]
    fn every_close_reason_is_a_word() {
        for reason in CloseReason::ALL {
            assert!(is_reason(reason.as_str().as_bytes()), "{}", reason.as_str());
        }
    }

    #[test]
    fn an_unsound_word_is_neither_sent_nor_read() {
        for word in ["", "Denied", "no way", "a-b", "a1", "a\nb", "caf\u{e9}", &"a".repeat(41)] {
            assert!(refused(StatusCode::BAD_REQUEST, word).headers().is_empty(), "{word:?}");
            let mut response = answer(StatusCode::BAD_REQUEST);
            if let Ok(value) = HeaderValue::from_bytes(word.as_bytes()) {
                response.headers_mut().insert(REASON.clone(), value);
            }
            assert_eq!(read_answer(&response).err().and_then(|refused| refused.reason), None, "{word:?}");
        }
        let mut twice = refused(StatusCode::BAD_REQUEST, "denied");
        twice.headers_mut().append(REASON.clone(), HeaderValue::from_static("other"));
        assert_eq!(read_answer(&twice).err().and_then(|refused| refused.reason), None);
    }
}
