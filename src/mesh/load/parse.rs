//! Parses the files that are new, on several threads when there are many: each file by itself, which is nine tenths of
//! the time that a large state takes to load.
//!
//! In: contents, and the state in force. Out: what each file means, or what is wrong with it. The result does not
//! depend on how many threads there were, but for which names are shared in memory.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::files::FileContent;
use crate::mesh::Snapshot;
use crate::mesh::file::{self, FileContents, Names};

use super::Parsed;

/// More threads than this do not pay: the rest of a load is one thread's work.
const MOST_THREADS: usize = 4;
/// A thread is worth so many files.
const FILES_PER_THREAD: usize = 4;

/// Those without bytes are left out: the scan took their content for known.
pub(super) fn parse_all(files: Vec<FileContent>, snapshot: &Snapshot) -> HashMap<PathBuf, Parsed> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let helpers = threads.min(files.len() / FILES_PER_THREAD).saturating_sub(1);
    let files = Mutex::new(files.into_iter());
    let next = || files.lock().unwrap_or_else(PoisonError::into_inner).next();
    let parse_some = || {
        let names = Names::default();
        let mut parsed = Vec::new();
        while let Some(file) = next() {
            parsed.extend(parse(&file, &names, snapshot).map(|it| (file.path, it)));
        }
        parsed
    };
    thread::scope(|scope| {
        let started: Vec<_> =
            (0..helpers).map_while(|_| thread::Builder::new().spawn_scoped(scope, parse_some).ok()).collect();
        let mut parsed: HashMap<PathBuf, Parsed> = parse_some().into_iter().collect();
        for helper in started {
            match helper.join() {
                Ok(some) => parsed.extend(some),
                // As if it had happened on this thread.
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        parsed
    })
}

fn parse(file: &FileContent, names: &Names, snapshot: &Snapshot) -> Option<Parsed> {
    let result = file::parse(&file.path, file.bytes.as_ref()?, names);
    Some(Parsed { hash: file.hash, result: result.map(|contents| Arc::new(adopt(contents, snapshot))) })
}

/// What is already in the state stays the same memory; a new version of it keeps what is known from using it.
fn adopt(mut contents: FileContents, snapshot: &Snapshot) -> FileContents {
    for (_, workload) in &mut contents.workloads {
        match snapshot.workload_by_uid(&workload.uid) {
            Some(known) if known == workload => *workload = Arc::clone(known),
            Some(known) => Arc::make_mut(workload).live = known.live.clone(),
            None => {}
        }
    }
    for (_, spec) in &mut contents.services {
        if let Some(known) = snapshot.spec(spec.key()).filter(|known| *known == spec) {
            *spec = Arc::clone(known);
        }
    }
    for (_, policy) in &mut contents.policies {
        if let Some(known) = snapshot.policy(policy.key.as_str()).filter(|known| *known == policy) {
            *policy = Arc::clone(known);
        }
    }
    contents
}
