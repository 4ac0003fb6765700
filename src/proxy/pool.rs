//! Idle connections of one worker, a stack per node: the warmest is taken first, the rest age out.
//!
//! Belongs to one thread: no atomics, no lock, not `Send` in use. The number of requests in flight is not the pool's
//! business (slots bound it). Must never read a clock or close a connection that carries a request.

use crate::clock::Millis;
use crate::http1::KeepAlive;
use crate::ids::NodeId;

/// The node's promise is cut by this much, since its clock started before ours.
const KEEP_ALIVE_MARGIN_MS: Millis = 1000;
/// How often [`Pool::sweep`] really looks. [`Pool::take`] is exact, so this only bounds how long files stay open.
const SWEEP_EVERY_MS: Millis = 1000;

/// Idle connections, most recently used last.
#[derive(Debug)]
pub struct Pool<C> {
    nodes: Vec<Vec<Idle<C>>>,
    idle_max: usize,
    swept: Millis,
}

#[derive(Debug)]
struct Idle<C> {
    connection: C,
    expires: Millis,
}

impl<C> Pool<C> {
    /// An empty pool that keeps at most `idle_max` connections per node.
    #[must_use]
    pub fn new(idle_max: usize) -> Self {
        Self { nodes: Vec::new(), idle_max, swept: 0 }
    }

    /// The most recently used connection that has not expired and is alive. Those found dead on the way are dropped.
    pub fn take(&mut self, node: NodeId, now: Millis, mut is_alive: impl FnMut(&C) -> bool) -> Option<C> {
        let stack = self.nodes.get_mut(node.0 as usize)?;
        while let Some(idle) = stack.pop() {
            if now < idle.expires && is_alive(&idle.connection) {
                return Some(idle.connection);
            }
        }
        None
    }

    /// Keeps a connection until `expires`; above the bound it is dropped.
    pub fn put(&mut self, node: NodeId, connection: C, expires: Millis) {
        let at = node.0 as usize;
        if at >= self.nodes.len() {
            self.nodes.resize_with(at + 1, Vec::new);
        }
        if self.nodes[at].len() < self.idle_max {
            self.nodes[at].push(Idle { connection, expires });
        }
    }

    /// Drops what expired or died. Called with each tick of the worker; looks once a second.
    pub fn sweep(&mut self, now: Millis, mut is_alive: impl FnMut(&C) -> bool) {
        if now < self.swept + SWEEP_EVERY_MS {
            return;
        }
        self.swept = now;
        for stack in &mut self.nodes {
            stack.retain(|idle| now < idle.expires && is_alive(&idle.connection));
        }
    }

    /// Drops a node's connections: it was removed, or its addresses changed.
    pub fn clear(&mut self, node: NodeId) {
        if let Some(stack) = self.nodes.get_mut(node.0 as usize) {
            stack.clear();
        }
    }

    /// Drops every connection: the process is out of files.
    pub fn clear_all(&mut self) {
        self.nodes.iter_mut().for_each(Vec::clear);
    }

    /// Connections kept now, over all nodes.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.nodes.iter().map(Vec::len).sum()
    }
}

/// How many requests a connection has served and may serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Life {
    /// Answers received on it.
    pub served: u32,
    /// From the first `Keep-Alive: max` on it.
    pub served_max: Option<u32>,
}

