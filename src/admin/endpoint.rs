//! The admin API's routes. Every answer is JSON, the index page excepted; every question to the daemon has a deadline.

use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::admin::api::{ConnectionList, Control, Dump};
use crate::admin::body::Body;
use crate::admin::guard::{self, CHANGE_HEADER, CHANGE_VALUE, HostRule};
use crate::admin::http::{Endpoint, answer, error, json, not_allowed, text};
use crate::admin::page;

/// How long the daemon may take to answer a question.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long reading everything again may take.
const RELOAD_WITHIN: Duration = Duration::from_secs(50);
/// How long a new version may take to serve; longer than the daemon itself waits for it.
const UPGRADE_WITHIN: Duration = Duration::from_secs(55);
/// Large documents that are being written at a time.
const DUMPS_AT_ONCE: usize = 4;

/// Everything there is: path, the method it takes, and whether it changes something.
const ROUTES: [(&str, Route); 12] = [
    ("/", Route::Index),
    ("/status", Route::Status),
    ("/config", Route::Config),
    ("/mesh", Route::Mesh),
    ("/connections", Route::Connections),
    ("/certs", Route::Certs),
    ("/explain", Route::Explain),
    ("/logging", Route::Logging),
    ("/reload", Route::Reload),
    ("/drain", Route::Drain),
    ("/upgrade", Route::Upgrade),
    ("/quitquitquit", Route::Quit),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Index,
    Status,
    Config,
    Mesh,
    Connections,
    Certs,
    Explain,
    Logging,
    Reload,
    Drain,
    Upgrade,
    Quit,
}

impl Route {
    const fn allow(self) -> &'static str {
        match self {
            Self::Index
            | Self::Status
            | Self::Config
            | Self::Mesh
            | Self::Connections
            | Self::Certs
            | Self::Explain => "GET, HEAD",
            Self::Logging => "GET, HEAD, PUT",
            Self::Reload | Self::Drain | Self::Upgrade | Self::Quit => "POST",
        }
    }
}

/// Answers for the daemon behind a [`Control`].
pub struct AdminEndpoint {
    control: Arc<dyn Control>,
    hosts: HostRule,
    dumps: Arc<Semaphore>,
}

impl AdminEndpoint {
    #[must_use]
    pub fn new(control: Arc<dyn Control>, hosts: HostRule) -> Self {
        Self { control, hosts, dumps: Arc::new(Semaphore::new(DUMPS_AT_ONCE)) }
    }

    async fn route(&self, request: Request<Bytes>) -> Response<Body> {
        if let Some(reason) = guard::refusal(&request, self.hosts) {
            return error(StatusCode::FORBIDDEN, reason);
        }
        let path = request.uri().path();
        let Some((_, route)) = ROUTES.iter().find(|(known, _)| *known == path) else {
            return error(StatusCode::NOT_FOUND, "no such path; GET / lists them");
        };
        if !route.allow().split(", ").any(|method| method == request.method().as_str()) {
            return not_allowed(route.allow());
        }
        let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
        if changes && *route != Route::Quit && !guard::may_change(request.headers()) {
            return error(
                StatusCode::FORBIDDEN,
                &format!("requests that change something need the header {CHANGE_HEADER}: {CHANGE_VALUE}"),
            );
        }
        match route {
            Route::Index => self.index().await,
            Route::Status => self.status().await,
            Route::Config => self.config().await,
            Route::Mesh => self.dump(self.control.mesh()),
            Route::Connections => self.connections().await,
            Route::Certs => self.certs().await,
            Route::Explain => self.explain(request.uri().query().unwrap_or_default()),
            Route::Logging => self.logging(&request),
            Route::Reload => self.reload().await,
            Route::Drain => self.drain(),
            Route::Upgrade => self.upgrade().await,
            Route::Quit => self.quit(),
        }
    }

    async fn index(&self) -> Response<Body> {
        let Some(status) = within(ANSWER_WITHIN, self.control.status()).await else { return late() };
        let paths = ROUTES.iter().map(|(path, route)| (*path, route.allow()));
        let mut response = answer(StatusCode::OK, "text/html; charset=utf-8", Body::full(page::index(&status, paths)));
        let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'");
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
        response
    }

