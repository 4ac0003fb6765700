//! What goes wrong when: the whole run's faults from its seed. Pure.
//!
//! One node is unwell at a time, and well again before the next one falls: so every request has somewhere to go, and what
//! operations allow to be retried must not be seen by a client.

use std::time::Duration;

/// A generator that gives the same numbers for the same seed everywhere (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound.max(1)
    }

    /// In 0..1, never 0.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.roll() >> 11) + 1) as f64 / ((1_u64 << 53) + 1) as f64
    }
}

/// What goes wrong with a node, or is done to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Killed,
    Refuses,
    Hangs,
    HangsInStream,
    Resets,
    ResetsInStream,
    Closes,
    Garbage,
    Busy,
    RunnerDies,
    LoadFails,
    Slow,
    Late,
    EmptyTags,
    MutePs,
    /// The proxy is told to send it nothing new for a while.
    Drained,
    /// The proxy reads its configuration again.
    Reload,
    /// No node's name resolves any more.
    Unresolved,
    /// Whoever asks for a node's name waits.
    ResolverHangs,
}

impl Kind {
    pub(crate) const ALL: [Self; 19] = [
        Self::Killed,
        Self::Refuses,
        Self::Hangs,
        Self::HangsInStream,
        Self::Resets,
        Self::ResetsInStream,
        Self::Closes,
        Self::Garbage,
        Self::Busy,
        Self::RunnerDies,
        Self::LoadFails,
        Self::Slow,
        Self::Late,
        Self::EmptyTags,
        Self::MutePs,
        Self::Drained,
        Self::Reload,
        Self::Unresolved,
        Self::ResolverHangs,
    ];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Refuses => "refuses",
            Self::Hangs => "hangs",
            Self::HangsInStream => "hangs in mid-stream",
            Self::Resets => "resets",
            Self::ResetsInStream => "resets in mid-stream",
            Self::Closes => "closes",
            Self::Garbage => "garbage",
            Self::Busy => "503",
            Self::RunnerDies => "runner dies",
            Self::LoadFails => "load fails",
            Self::Slow => "slow",
            Self::Late => "late",
            Self::EmptyTags => "back with empty tags",
            Self::MutePs => "mute at ps",
            Self::Drained => "drained",
            Self::Reload => "reload",
            Self::Unresolved => "no name resolves",
            Self::ResolverHangs => "resolver hangs",
        }
    }

    /// The simulated node's own word for it; `None` where it is not a fault of its.
    pub(crate) const fn fault(self) -> Option<&'static str> {
        Some(match self {
            Self::Killed | Self::Drained | Self::Reload | Self::Unresolved | Self::ResolverHangs => return None,
            Self::Refuses => r#"{"harm":"refuse"}"#,
            // Bounded, so that it is known how many clients may wait in vain.
            Self::Hangs => r#"{"harm":"hang","next":2}"#,
            Self::HangsInStream => r#"{"harm":"hang_at","at":700,"next":6}"#,
            Self::Resets => r#"{"harm":"reset","next":12}"#,
            Self::ResetsInStream => r#"{"harm":"cut","at":700,"reset":true,"next":12}"#,
            Self::Closes => r#"{"harm":"close","next":12}"#,
            Self::Garbage => r#"{"harm":"garbage","next":12}"#,
            Self::Busy => r#"{"harm":"busy","next":40}"#,
            Self::RunnerDies => {
                r#"{"harm":"status","status":500,"text":"llama runner process has terminated: exit status 2","next":12}"#
            }
            Self::LoadFails => r#"{"harm":"load_fails"}"#,
            Self::Slow => r#"{"harm":"slow","ms":40}"#,
            Self::Late => r#"{"harm":"delay","ms":400}"#,
            Self::EmptyTags => r#"{"harm":"empty_lists"}"#,
            Self::MutePs => r#"{"harm":"hang","path":"/api/ps"}"#,
        })
    }

    /// How long it lasts at least.
    const fn least(self) -> Duration {
        match self {
            // Names are looked up each second.
            Self::Unresolved | Self::ResolverHangs => Duration::from_millis(2_500),
            _ => Duration::from_millis(500),
        }
    }

    /// Clients that may wait in vain for a first byte because of it.
    pub(crate) const fn in_vain(self) -> u64 {
        if matches!(self, Self::Hangs) { 2 } else { 0 }
    }
}

/// Something goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    /// Since the start.
    pub(crate) from: Duration,
    /// When it is over.
    pub(crate) to: Duration,
    pub(crate) node: usize,
    pub(crate) kind: Kind,
}

/// All faults of a run; the last one is over, and its node well again, before `length`.
pub(crate) fn plan(seed: u64, nodes: usize, length: Duration, kinds: &[Kind]) -> Vec<Fault> {
    /// Before the first fault: models come up.
    const CALM: Duration = Duration::from_secs(1);
    /// A node that is well again needs this until the proxy knows.
    const RECOVERY: Duration = Duration::from_millis(1_200);
    let mut dice = Dice::new(seed);
    let (mut faults, mut at) = (Vec::new(), CALM);
    // Each kind comes up before any comes again.
    let mut bag: Vec<Kind> = Vec::new();
    while !kinds.is_empty() {
        if bag.is_empty() {
            bag = kinds.to_vec();
        }
        let drawn = usize::try_from(dice.below(bag.len() as u64)).unwrap_or(0);
        let kind = bag.swap_remove(drawn);
        let node = usize::try_from(dice.below(nodes as u64)).unwrap_or(0);
        let to = at + kind.least() + Duration::from_millis(dice.below(1_200));
        if to + RECOVERY > length {
            break;
        }
        faults.push(Fault { from: at, to, node, kind });
        at = to + RECOVERY + Duration::from_millis(dice.below(300));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_run() {
        let minute = Duration::from_secs(60);
        let first = plan(7, 8, minute, &Kind::ALL);
        assert_eq!(first, plan(7, 8, minute, &Kind::ALL));
        assert_ne!(first, plan(8, 8, minute, &Kind::ALL));
        assert!(first.len() > 10, "{}", first.len());
        assert!(plan(7, 8, minute, &[]).is_empty());
    }

    #[test]
    fn one_node_is_unwell_at_a_time_and_all_kinds_come() {
        let ten = Duration::from_secs(600);
        let faults = plan(1, 8, ten, &Kind::ALL);
        for pair in faults.windows(2) {
            assert!(pair[0].from < pair[0].to && pair[0].to + Duration::from_secs(1) < pair[1].from);
        }
        assert!(faults.iter().all(|fault| fault.node < 8 && fault.to < ten));
        for kind in Kind::ALL {
            let times = faults.iter().filter(|fault| fault.kind == kind).count();
            assert!(times >= 6, "{} {times}", kind.label());
        }
    }
}