impl Life {
    /// Counts one answer. `Some(ms)`: the connection may wait that long for a next request; `None`: close it.
    ///
    /// Source of the margins: llama.cpp closes after exactly `timeout` seconds idle and with the `max`-th answer.
    pub fn answered(&mut self, said: KeepAlive, pool_idle_ms: Millis) -> Option<Millis> {
        self.served = self.served.saturating_add(1);
        if let Some(max) = said.max
            && self.served_max.is_none()
        {
            // A node that counts down says what is left; one that repeats a constant says the sum. The first saying
            // reads the same both ways when it comes with the first answer.
            self.served_max = Some(max.saturating_add(self.served - 1));
        }
        if self.served_max.is_some_and(|max| self.served >= max.saturating_sub(1))
            || said.max.is_some_and(|max| max <= 1)
        {
            return None;
        }
        let promised = said.timeout_s.map(|s| (Millis::from(s) * 1000).saturating_sub(KEEP_ALIVE_MARGIN_MS));
        let idle = promised.map_or(pool_idle_ms, |ms| ms.min(pool_idle_ms));
        (idle > 0).then_some(idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(2);

    fn said(timeout_s: Option<u32>, max: Option<u32>) -> KeepAlive {
        KeepAlive { timeout_s, max }
    }

    #[test]
    fn the_warmest_comes_first_and_nodes_are_apart() {
        let mut pool = Pool::new(8);
        pool.put(NODE, 'a', 100);
        pool.put(NODE, 'b', 100);
        pool.put(NodeId(0), 'c', 100);
        assert_eq!(pool.idle(), 3);
        assert_eq!(pool.take(NODE, 99, |_| true), Some('b'));
        assert_eq!(pool.take(NODE, 99, |_| true), Some('a'));
        assert_eq!(pool.take(NODE, 99, |_| true), None);
        assert_eq!(pool.take(NodeId(9), 99, |_| true), None);
        assert_eq!(pool.take(NodeId(0), 99, |_| true), Some('c'));
    }

    #[test]
    fn expired_and_dead_ones_are_dropped_on_the_way() {
        let mut pool = Pool::new(8);
        for (name, expires) in [('a', 200), ('b', 200), ('c', 100)] {
            pool.put(NODE, name, expires);
        }
        assert_eq!(pool.take(NODE, 100, |&name| name != 'b'), Some('a'));
        assert_eq!(pool.idle(), 0);
    }

    #[test]
    fn it_keeps_no_more_than_its_bound() {
        let mut pool = Pool::new(2);
        for name in ['a', 'b', 'c'] {
            pool.put(NODE, name, 100);
        }
        assert_eq!(pool.idle(), 2);
        pool.put(NodeId(0), 'd', 100);
        pool.clear(NODE);
        assert_eq!(pool.idle(), 1);
        pool.clear_all();
        assert_eq!(pool.idle(), 0);
    }

    #[test]
    fn a_sweep_drops_what_expired_or_died_and_looks_once_a_second() {
        let mut pool = Pool::new(8);
        for (name, expires) in [('a', 5000), ('b', 2000), ('c', 5000)] {
            pool.put(NODE, name, expires);
        }
        pool.sweep(1999, |_| true);
        assert_eq!(pool.idle(), 3);
        pool.sweep(2000, |_| false);
        assert_eq!(pool.idle(), 3, "within a second of the last look");
        pool.sweep(2999, |&name| name != 'c');
        assert_eq!(pool.idle(), 1);
        assert_eq!(pool.take(NODE, 2999, |_| true), Some('a'));
    }

    #[test]
    fn the_nodes_promise_is_kept_with_a_margin() {
        let idle = |timeout_s| Life::default().answered(said(timeout_s, None), 60_000);
        assert_eq!(idle(None), Some(60_000));
        assert_eq!(idle(Some(5)), Some(4000));
        assert_eq!(idle(Some(300)), Some(60_000));
        assert_eq!(idle(Some(1)), None);
        assert_eq!(idle(Some(0)), None);
    }

    #[test]
    fn a_constant_max_ends_one_before_the_nodes_close() {
        let mut life = Life::default();
        let reusable = (1..=100).take_while(|_| life.answered(said(Some(5), Some(100)), 60_000).is_some()).count();
        assert_eq!((reusable, life.served), (98, 99));
    }

    #[test]
    fn a_falling_max_is_not_counted_twice() {
        let mut life = Life::default();
        let left = (0..=99).rev();
        let reusable = left.take_while(|&max| life.answered(said(None, Some(max)), 60_000).is_some()).count();
        assert_eq!(reusable, 97, "the first answer said 99 more");
        // A connection whose answers start to say so only later.
        let mut late = Life { served: 10, served_max: None };
        assert!(late.answered(said(None, Some(5)), 60_000).is_some());
        assert_eq!(late.served_max, Some(15));
        assert_eq!(Life::default().answered(said(None, Some(1)), 60_000), None);
        assert_eq!(Life::default().answered(said(None, Some(0)), 60_000), None);
    }
}
