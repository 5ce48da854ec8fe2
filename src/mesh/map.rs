//! The persistent hash maps of the state, with the hash function that they share.
//!
//! Each connection hashes some five keys, most of them text, so the function is a fast one. It is keyed at random, and
//! what is put into the maps comes from the state's source: a client chooses what is looked up, not what is kept.

use foldhash::quality::RandomState;
use imbl::GenericHashMap;
use imbl::shared_ptr::DefaultSharedPtr;

pub(super) type HashMap<K, V> = GenericHashMap<K, V, RandomState, DefaultSharedPtr>;
