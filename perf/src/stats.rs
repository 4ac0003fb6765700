//! Numbers about numbers: quantiles of one window, medians and middle halves over repeats. Pure.
//!
//! Called by `load` for each window, by `table` and `compare` over repeats.

use serde::{Deserialize, Serialize};

/// A distribution, ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) count: usize,
    pub(crate) mean: u64,
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

impl Spread {
    /// Of samples in any order.
    pub(crate) fn of(samples: &mut [u64]) -> Self {
        samples.sort_unstable();
        let Some(&max) = samples.last() else { return Self::default() };
        let at = |permille: usize| samples[(samples.len() * permille).div_ceil(1000).saturating_sub(1)];
        Self {
            count: samples.len(),
            mean: samples.iter().sum::<u64>() / samples.len() as u64,
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p999: at(999),
            max,
        }
    }
}

/// The middle of some figures, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Middle {
    pub(crate) median: f64,
    /// The middle half lies between these.
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Middle {
    /// `None` without figures.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().filter(|figure| figure.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            min: *sorted.first()?,
            max: *sorted.last()?,
            median: between(&sorted, 0.5),
            low: between(&sorted, 0.25),
            high: between(&sorted, 0.75),
        })
    }
}

/// The quantile of sorted figures, interpolated.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index within the slice")]
fn between(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples_that_were_there() {
        let mut samples: Vec<u64> = (1..=1000).rev().collect();
        let spread = Spread::of(&mut samples);
        assert_eq!((spread.p50, spread.p99, spread.p999, spread.max, spread.mean), (500, 990, 999, 1000, 500));
        let one = Spread::of(&mut [7]);
        assert_eq!((one.count, one.p50, one.p999), (1, 7, 7));
        assert_eq!(Spread::of(&mut []), Spread::default());
    }

    #[test]
    fn the_middle_half_leaves_outliers_out() {
        let middle = Middle::of([1.0, 2.0, 3.0, 4.0, 100.0]).unwrap();
        assert_eq!((middle.low, middle.median, middle.high), (2.0, 3.0, 4.0));
        assert_eq!((middle.min, middle.max), (1.0, 100.0));
        assert_eq!(Middle::of([1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Middle::of([f64::NAN]), None);
    }
}
