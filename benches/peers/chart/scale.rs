//! From ratios to pixels.

/// A bar may be so long; one peer that is far off must not make all others unreadable.
const MOST: f64 = 3.0;
/// The axis goes at least so far, so that equal bars do not fill the sheet.
const LEAST: f64 = 1.5;
const STEP: f64 = 0.5;

/// A linear axis from 0.
pub(super) struct Scale {
    steps: u32,
    left: f64,
    right: f64,
}

impl Scale {
    /// Long enough for all ratios, within limits.
    pub(super) fn over(ratios: impl Iterator<Item = f64>, left: f64, right: f64) -> Self {
        let highest = ratios.fold(LEAST, f64::max).min(MOST);
        let steps = (1..).find(|steps| f64::from(*steps) * STEP >= highest).unwrap_or(1);
        Self { steps, left, right }
    }

    /// Where a ratio lies, or the right end.
    pub(super) fn place(&self, ratio: f64) -> f64 {
        self.left + (ratio / self.last()).min(1.0) * (self.right - self.left)
    }

    /// Whether a bar of this ratio does not fit.
    pub(super) fn cuts(&self, ratio: f64) -> bool {
        ratio > self.last()
    }

    pub(super) fn ticks(&self) -> impl Iterator<Item = f64> {
        (0..=self.steps).map(|step| f64::from(step) * STEP)
    }

    fn last(&self) -> f64 {
        f64::from(self.steps) * STEP
    }
}
