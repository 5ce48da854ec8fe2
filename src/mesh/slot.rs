//! Several things under one key of an index, best first. Nearly every key has one, which costs a pointer; the others are
//! kept in persistent ordered maps, so that thousands of workloads on one address are neither scanned nor copied.
//!
//! What is best is a pure function of what the slot holds, never of the order in which it was put there: a state built
//! by edits equals one built from scratch.

use std::sync::Arc;

use imbl::OrdMap;

use crate::mesh::key::{NamespaceStart, OwnRank};
use crate::mesh::{Service, ServiceKey, Visibility};

/// Items ordered by a rank of which the smallest is best. Whoever changes it says how an item ranks, always alike.
#[derive(Debug, Clone)]
pub(super) enum Slot<R: Ord + Clone, T: Clone> {
    One(T),
    /// At least two.
    Many(Arc<OrdMap<R, T>>),
}

impl<R: Ord + Clone, T: Clone> Slot<R, T> {
    /// Replaces what has the same rank.
    pub(super) fn put(&mut self, item: T, rank: impl Fn(&T) -> R) {
        match self {
            Self::One(only) if rank(only) != rank(&item) => {
                let both = [(rank(only), only.clone()), (rank(&item), item)];
                *self = Self::Many(Arc::new(both.into_iter().collect()));
            }
            Self::One(only) => *only = item,
            Self::Many(many) => drop(Arc::make_mut(many).insert(rank(&item), item)),
        }
    }

    /// Returns whether nothing is left, in which case the slot itself must go.
    #[must_use]
    pub(super) fn remove(&mut self, gone: &R, rank: impl Fn(&T) -> R) -> bool {
        match self {
            Self::One(only) => rank(only) == *gone,
            Self::Many(many) => {
                let many = Arc::make_mut(many);
                many.remove(gone);
                if many.len() == 1
                    && let Some((_, item)) = many.get_min().cloned()
                {
                    *self = Self::One(item);
                }
                false
            }
        }
    }

    pub(super) fn best(&self) -> Option<&T> {
        match self {
            Self::One(item) => Some(item),
            Self::Many(many) => many.get_min().map(|(_, item)| item),
        }
    }

    /// Best first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let (one, many) = match self {
            Self::One(item) => (Some(item), None),
            Self::Many(many) => (None, Some(many.values())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// The services that share an address, a range or a host name. Which of them a client gets depends on its namespace.
#[derive(Debug, Clone)]
pub(super) enum ServiceSlot {
    One(Arc<Service>),
    /// At least two.
    Many(Arc<SharedSlot>),
}

#[derive(Debug, Clone, Default)]
pub(super) struct SharedSlot {
    own: OrdMap<OwnRank, Arc<Service>>,
    /// The public ones alone: (not canonical, key).
    public: OrdMap<(bool, ServiceKey), Arc<Service>>,
}

/// What a client finds in a slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) service: &'a Arc<Service>,
    /// Whether it is in the client's own namespace.
    pub(super) own: bool,
}

impl ServiceSlot {
    pub(super) fn put(&mut self, service: &Arc<Service>) {
        match self {
            Self::One(only) if only.key != service.key => {
                let mut shared = SharedSlot::default();
                shared.put(only);
                shared.put(service);
                *self = Self::Many(Arc::new(shared));
            }
            Self::One(only) => *only = Arc::clone(service),
            Self::Many(shared) => Arc::make_mut(shared).put(service),
        }
    }

    /// `service` as it was put. Returns whether nothing is left, in which case the slot itself must go.
    #[must_use]
    pub(super) fn remove(&mut self, service: &Service) -> bool {
        match self {
            Self::One(only) => only.key == service.key,
            Self::Many(shared) => {
                let shared = Arc::make_mut(shared);
                shared.remove(service);
                if shared.own.len() == 1
                    && let Some((_, only)) = shared.own.get_min()
                {
                    *self = Self::One(Arc::clone(only));
                }
                false
            }
        }
    }

    /// Visible to the client; of its own namespace before others; canonical before others; then by key.
    pub(super) fn find(&self, client_namespace: &str) -> Option<Found<'_>> {
        match self {
            Self::One(service) => {
                let own = *service.key.namespace == *client_namespace;
                (own || service.visibility == Visibility::Public).then_some(Found { service, own })
            }
            Self::Many(shared) => shared.find(client_namespace),
        }
    }

    /// All of them, whoever may see them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        let (one, many) = match self {
            Self::One(service) => (Some(service), None),
            Self::Many(shared) => (None, Some(shared.own.values())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

impl SharedSlot {
    fn ranks(service: &Service) -> (OwnRank, (bool, ServiceKey)) {
        let not_canonical = !service.canonical;
        let ServiceKey { namespace, hostname } = service.key.clone();
        (OwnRank { namespace, not_canonical, hostname }, (not_canonical, service.key.clone()))
    }

    fn put(&mut self, service: &Arc<Service>) {
        let (own, public) = Self::ranks(service);
        self.own.insert(own, Arc::clone(service));
        if service.visibility == Visibility::Public {
            self.public.insert(public, Arc::clone(service));
        }
    }

    fn remove(&mut self, service: &Service) {
        let (own, public) = Self::ranks(service);
        self.own.remove(&own);
        self.public.remove(&public);
    }

    fn find(&self, client_namespace: &str) -> Option<Found<'_>> {
        if let Some((_, service)) = self.own.get_next(&NamespaceStart(client_namespace))
            && *service.key.namespace == *client_namespace
        {
            return Some(Found { service, own: true });
        }
        self.public.get_min().map(|(_, service)| Found { service, own: false })
    }
}
