//! The task behind a pooled tunnel: makes it, drives it to its end. It belongs to the pool and to nobody who waits.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::time::sleep_until;

use crate::config::settings::Tunnel as Limits;
use crate::hbone::client::{Client, Dial, Driving, Established, OpenError, Plan, Spoken, establish};
use crate::hbone::pool::row::{Promise, Row};
use crate::hbone::pool::{Books, Pool};
use crate::hbone::tunnel::{Pulse, Tunnels, Wire, drive};
use crate::identity::TlsGeneration;
use crate::identity::verify::Usage;
use crate::telemetry::TunnelEnd;

/// What an attempt needs of the pool; holding the pool itself would keep it alive.
pub(super) struct Attempt {
    pub(super) pool: Weak<Pool>,
    pub(super) dial: Rc<dyn Dial>,
    pub(super) tunnels: Rc<Tunnels>,
    pub(super) tls: Option<Arc<TlsGeneration>>,
    pub(super) row: Rc<Row>,
    pub(super) promise: Promise,
    pub(super) next_serial: Rc<Cell<u64>>,
    pub(super) limits: Limits,
    pub(super) books: Books,
}

impl Attempt {
    pub(super) async fn run(self) {
        let Self { pool, dial, tunnels, tls, row, promise, next_serial, limits, books } = self;
        let established = match tls {
            None => Err(OpenError::NoIdentity),
            Some(tls) => {
                let config = row.config(&tls);
                let address = row.key.address;
                let (limits, windows) = (&limits, &books.windows);
                let plan = Plan { address, dial: &*dial, tls, config, limits, windows, next_serial: &next_serial };
                Box::pin(establish(plan, |stage| row.set_stage(stage))).await
            }
        };
        match established {
            Err(error) => {
                books.failed(&error);
                promise.fail(&error);
            }
            Ok(established) => {
                let client = Rc::clone(&established.spoken.client);
                let _listed = tunnels.list(&client.tunnel);
                let _counted = books.peers.join(&client.tunnel.about.identity, Usage::Server);
                if let Some(pool) = pool.upgrade() {
                    pool.judge_newcomer(&client);
                }
                row.add(&client);
                serve(&pool, &row);
                let hopes = Hopes { pool: &pool, row: &row, books: &books, promise: RefCell::new(Some(promise)) };
                Box::pin(live(hopes, established, &limits)).await;
                row.forget(&client);
            }
        }
        serve(&pool, &row);
        if let Some(pool) = pool.upgrade() {
            pool.tidy(&row);
        }
    }
}

/// Those who wait for a tunnel that is there, but whose peer has yet to say that it takes streams.
struct Hopes<'a> {
    pool: &'a Weak<Pool>,
    row: &'a Rc<Row>,
    books: &'a Books,
    promise: RefCell<Option<Promise>>,
}

impl Hopes<'_> {
    fn fulfil(&self, client: &Client) {
        let why = self.promise.take().and_then(|promise| promise.keep(client));
        serve(self.pool, self.row);
        let why = why.or_else(|| self.pool.upgrade().and_then(|pool| pool.unwanted(client)));
        if let Some(why) = why {
            client.retire(why);
        }
    }

    /// Everybody learns it at once: seeing the connection off takes a while longer.
    fn disappoint(&self, client: &Client) {
        let Some(promise) = self.promise.take() else { return };
        let error = client.unsettled();
        self.books.failed(&error);
        promise.fail(&error);
        serve(self.pool, self.row);
    }
}

/// Drives the tunnel to its end; meanwhile the promise is kept or broken.
async fn live(hopes: Hopes<'_>, established: Established, limits: &Limits) {
    let Established { spoken: Spoken { client, connection, io, grant }, handle, own, lent, settle_by } = established;
    let moved = {
        let (pool, row) = (Weak::clone(hopes.pool), Rc::clone(hopes.row));
        move || {
            if row.has_waiters() {
                serve(&pool, &row);
            }
        }
    };
    let (driving, pings) = Driving::new(connection, io, Rc::clone(&client), moved);
    let pulse = Pulse { interval: limits.ping_interval, timeout: limits.ping_timeout };
    let wire = Wire { handle: Some(handle), pings, pulse };
    let driven = async {
        Box::pin(drive(&client.tunnel, driving, wire)).await;
        drop((own, lent, grant));
    };
    let settling = async {
        tokio::select! {
            biased;
            () = client.settled() => hopes.fulfil(&client),
            () = client.tunnel.over() => hopes.disappoint(&client),
            () = sleep_until(settle_by) => {
                client.tunnel.cut(TunnelEnd::Http2);
                hopes.disappoint(&client);
            }
        }
    };
    let mut driven = std::pin::pin!(driven);
    tokio::select! {
        biased;
        () = &mut driven => {
            hopes.disappoint(&client);
            return;
        }
        () = settling => {}
    }
    driven.await;
}

fn serve(pool: &Weak<Pool>, row: &Rc<Row>) {
    if let Some(pool) = pool.upgrade() {
        pool.serve(row);
    }
}
