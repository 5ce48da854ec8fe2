//! The endpoint for scrapers: `/metrics` and `/stats/prometheus`. The text is always OpenMetrics; the type it is
//! announced as follows `Accept`, as ztunnel does. Written on a blocking thread; only a few scrapes run at a time.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Semaphore;

use crate::admin::body::{Body, FmtWriter};
use crate::admin::http::{Endpoint, answer, error, not_allowed};
use crate::telemetry::Metrics;

/// Scrapes at a time.
const AT_ONCE: usize = 4;
const OPENMETRICS: &str = "application/openmetrics-text;charset=utf-8;version=1.0.0";
const PLAIN: &str = "text/plain; charset=utf-8";

#[derive(Debug)]
pub struct MetricsEndpoint {
    metrics: Arc<Metrics>,
    running: Arc<Semaphore>,
}

impl MetricsEndpoint {
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, running: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    fn scrape(&self, headers: &HeaderMap) -> Response<Body> {
        let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() else {
            return error(StatusCode::SERVICE_UNAVAILABLE, "too many scrapes are running");
        };
        let gzip = accepts_gzip(headers);
        let metrics = Arc::clone(&self.metrics);
        let body = Body::stream(gzip, move |out| {
            let written = metrics.encode(&mut FmtWriter(out));
            drop(permit);
            written.map_err(|_lost| io::ErrorKind::BrokenPipe.into())
        });
        let mut response = answer(StatusCode::OK, content_type(headers), body);
        let headers = response.headers_mut();
        headers.insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
        if gzip {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

impl Endpoint for MetricsEndpoint {
    fn answer(&self, request: Request<Bytes>) -> Pin<Box<dyn Future<Output = Response<Body>> + Send + '_>> {
        let response = match (request.uri().path(), request.method()) {
            ("/metrics" | "/stats/prometheus", &(Method::GET | Method::HEAD)) => self.scrape(request.headers()),
            ("/metrics" | "/stats/prometheus", _) => not_allowed("GET, HEAD"),
            _ => error(StatusCode::NOT_FOUND, "no such path; metrics are at /metrics"),
        };
        Box::pin(std::future::ready(response))
    }
}

fn content_type(headers: &HeaderMap) -> &'static str {
    let openmetrics = items(headers, header::ACCEPT).any(|item| item.name == "application/openmetrics-text");
    if openmetrics { OPENMETRICS } else { PLAIN }
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let mut any = false;
    for item in items(headers, header::ACCEPT_ENCODING) {
        match item.name.as_str() {
            "gzip" | "x-gzip" => return item.wanted,
            "*" => any = item.wanted,
            _ => {}
        }
    }
    any
}

/// One element of a list such as `gzip;q=0.5`.
struct Item {
    name: String,
    /// Not excluded by `q=0`.
    wanted: bool,
}

fn items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = Item> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|item| {
        let mut parts = item.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let wanted = quality.is_none_or(|quality| quality.parse::<f32>().is_ok_and(|quality| quality > 0.0));
        Item { name, wanted }
    })
}

#[cfg(test)]
mod tests;
