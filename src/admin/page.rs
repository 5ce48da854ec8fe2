//! The index page: what a person who opens the admin port in a browser wants to know first. Plain HTML, no scripts;
//! every value is escaped.

use std::fmt::{self, Write};
use std::time::Duration;

use crate::admin::api::Status;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:44em;padding:0 1em;\
     color-scheme:light dark}table{border-collapse:collapse}td,th{text-align:left;padding:.1em 1.2em .1em 0;\
     vertical-align:top}th{font-weight:600}code{font-size:95%}";

/// The page; `paths` with the methods that each takes.
pub(super) fn index<'a>(status: &Status, paths: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut html = String::with_capacity(4096);
    // Writing to a String cannot fail.
    let _ = write_index(&mut html, status, paths);
    html
}

fn write_index<'a>(html: &mut String, status: &Status, paths: impl Iterator<Item = (&'a str, &'a str)>) -> fmt::Result {
    write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>adit</title><style>{STYLE}</style>\
         </head><body><h1>adit {}</h1><table>",
        Html(&status.version)
    )?;
    let uptime = Duration::from_secs(status.uptime_ms / 1000);
    row(html, "phase", &status.phase)?;
    row(html, "ready", if status.ready { "yes" } else { "no" })?;
    row(html, "up", &humantime::format_duration(uptime).to_string())?;
    row(html, "pid", &status.pid.to_string())?;
    row(html, "workers", &status.workers.to_string())?;
    let limit = status.connections.limit.map_or_else(String::new, |limit| format!(" of {limit}"));
    row(html, "connections", &format!("{}{limit}", status.connections.open))?;
    for blocker in &status.blockers {
        let error = blocker.error.as_deref().unwrap_or("waiting");
        row(html, "blocked by", &format!("{} since {}: {error}", blocker.name, blocker.since))?;
    }
    for (what, source) in [("config", &status.config), ("mesh", &status.mesh)] {
        if let Some(rejection) = &source.rejected {
            row(html, what, &format!("rejected at {}: {}", rejection.at, rejection.errors.join("; ")))?;
        }
    }
    if !status.refused_keys.is_empty() {
        row(html, "needs a restart", &status.refused_keys.join(", "))?;
    }
    html.push_str("</table><h2>Paths</h2><table>");
    for (path, methods) in paths {
        let shown = Html(path);
        if methods.starts_with("GET") {
            write!(html, "<tr><td><a href=\"{shown}\"><code>{shown}</code></a></td><td>{methods}</td></tr>")?;
        } else {
            write!(html, "<tr><td><code>{shown}</code></td><td>{methods}</td></tr>")?;
        }
    }
    html.push_str(
        "</table><p>Requests that change something need the header <code>X-Adit: 1</code>.</p></body></html>\n",
    );
    Ok(())
}

fn row(html: &mut String, name: &str, value: &str) -> fmt::Result {
    write!(html, "<tr><th>{}</th><td>{}</td></tr>", Html(name), Html(value))
}

/// Text that cannot become markup.
struct Html<'a>(&'a str);

impl fmt::Display for Html<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}
