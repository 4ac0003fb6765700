//! Draws sampled stacks: as an SVG that can be clicked through, or as collapsed stacks.
//!
//! Called by the flamegraph's own thread. Knows nothing of how stacks come about.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::sample::Stacks;

/// Height of a frame, pixels.
const ROW: usize = 17;
/// Width of the picture, pixels, where nothing scales it.
const WIDTH: usize = 1200;
/// Room above the frames.
const HEAD: usize = 40;
/// Narrower frames are left out, share of the whole.
const SHARE_MIN: f64 = 0.0005;

/// Widens what was clicked to the whole width; what holds it too; what is beside it goes. Frames are nested pictures, so
/// that a name is cut off where its frame ends.
const SCRIPT: &str = "
const frames = [...document.querySelectorAll('svg svg')];
const at = frame => [+frame.dataset.x, +frame.dataset.w];
function zoom(to) {
  const [x0, w0] = at(to);
  for (const frame of frames) {
    const [x, w] = at(frame);
    const from = Math.max(0, (x - x0) / w0), until = Math.min(1, (x + w - x0) / w0);
    frame.style.display = until > from + 1e-9 ? '' : 'none';
    frame.setAttribute('x', 100 * from + '%');
    frame.setAttribute('width', 100 * Math.max(0, until - from) + '%');
  }
}
for (const frame of frames) frame.addEventListener('click', () => zoom(frame));
";

/// A function below those that called it.
#[derive(Default)]
struct Frame {
    count: u64,
    called: BTreeMap<String, Frame>,
}

impl Frame {
    fn of(stacks: &Stacks) -> Self {
        let mut root = Self::default();
        for (stack, count) in stacks {
            root.count += count;
            let mut frame = &mut root;
            for name in stack {
                frame = frame.called.entry(name.clone()).or_default();
                frame.count += count;
            }
        }
        root
    }

    fn depth(&self) -> usize {
        1 + self.called.values().map(Self::depth).max().unwrap_or(0)
    }
}

/// Collapsed stacks, one a line: names from the outermost on, separated by `;`, then how often.
pub(super) fn folded(stacks: &Stacks) -> String {
    let mut out = String::new();
    for (stack, count) in stacks {
        let _ = writeln!(out, "{} {count}", stack.join(";"));
    }
    out
}

/// The picture, the root at its foot; `seconds` were watched.
pub(super) fn svg(stacks: &Stacks, seconds: u64, hertz: i32) -> String {
    let root = Frame::of(stacks);
    let height = HEAD + root.depth() * ROW + ROW;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"100%\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"monospace\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff8f0\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"15\">herdgate: CPU time of {seconds} s, {} samples at {hertz} Hz. \
         Click a frame to widen it, the lowest one to go back.</text>\n",
        root.count
    );
    let mut picture = Picture { out: &mut out, whole: root.count.max(1), foot: height - ROW - ROW / 2 };
    picture.frame("all", &root, 0, 0);
    let _ = write!(out, "<script><![CDATA[{SCRIPT}]]></script>\n</svg>\n");
    out
}

/// What is drawn into.
struct Picture<'a> {
    out: &'a mut String,
    /// Samples of the whole width.
    whole: u64,
    /// Where the lowest row begins.
    foot: usize,
}

impl Picture<'_> {
    /// Draws a frame and what it called, `before` samples from the left.
    fn frame(&mut self, name: &str, frame: &Frame, before: u64, level: usize) {
        let share = |count: u64| count as f64 / self.whole as f64;
        let (x, width) = (share(before), share(frame.count));
        if width < SHARE_MIN {
            return;
        }
        let name_escaped = escaped(name);
        let _ = writeln!(
            self.out,
            "<svg x=\"{:.4}%\" y=\"{}\" width=\"{:.4}%\" height=\"{}\" data-x=\"{x:.8}\" data-w=\"{width:.8}\">\
             <title>{name_escaped}: {} samples, {:.2} %</title>\
             <rect width=\"100%\" height=\"100%\" fill=\"{}\" stroke=\"#fff8f0\" stroke-width=\"0.5\"/>\
             <text x=\"3\" y=\"12\">{name_escaped}</text></svg>",
            x * 100.0,
            self.foot - level * ROW,
            width * 100.0,
            ROW - 1,
            frame.count,
            width * 100.0,
            colour(name),
        );
        let mut before = before;
        for (name, called) in &frame.called {
            self.frame(name, called, before, level + 1);
            before += called.count;
        }
    }
}

/// Ours stand out; each name has its own shade, the same in every picture.
fn colour(name: &str) -> String {
    let shade = name.bytes().fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let hue = if name.contains("herdgate") { 12 } else { 45 };
    format!("hsl({}, {}%, {}%)", hue + shade % 15, 70 + shade / 15 % 20, 62 + shade / 300 % 14)
}

fn escaped(name: &str) -> String {
    name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stacks() -> Stacks {
        let stack = |text: &str| text.split(';').map(str::to_owned).collect::<Vec<_>>();
        [(stack("worker-0;run;read<T>"), 3), (stack("worker-0;run"), 1), (stack("control;poll"), 4)].into()
    }

    #[test]
    fn collapsed_stacks_are_one_line_each() {
        assert_eq!(folded(&stacks()), "control;poll 4\nworker-0;run 1\nworker-0;run;read<T> 3\n");
    }

    #[test]
    fn frames_are_as_wide_as_their_share_and_stand_on_their_callers() {
        let picture = svg(&stacks(), 10, 199);
        let frame = |name: &str| picture.lines().find(|line| line.contains(&format!("<title>{name}: "))).unwrap();
        assert!(frame("all").starts_with("<svg x=\"0.0000%\" y=\"100\" width=\"100.0000%\""), "{}", frame("all"));
        assert!(frame("worker-0").starts_with("<svg x=\"50.0000%\" y=\"83\" width=\"50.0000%\""));
        assert!(frame("read&lt;T&gt;").starts_with("<svg x=\"50.0000%\" y=\"49\" width=\"37.5000%\""));
        assert!(picture.contains("10 s, 8 samples at 199 Hz"));
    }

    #[test]
    fn nothing_sampled_is_a_picture_too() {
        assert!(svg(&Stacks::new(), 1, 199).contains("0 samples"));
    }
}
