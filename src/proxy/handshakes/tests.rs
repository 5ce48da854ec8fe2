//! The queue of handshakes: bounded, the newest first, and no work on those that are too late.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn non_zero(limit: usize) -> NonZeroUsize {
    NonZeroUsize::new(limit).expect("not zero")
}

fn taken(slots: &Slots) -> Option<Slot> {
    use std::task::{Context, Poll, Waker};
    let mut take = Box::pin(slots.clone().take());
    match take.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(slot) => slot,
        Poll::Pending => None,
    }
}

#[test]
fn the_newest_begins_first_and_the_oldest_is_shed_first() {
    let queue = Queue::default();
    let start = Instant::now();
    for number in 0..4_u32 {
        assert_eq!(queue.push(number, start + SECOND * number, SECOND * 10), None);
    }
    assert_eq!(queue.begin(), Some((3, start + SECOND * 13)));
    assert_eq!(queue.shed(start + SECOND * 8), None);
    // A tenth of its time is too little to begin with.
    assert_eq!(queue.shed(start + SECOND * 9), Some(0));
    assert_eq!(queue.shed(start + SECOND * 9), None);
    assert_eq!(queue.next_too_late(), Some(start + SECOND * 10));
    assert_eq!(queue.begin(), Some((2, start + SECOND * 12)));
    assert_eq!(queue.len(), 3, "two run and one waits");
    queue.done();
    queue.done();
    assert_eq!(queue.drop_one(), Some(1));
    assert!(queue.is_empty());
}

#[test]
fn a_full_queue_sheds_its_oldest() {
    let queue = Queue::default();
    let now = Instant::now();
    let shed: Vec<_> = (0..WAITING + 3).filter_map(|number| queue.push(number, now, SECOND)).collect();
    assert_eq!(shed, [0, 1, 2]);
    assert_eq!(queue.len(), WAITING);
}

/// Five times as many peers as there is capacity for, for a minute: what begins is complete in time, and the rest costs
/// nothing.
#[test]
fn under_overload_no_work_is_wasted() {
    let queue = Queue::default();
    let start = Instant::now();
    let (each, patience) = (Duration::from_millis(10), SECOND * 5);
    let (mut arrived, mut complete, mut wasted, mut shed) = (0_u32, 0_u32, 0_u32, 0_u32);
    let mut now = start;
    while now < start + SECOND * 60 {
        for _ in 0..5 {
            arrived += 1;
            shed += u32::from(queue.push(arrived, now, patience).is_some());
        }
        while queue.shed(now).is_some() {
            shed += 1;
        }
        let (_, deadline) = queue.begin().expect("there is always one");
        now += each;
        queue.done();
        if now <= deadline { complete += 1 } else { wasted += 1 }
    }
    assert_eq!((complete, wasted), (6000, 0));
    assert!(shed >= 22_000, "{shed}");
}

#[test]
fn slots_are_bounded_and_come_back() {
    let slots = Slots::new(non_zero(2));
    let (first, second) = (taken(&slots).expect("a slot"), taken(&slots).expect("a slot"));
    assert!(taken(&slots).is_none());
    assert_eq!(slots.running(), 2);
    drop(first);
    assert_eq!(slots.running(), 1);
    let third = taken(&slots).expect("it came back");
    // Lowered while all are lent: they run to their end, and nobody begins before that.
    slots.set_limit(non_zero(1));
    assert_eq!(slots.running(), 2);
    drop(second);
    assert_eq!(slots.running(), 1);
    assert!(taken(&slots).is_none());
    drop(third);
    assert_eq!(slots.running(), 0);
    let only = taken(&slots).expect("the only one");
    assert!(taken(&slots).is_none());
    slots.set_limit(non_zero(3));
    let more = [taken(&slots), taken(&slots)];
    assert!(more.iter().all(Option::is_some));
    assert!(taken(&slots).is_none());
    drop((only, more));
    assert_eq!(slots.running(), 0);
}

#[test]
fn a_limit_that_goes_down_and_up_again_while_lent() {
    let slots = Slots::new(non_zero(4));
    let lent: Vec<_> = (0..4).map(|_| taken(&slots).expect("a slot")).collect();
    slots.set_limit(non_zero(1));
    slots.set_limit(non_zero(3));
    assert!(taken(&slots).is_none());
    assert_eq!(slots.running(), 4);
    drop(lent);
    let again: Vec<_> = (0..4).map(|_| taken(&slots)).collect();
    assert_eq!(again.iter().flatten().count(), 3);
}

#[test]
fn ten_lines_a_second_for_the_whole_process() {
    let slots = Slots::new(non_zero(1));
    let now = std::time::Instant::now();
    let other = slots.clone();
    let said = (0..100).filter(|number| if number % 2 == 0 { &slots } else { &other }.admit_line(now)).count();
    assert_eq!(said, 10);
    assert_eq!(slots.left_out(now + SECOND), Some(90));
    assert_eq!(other.left_out(now + SECOND), None);
}

#[tokio::test(start_paused = true)]
async fn who_has_had_a_tenth_of_its_time_makes_room_for_one_that_waits() {
    let slots = Slots::new(non_zero(2));
    let lent = [taken(&slots).expect("a slot"), taken(&slots).expect("a slot")];
    let over = |after| tokio::time::timeout(after, slots.make_room(SECOND * 5));
    assert!(over(SECOND * 4).await.is_err(), "nobody waits");
    let mut waiting = Box::pin(slots.clone().take());
    assert!(polled(&mut waiting).await.is_none());
    assert!(over(SECOND / 4).await.is_err(), "not yet");
    assert!(over(SECOND).await.is_ok());
    assert!(over(SECOND).await.is_err(), "one is enough for one");
    drop(lent);
    let third = waiting.await;
    assert!(over(SECOND).await.is_err(), "nobody waits any more");
    drop(third);
    assert_eq!(slots.running(), 0);
}

/// Polls once.
async fn polled<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}
