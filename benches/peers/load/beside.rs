//! Small messages at a steady pace beside bulk uploads: how long the small ones wait.
//!
//! Every connection of the small ones has a message due each 20 ms, one after the other. A message counts from when it was due, also where the one before it was
//! not back by then: what a slow peer makes wait is not left out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::epoll::EventFlags;

use super::super::shape::Direction;
use super::bulk::{self, Flow};
use super::request::{self, Client, Echo, Totals};
use super::{Load, Measured, STALL, Window, socket};

const TALKERS: u32 = 100;
const SIZE: usize = 128;
const EVERY: Duration = Duration::from_millis(20);

/// Both ends of one connection with small messages.
struct Talker {
    client: Client,
    echo: Echo,
    /// When the messages that have not gone yet were due.
    due: VecDeque<Instant>,
    waiting: bool,
}

struct Crowd {
    flows: Vec<Flow>,
    talkers: Vec<Talker>,
    /// Of the small messages.
    totals: Totals,
    /// Bulk that has arrived.
    carried: u64,
}

pub(super) fn run(load: &mut Load, bulk: u32, window: &mut Window) -> Result<Measured> {
    let flows = bulk::open(load, Direction::Up, bulk)?;
    let (clients, echoes) = request::open(load, &[SIZE; TALKERS as usize], u64::from(bulk))?;
    let talker = |(client, echo)| Talker { client, echo, due: VecDeque::new(), waiting: false };
    let talkers = clients.into_iter().zip(echoes).map(talker).collect();
    let mut crowd = Crowd { flows, talkers, totals: Totals::default(), carried: 0 };
    crowd.carry(load, window)?;
    let sent = bulk::check(&crowd.flows)?;
    let Totals { sent: asked, received: answered, .. } = crowd.totals;
    if asked != answered {
        bail!("sent {asked} bytes in small messages, received {answered}");
    }
    for talker in crowd.talkers {
        request::close(load, talker.client, talker.echo)?;
    }
    window.measured(sent + asked, crowd.carried + answered)
}

impl Crowd {
    /// Until the window closes and everything under way has arrived.
    fn carry(&mut self, load: &mut Load, window: &mut Window) -> Result<()> {
        let (offer, mut scrap) = (vec![0x5a; bulk::OFFER], vec![0; bulk::SWALLOW]);
        let mut events = Vec::with_capacity(256);
        let (start, apart) = (Instant::now(), EVERY / TALKERS);
        let (mut turns, mut going, mut moved) = (0, true, start);
        while going || self.flows.iter().any(|flow| !flow.ended) || self.talkers.iter().any(|talker| talker.waiting) {
            while going && start + apart * turns <= Instant::now() {
                self.remind(load, turns % TALKERS, start + apart * turns)?;
                turns += 1;
            }
            load.bell.look(&mut events)?;
            if !events.is_empty() {
                moved = Instant::now();
            } else if moved.elapsed() > STALL {
                bail!("nothing moved for {STALL:?}");
            }
            for event in events.drain(..) {
                // Copied out, because the kernel's event is a packed struct.
                let (token, flags) = (event.data.u64(), event.flags);
                self.serve(load, token, flags, window, (&offer, &mut scrap), going)?;
            }
            if going && !window.turn(load, self.units())? {
                going = false;
                self.talkers.iter_mut().for_each(|talker| talker.due.clear());
                for flow in &self.flows {
                    load.bell.remove(&flow.sender)?;
                    socket::finish(&flow.sender)?;
                }
            }
        }
        Ok(())
    }

    /// What the shape's rate and cost are of.
    fn units(&self) -> u64 {
        if self.flows.is_empty() { self.totals.answers } else { self.carried }
    }

    /// A message of this talker is due.
    fn remind(&mut self, load: &Load, number: u32, due: Instant) -> Result<()> {
        let token = self.token(number as usize);
        let talker = self.talkers.get_mut(number as usize).context("no such talker")?;
        talker.due.push_back(due);
        talker.ask(load, token, &mut self.totals)
    }

    fn token(&self, talker: usize) -> u64 {
        2 * (self.flows.len() + talker) as u64
    }

    fn serve(
        &mut self,
        load: &mut Load,
        token: u64,
        flags: EventFlags,
        window: &mut Window,
        (offer, scrap): (&[u8], &mut [u8]),
        going: bool,
    ) -> Result<()> {
        let index = usize::try_from(token / 2).context("token")?;
        if let Some(flow) = self.flows.get_mut(index) {
            if token.is_multiple_of(2) {
                return flow.push(offer, going);
            }
            if !flow.ended {
                self.carried += flow.pull(scrap, going)?;
                if flow.ended {
                    load.bell.remove(&flow.sink)?;
                }
            }
            return Ok(());
        }
        let talker = self.talkers.get_mut(index - self.flows.len()).context("no such talker")?;
        if token % 2 == 1 {
            return talker.echo.turn(load, token, scrap, &mut self.totals);
        }
        if flags.contains(EventFlags::OUT) {
            talker.client.push(load, token, &mut self.totals)?;
        }
        if talker.client.pull(&mut self.totals)? {
            window.took(talker.client.begun);
            talker.waiting = false;
            talker.ask(load, token, &mut self.totals)?;
        }
        Ok(())
    }
}

impl Talker {
    /// Sends the message that has been due the longest, unless one is under way.
    fn ask(&mut self, load: &Load, token: u64, totals: &mut Totals) -> Result<()> {
        if self.waiting {
            return Ok(());
        }
        let Some(due) = self.due.pop_front() else { return Ok(()) };
        self.client.ask(load, token, totals)?;
        (self.client.begun, self.waiting) = (due, true);
        Ok(())
    }
}
