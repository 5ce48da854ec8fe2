//! One HTTP request by curl.

use crate::kit::Host;
use crate::program::run;

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }
}

/// `curl <arguments>` in `host`; panics if curl itself fails.
pub(crate) fn curl(host: &Host, arguments: &[&str]) -> Answer {
    let mut all = vec!["--silent", "--show-error", "--max-time", "10", "--write-out", "\n%{http_code} %{content_type}"];
    all.extend_from_slice(arguments);
    let out = run(host, "curl", &all).ok();
    let (body, last) = out.rsplit_once('\n').expect("what --write-out adds");
    let (status, content_type) = last.split_once(' ').expect("two words");
    Answer { status: status.parse().expect("a status"), content_type: content_type.to_owned(), body: body.to_owned() }
}

pub(crate) fn admin(host: &Host, path: &str, arguments: &[&str]) -> Answer {
    let url = format!("http://127.0.0.1:15000{path}");
    curl(host, &[arguments, &[url.as_str()]].concat())
}
