//! Settings of the choice among endpoints, and of connections whose endpoint is gone.

use std::num::NonZeroU32;
use std::time::Duration;

use super::non_zero;

/// Passive health: an endpoint that fails is left alone for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// After so many failures in a row; `None`: never.
    pub eject_after: Option<NonZeroU32>,
    /// How long the first time; doubles each time, jittered.
    pub eject_time: Duration,
    /// How long at most.
    pub eject_max: Duration,
}

/// What becomes of a connection whose endpoint has left the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnEndpointRemoved {
    #[default]
    Keep,
    /// It may go on for so long.
    Drain(Duration),
    Close,
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            eject_after: Some(non_zero(2)),
            eject_time: Duration::from_secs(10),
            eject_max: Duration::from_secs(300),
        }
    }
}
