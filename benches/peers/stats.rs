//! Percentiles of latencies and medians of rounds, shares. Pure.

/// The value below or at which `permille` thousandths of the samples lie (nearest rank), or 0 of none. Sorts the samples.
pub(crate) fn percentiles(samples: &mut [u32], permilles: [usize; 3]) -> [u32; 3] {
    samples.sort_unstable();
    permilles.map(|permille| {
        let rank = (samples.len() * permille).div_ceil(1000);
        samples.get(rank.saturating_sub(1)).copied().unwrap_or(0)
    })
}

/// The largest part that a worker has of its process's sockets, in the process where it is largest. None where nobody has any.
pub(crate) fn largest_share(processes: &[Vec<u64>]) -> Option<f64> {
    let share = |held: &Vec<u64>| {
        let sum: u64 = held.iter().sum();
        held.iter().max().filter(|_| sum > 0).map(|most| *most as f64 / sum as f64)
    };
    processes.iter().filter_map(share).reduce(f64::max)
}

/// The median, and how far the values lie apart in relation to it: (highest - lowest) / median. None of none.
pub(crate) fn median(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let (lowest, highest) = (*values.first()?, *values.last()?);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get((values.len() - 1) / 2)?;
    let middle = f64::midpoint(lower, upper);
    let spread = if middle == 0.0 { 0.0 } else { (highest - lowest) / middle };
    Some((middle, spread))
}
