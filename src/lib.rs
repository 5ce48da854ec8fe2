//! adit: an L4 proxy daemon. This is the map of the house.
//!
//! Everything is on one of four paths, each one-way:
//!
//! ```text
//! DATA      accept -> original destination -> resolve -> authorize -> connect -> relay -> account  (proxy)
//! CONTROL   files -> parse -> validate -> Snapshot -> watch channel -> read by DATA        (mesh)
//! IDENTITY  certificates -> TLS configs -> watch channel -> read per handshake by DATA     (identity)
//! LIFECYCLE signals | admin -> phase on a broadcast channel -> listeners and workers       (lifecycle)
//! ```
//!
//! A tunnel (hbone) is a way for DATA to connect and a door for it to accept at. Imports only point downward:
//! `main -> cli -> app -> { admin, proxy } -> { mesh, hbone } -> identity -> { files, config, telemetry, lifecycle, net }`.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod files;
pub mod hbone;
pub mod identity;
pub mod lifecycle;
pub mod mesh;
pub mod net;
pub mod proxy;
pub mod telemetry;
