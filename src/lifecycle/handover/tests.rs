//! What two versions say to each other, and what becomes of it when one of them says something else or nothing.

use std::os::fd::AsRawFd as _;

use super::*;
use crate::net::listen::tests::loopback_listener;

fn links() -> (Heir, Link) {
    let (ours, theirs) = Link::pair().expect("a pair");
    (Heir::new(ours).expect("watched"), Link::from_given(theirs).expect("a link"))
}

fn ready() -> Ready {
    Ready { version: Version::own(), moved: 1, opened: vec!["hbone".into()], left: Vec::new() }
}

/// The successor's blocking part beside the predecessor's.
async fn received(link: Link) -> (Result<Legacy, HandoverError>, Link) {
    tokio::task::spawn_blocking(move || (receive(&link), link)).await.expect("joined")
}

/// A predecessor and its successor, and that one's link, after a gift without sockets.
async fn given_nothing() -> (Heir, Legacy, Link) {
    let (heir, theirs) = links();
    let nothing = Gift::default();
    let (given, (legacy, link)) = tokio::join!(heir.give(&nothing), received(theirs));
    given.expect("given");
    (heir, legacy.expect("received"), link)
}

#[tokio::test]
async fn all_sockets_arrive_by_name_however_many() {
    let (heir, theirs) = links();
    let listener = loopback_listener();
    let (old_link, old_end) = Link::pair().expect("a pair");
    let old_version = Version { pid: 7, version: "0.0.9".into() };
    let old = Draining::new(old_version.clone(), old_link).expect("watched");
    let mut gift = Gift::default();
    for index in 0..600 {
        gift.listener(if index % 2 == 0 { "outbound" } else { "inbound" }, listener.as_fd());
    }
    gift.draining(&old);
    let (given, (legacy, link)) = tokio::join!(heir.give(&gift), received(theirs));
    given.expect("given");
    let legacy = legacy.expect("received");
    assert_eq!(legacy.from, Version::own());
    assert_eq!(legacy.sockets.len(), 600);
    assert!(legacy.sockets.iter().step_by(2).all(|(name, _)| name == "outbound"));
    assert!(legacy.sockets.iter().skip(1).step_by(2).all(|(name, _)| name == "inbound"));
    let last = std::net::TcpListener::from(legacy.sockets.into_iter().next_back().expect("some").1);
    assert_eq!(last.local_addr().expect("bound"), listener.local_addr().expect("bound"));
    assert_ne!(last.as_raw_fd(), listener.as_raw_fd());

    // The link to the one before works from its new place.
    let [(version, passed_on)]: [_; 1] = legacy.draining.try_into().expect("one");
    assert_eq!(version, old_version);
    let draining = Draining::new(version, Link::from_given(passed_on).expect("a link")).expect("watched");
    drop(old);
    let first = Heir::new(Link::from_given(old_end).expect("a link")).expect("watched");
    let left = Left { connections: 3, until: Some("2026-01-01T00:00:00Z".into()) };
    first.tell(&left);
    assert_eq!(draining.left().await, Some(left));
    drop(first);
    assert_eq!(draining.left().await, None);

    let predecessor = Draining::new(legacy.from, link).expect("watched");
    let both = tokio::join!(
        async {
            let told = heir.ready(Duration::from_secs(5)).await;
            heir.take_over().await.map(|()| told)
        },
        async {
            let leave = predecessor.ready(ready()).await;
            predecessor.accepting();
            leave
        }
    );
    assert_eq!(both.0.expect("accepting").expect("ready"), ready());
    assert_eq!(both.1.expect("leave"), Leave::Given);
}

#[tokio::test]
async fn a_gift_of_nothing_arrives_too() {
    let (_heir, legacy, _link) = given_nothing().await;
    assert!(legacy.sockets.is_empty());
}

#[tokio::test]
async fn a_successor_that_fails_says_why() {
    let (heir, _legacy, link) = given_nothing().await;
    fail(&link, "mesh.yaml:3: no such key");
    drop(link);
    let error = heir.ready(Duration::from_secs(5)).await.expect_err("failed");
    assert_eq!(error.to_string(), "mesh.yaml:3: no such key");
    assert!(matches!(heir.ready(Duration::from_secs(5)).await, Err(HandoverError::Ended)));
}

#[tokio::test(start_paused = true)]
async fn a_successor_that_says_nothing_is_given_up() {
    let (heir, _theirs) = links();
    assert!(matches!(heir.give(&Gift::default()).await, Err(HandoverError::Silent(_))));
    assert!(matches!(heir.ready(Duration::from_secs(60)).await, Err(HandoverError::Late(_))));
    // Once it may serve only its end is a failure.
    assert!(timeout(Duration::from_secs(3600), heir.take_over()).await.is_err());
    drop(_theirs);
    assert!(matches!(heir.take_over().await, Err(HandoverError::Ended)));
}

#[tokio::test]
async fn a_predecessor_that_dies_leaves_its_place() {
    let (heir, legacy, link) = given_nothing().await;
    let predecessor = Draining::new(legacy.from, link).expect("watched");
    let (leave, ()) = tokio::join!(predecessor.ready(ready()), async { drop(heir) });
    assert_eq!(leave.expect("no error"), Leave::Orphaned);
    assert_eq!(predecessor.ready(ready()).await.expect("no error"), Leave::Orphaned, "gone before it was told");
}

/// One that stands still has not died, and may go on.
#[tokio::test(start_paused = true)]
async fn a_predecessor_that_stands_still_is_not_waited_for_for_ever() {
    let (_heir, theirs) = links();
    let predecessor = Draining::new(Version::own(), theirs).expect("watched");
    let error = predecessor.ready(ready()).await.expect_err("no leave");
    assert_eq!(error.to_string(), "it did not answer within 30s");
}

#[tokio::test]
async fn what_is_taken_back_is_not_taken_over() {
    let (heir, legacy, link) = given_nothing().await;
    let predecessor = Draining::new(legacy.from, link).expect("watched");
    heir.withdraw();
    drop(heir);
    let leave = predecessor.ready(ready()).await;
    assert!(matches!(leave, Err(HandoverError::Withdrawn)), "its word came before the end of the link: {leave:?}");
}

#[test]
fn what_is_not_this_protocol_is_refused() {
    let (ours, theirs) = Link::pair().expect("a pair");
    let theirs = Link::from_given(theirs).expect("a link");
    let say = |text: &str| ours.send(&serde_json::from_str::<serde_json::Value>(text).expect("JSON"), &[]);
    let from = r#""from": {"pid": 1, "version": "9"}"#;
    say(&format!(r#"{{"sockets": {{"protocol": 2, {from}, "items": [], "more": false}}}}"#)).expect("sent");
    let error = receive(&theirs).expect_err("another protocol").to_string();
    assert_eq!(error, "it speaks version 2 of the handover, and not 1");
    say(&format!(r#"{{"sockets": {{"protocol": 1, {from}, "items": [{{"listener": "a"}}], "more": false}}}}"#))
        .expect("sent");
    assert!(matches!(receive(&theirs), Err(HandoverError::Confused)), "a name without a socket");
    say(r#""takeOver""#).expect("sent");
    assert!(matches!(receive(&theirs), Err(HandoverError::Confused)));
    say(&format!(r#"{{"sockets": {{"protocol": 1, {from}, "items": [], "more": false, "new": 1}}}}"#)).expect("sent");
    receive(&theirs).expect("a member that a later version has added");
    drop(ours);
    assert!(matches!(receive(&theirs), Err(HandoverError::Ended)));
}
