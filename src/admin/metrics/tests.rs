//! What a scrape gets: type, compression, and every family once.

use std::io::Read;

use super::*;
use crate::admin::http::HttpLimits;
use crate::admin::testing::{Running, request, start};
use crate::config::settings::{LogFormat, TrafficLabelSet};
use crate::telemetry::{Door, Logger, TrafficLimits, grammar};

fn server() -> Running {
    let logger = Logger::start(LogFormat::Text, "off", false, io::sink()).expect("log");
    let metrics = Metrics::new(&TrafficLabelSet::Default, TrafficLimits::default(), logger.handle());
    metrics.workers.register().opened(Door::Socks5);
    start(Arc::new(MetricsEndpoint::new(Arc::new(metrics))), HttpLimits::default())
}

#[tokio::test]
async fn both_paths_speak_openmetrics() {
    let server = server();
    for path in ["/metrics", "/stats/prometheus", "/metrics?x=y"] {
        let answer = request(server.address, "GET", path, &[], "").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(answer.header("content-encoding"), "");
        let samples = grammar::check(answer.text());
        assert_eq!(samples["adit_connections_open{listener=\"socks5\"}"], 1.0);
    }
}

#[tokio::test]
async fn the_type_follows_accept() {
    let server = server();
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    let openmetrics = "application/openmetrics-text;charset=utf-8;version=1.0.0";
    for (accept, want) in [
        (prometheus, openmetrics),
        ("application/openmetrics-text", openmetrics),
        ("Application/OpenMetrics-Text; version=0.0.1", openmetrics),
        ("text/plain", "text/plain; charset=utf-8"),
        ("*/*", "text/plain; charset=utf-8"),
        ("application/openmetrics-textual", "text/plain; charset=utf-8"),
    ] {
        let answer = request(server.address, "GET", "/metrics", &[("accept", accept)], "").await;
        assert_eq!(answer.header("content-type"), want, "{accept}");
        grammar::check(answer.text());
    }
}

#[tokio::test]
async fn gzip_when_asked() {
    let server = server();
    for (accept, zipped) in [
        ("gzip", true),
        ("deflate, GZIP;q=0.5", true),
        ("*", true),
        ("gzip;q=0", false),
        ("gzip;q=0, *", false),
        ("gzip;q=0.0, deflate", false),
        ("br", false),
        ("gzippy", false),
        ("\u{e9}", false),
    ] {
        let answer = request(server.address, "GET", "/metrics", &[("accept-encoding", accept)], "").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-encoding") == "gzip", zipped, "{accept}");
        let mut text = String::new();
        if zipped {
            flate2::read::GzDecoder::new(answer.body.as_slice()).read_to_string(&mut text).expect("gzip");
        } else {
            answer.text().clone_into(&mut text);
        }
        grammar::check(&text);
    }
}

#[tokio::test]
async fn other_paths_and_methods() {
    let server = server();
    assert_eq!(request(server.address, "GET", "/", &[], "").await.status, 404);
    assert_eq!(request(server.address, "GET", "/metrics/", &[], "").await.status, 404);
    let answer = request(server.address, "POST", "/metrics", &[], "x").await;
    assert_eq!((answer.status, answer.header("allow")), (405, "GET, HEAD"));
    assert_eq!(request(server.address, "HEAD", "/metrics", &[], "").await.status, 200);
}