    async fn status(&self) -> Response<Body> {
        match within(ANSWER_WITHIN, self.control.status()).await {
            Some(status) => json(StatusCode::OK, &status),
            None => late(),
        }
    }

    async fn config(&self) -> Response<Body> {
        match within(ANSWER_WITHIN, self.control.config()).await {
            Some(config) => json(StatusCode::OK, &config),
            None => late(),
        }
    }

    async fn connections(&self) -> Response<Body> {
        match within(ANSWER_WITHIN, self.control.connections()).await {
            Some(connections) => self.dump(dump_of(ConnectionList { connections })),
            None => late(),
        }
    }

    async fn certs(&self) -> Response<Body> {
        match within(ANSWER_WITHIN, self.control.certs()).await {
            Some(certs) => json(StatusCode::OK, &certs),
            None => late(),
        }
    }

    fn explain(&self, question: &str) -> Response<Body> {
        match self.control.explain(question) {
            Ok(explanation) => json(StatusCode::OK, &explanation),
            Err(problem) => error(StatusCode::BAD_REQUEST, &problem),
        }
    }

    fn logging(&self, request: &Request<Bytes>) -> Response<Body> {
        if request.method() == Method::PUT {
            let Ok(filter) = std::str::from_utf8(request.body()) else {
                return error(StatusCode::BAD_REQUEST, "the filter is not UTF-8 text");
            };
            if let Err(problem) = self.control.set_log_filter(filter) {
                return error(StatusCode::BAD_REQUEST, &problem.to_string());
            }
            tracing::info!(filter = self.control.log_filter(), "log filter changed through the admin API");
        }
        json(StatusCode::OK, &serde_json::json!({ "filter": self.control.log_filter() }))
    }

    async fn reload(&self) -> Response<Body> {
        match within(RELOAD_WITHIN, self.control.reload()).await {
            Some(report) if report.is_rejected() => json(StatusCode::UNPROCESSABLE_ENTITY, &report),
            Some(report) => json(StatusCode::OK, &report),
            None => late(),
        }
    }

    fn drain(&self) -> Response<Body> {
        tracing::info!("drain asked for through the admin API");
        self.control.drain();
        json(StatusCode::OK, &serde_json::json!({ "phase": "draining" }))
    }

    async fn upgrade(&self) -> Response<Body> {
        tracing::info!("upgrade asked for through the admin API");
        match within(UPGRADE_WITHIN, self.control.upgrade()).await {
            Some(Ok(report)) => json(StatusCode::OK, &report),
            Some(Err(reason)) => error(StatusCode::CONFLICT, &reason),
            None => late(),
        }
    }

    fn quit(&self) -> Response<Body> {
        tracing::info!("drain asked for through /quitquitquit");
        self.control.drain();
        text(StatusCode::OK, "shutdown now\n")
    }

    /// A document that may be large.
    fn dump(&self, dump: Dump) -> Response<Body> {
        let Ok(permit) = Arc::clone(&self.dumps).try_acquire_owned() else {
            return error(StatusCode::SERVICE_UNAVAILABLE, "too many large documents are being written");
        };
        let body = Body::stream(false, move |out| {
            let written = dump(out);
            drop(permit);
            written
        });
        answer(StatusCode::OK, "application/json", body)
    }
}

impl Endpoint for AdminEndpoint {
    fn answer(&self, request: Request<Bytes>) -> Pin<Box<dyn Future<Output = Response<Body>> + Send + '_>> {
        Box::pin(self.route(request))
    }
}

fn dump_of(document: impl Serialize + Send + 'static) -> Dump {
    Box::new(move |mut out: &mut dyn Write| {
        serde_json::to_writer_pretty(&mut out, &document)?;
        out.write_all(b"\n")
    })
}

async fn within<T>(limit: Duration, reply: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, reply).await.ok()
}

fn late() -> Response<Body> {
    error(StatusCode::GATEWAY_TIMEOUT, "the daemon did not answer in time")
}

#[cfg(test)]
mod tests;
