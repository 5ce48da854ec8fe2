//! What we say of a workload in tunnels, made once for each version of it.

use std::cell::RefCell;
use std::sync::Arc;

use http::HeaderValue;

use crate::hbone::request::baggage_of;
use crate::mesh::Workload;

/// The last workload that was asked about: in sidecar mode there is only one.
#[derive(Debug, Default)]
pub struct Baggage(RefCell<Option<(Arc<Workload>, Option<HeaderValue>)>>);

impl Baggage {
    #[must_use]
    pub fn of(&self, workload: &Arc<Workload>) -> Option<HeaderValue> {
        let mut made = self.0.borrow_mut();
        match &*made {
            Some((known, baggage)) if Arc::ptr_eq(known, workload) => baggage.clone(),
            _ => {
                let baggage = baggage_of(&workload.labels, &workload.workload_type);
                *made = Some((Arc::clone(workload), baggage.clone()));
                baggage
            }
        }
    }
}
