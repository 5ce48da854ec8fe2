//! An explanation as lines for a person.

use std::fmt;

use super::{Arrival, EndpointRow, Explanation};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "from         {}{}", self.from, source(self))?;
        writeln!(f, "to           {}", self.to)?;
        let doors = if self.doors.is_empty() {
            "none of this adit: it is told as if each end had one".to_owned()
        } else {
            self.doors.join(", then ")
        };
        writeln!(f, "doors        {doors}")?;
        writeln!(f, "destination  {}", self.lookup)?;
        if let Some(refused) = &self.refused {
            writeln!(f, "refused      {}: {}", refused.reason, refused.why)?;
        }
        if !self.endpoints.is_empty() {
            writeln!(f, "endpoints")?;
            self.endpoints.iter().try_for_each(|row| endpoint(f, row))?;
            if self.more_endpoints > 0 {
                writeln!(f, "  and {} more", self.more_endpoints)?;
            }
        }
        let mut told: Option<&Arrival> = None;
        for arrival in &self.arrivals {
            // Endpoints of one service nearly always have the same policies.
            let same = told.is_some_and(|before| {
                before.policies == arrival.policies && before.by == arrival.by && before.decision == arrival.decision
            });
            if same {
                writeln!(f, "at {}: the same", arrival.workload)?;
            } else {
                at(f, arrival)?;
            }
            told = Some(arrival);
        }
        let verdict = if self.verdict.allowed { "allowed" } else { "refused" };
        write!(f, "verdict      {verdict}: {}", self.verdict.why)
    }
}

fn source(it: &Explanation) -> String {
    match (&it.source.workload, &it.source.identity) {
        (Some(workload), Some(identity)) => format!(" = workload {workload}, {identity}"),
        (Some(workload), None) => format!(" = workload {workload}, without an identity"),
        (None, Some(identity)) => format!(", which the state does not know, as {identity}"),
        (None, None) if it.from.is_loopback() => {
            ", a client beside this adit, whose workload the state does not have".to_owned()
        }
        (None, None) => ", which the state does not know".to_owned(),
    }
}

fn endpoint(f: &mut fmt::Formatter<'_>, row: &EndpointRow) -> fmt::Result {
    write!(f, "  {}  {}", row.workload, row.status)?;
    if let Some(standing) = row.standing {
        write!(f, ", {standing}")?;
    }
    if row.weight != 1 {
        write!(f, ", weight {}", row.weight)?;
    }
    if let Some(group) = row.group {
        write!(f, ", group {group}")?;
    }
    if let Some(open) = row.open_connections {
        write!(f, ", {open} open")?;
    }
    match (&row.excluded, &row.way) {
        (Some(excluded), _) => writeln!(f, "\n    not chosen: {excluded}"),
        (None, Some(way)) => writeln!(f, "\n    {way}"),
        (None, None) => writeln!(f),
    }
}

fn at(f: &mut fmt::Formatter<'_>, arrival: &Arrival) -> fmt::Result {
    write!(f, "at {}: by {}", arrival.workload, arrival.by)?;
    if let Some(port) = arrival.port {
        write!(f, ", port {port}")?;
    }
    writeln!(f, ", as {}", arrival.identity.as_deref().unwrap_or("nobody"))?;
    for row in &arrival.policies {
        let (matched, dry_run) =
            (if row.matched { "matches" } else { "does not match" }, if row.dry_run { ", dry run" } else { "" });
        writeln!(f, "  {} {} ({}{dry_run}) {matched}: {}", row.action, row.policy, row.scope, row.why)?;
    }
    for said in &arrival.dry_run {
        writeln!(f, "  dry run: {said}")?;
    }
    writeln!(f, "  {}", arrival.decision)
}
