//! A cursor over JSON text that accepts exactly what Go's scanner accepts, and says where strings lie.
//!
//! Called by [`super::scan`] alone. Must never recurse (bodies nest as deep as a client likes) or allocate.

use memchr::memchr2;

use crate::proxy::block::{self, Marks};
use crate::proxy::word;

/// Go's `encoding/json` refuses a value nested deeper than this.
const DEPTH_MAX: usize = 10_000;
/// Nesting whose kinds fit one register; deeper values are walked again with a stack of their own.
const DEPTH_SHALLOW: usize = 64;
/// Words of eight bytes that are looked through before blocks are: keys end in them.
const STRING_WORDS: usize = 2;
/// Blocks without an end in a row, after which a string is taken for something longer than text.
const PLAIN_BLOCKS: usize = 16;
/// Bytes of such a string searched for its end and then for control characters, while they are still in the first cache.
const STRING_WINDOW: usize = 4096;

/// The text is not JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Syntax;

/// A string as it stands in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    /// What is between the quotes.
    pub(super) raw: &'a [u8],
    /// Whether it holds a backslash.
    pub(super) escaped: bool,
}

/// A place in a text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    /// Offset of the next byte.
    pub(super) at: usize,
    /// Containers around the cursor that the caller has opened itself.
    depth: usize,
}

impl<'a> Cursor<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, depth: 0 }
    }

    /// The next byte that is no white space, left in place.
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.bytes.get(self.at)?;
            if !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    /// Takes the next byte that is no white space if it is this one.
    pub(super) fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Enters an object that the caller reads member by member; says whether it has a first one.
    pub(super) fn open_object(&mut self) -> Result<bool, Syntax> {
        if !self.eat(b'{') || self.depth == DEPTH_MAX {
            return Err(Syntax);
        }
        self.depth += 1;
        if self.eat(b'}') {
            self.depth -= 1;
            return Ok(false);
        }
        Ok(true)
    }

    /// After a member of an object entered so: says whether another one follows.
    pub(super) fn next_member(&mut self) -> Result<bool, Syntax> {
        if self.eat(b',') {
            return Ok(true);
        }
        if self.eat(b'}') {
            self.depth -= 1;
            return Ok(false);
        }
        Err(Syntax)
    }

    /// A member's key and its colon.
    pub(super) fn key(&mut self) -> Result<Text<'a>, Syntax> {
        let key = self.string()?;
        if self.eat(b':') { Ok(key) } else { Err(Syntax) }
    }

    /// A string.
    pub(super) fn string(&mut self) -> Result<Text<'a>, Syntax> {
        if !self.eat(b'"') {
            return Err(Syntax);
        }
        let start = self.at;
        let escaped = self.string_rest()?;
        Ok(Text { raw: self.bytes.get(start..self.at - 1).ok_or(Syntax)?, escaped })
    }

    /// One of the three words.
    pub(super) fn word(&mut self, word: &'static [u8]) -> Result<(), Syntax> {
        self.peek();
        let found = self.bytes.get(self.at..).is_some_and(|rest| rest.starts_with(word));
        self.at += word.len();
        if found { Ok(()) } else { Err(Syntax) }
    }

    /// Any value, passed over. Gives its text.
    pub(super) fn skip(&mut self) -> Result<&'a [u8], Syntax> {
        self.peek();
        let start = self.at;
        match self.walk(&mut Shallow::default()) {
            Ok(()) => {}
            Err(Stop::Syntax) => return Err(Syntax),
            Err(Stop::TooDeep) => {
                self.at = start;
                let room = DEPTH_MAX - self.depth;
                self.walk(&mut Deep::new(room)).map_err(|_| Syntax)?;
            }
        }
        self.bytes.get(start..self.at).ok_or(Syntax)
    }

    fn walk(&mut self, stack: &mut impl Stack) -> Result<(), Stop> {
        loop {
            match self.peek().ok_or(Stop::Syntax)? {
                b'"' => {
                    self.at += 1;
                    self.string_rest()?;
                }
                b'{' => {
                    self.at += 1;
                    stack.push(true)?;
                    if !self.eat(b'}') {
                        self.key()?;
                        continue;
                    }
                    stack.pop();
                }
                b'[' => {
                    self.at += 1;
                    stack.push(false)?;
                    if !self.eat(b']') {
                        continue;
                    }
                    stack.pop();
                }
                b't' => self.word(b"true")?,
                b'f' => self.word(b"false")?,
                b'n' => self.word(b"null")?,
                _ => {
                    self.number()?;
                    if stack.top() == Some(false) {
                        self.further_numbers();
                    }
                }
            }
            loop {
                let Some(in_object) = stack.top() else { return Ok(()) };
                let byte = self.peek().ok_or(Stop::Syntax)?;
                self.at += 1;
                match (byte, in_object) {
                    (b',', true) => {
                        self.key()?;
                        break;
                    }
                    (b',', false) => break,
                    (b'}', true) | (b']', false) => stack.pop(),
                    _ => return Err(Stop::Syntax),
                }
            }
        }
    }

    /// Past the closing quote; says whether there was a backslash.
    ///
    /// Keys end within two words. Text is broken by an escape every line or so, and all of those that lie in a block are
    /// found in one look at it. What goes on without any is longer than text (images), and searched.
    fn string_rest(&mut self) -> Result<bool, Syntax> {
        for _ in 0..STRING_WORDS {
            let Some(text) = self.bytes.get(self.at..).and_then(word::of) else { break };
            match end_in(text) {
                Some(hit) if text >> (8 * hit) & 0xff == u64::from(b'"') => {
                    self.at += hit + 1;
                    return Ok(false);
                }
                Some(_) => break,
                None => self.at += 8,
            }
        }
        let (mut escaped, mut plain) = (false, 0);
        while let Some(text) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk()) {
            let marks = Marks::of(text);
            let Some(run) = marks.run() else {
                plain = 0;
                if self.string_block(text, marks.ends(), &mut escaped)? {
                    return Ok(escaped);
                }
                continue;
            };
            escaped |= run.escaped;
            if let Some(closing) = run.closing {
                self.at += closing + 1;
                return Ok(escaped);
            }
            // By a number that waits for nothing: the next block is begun before this one's test is done.
            self.at += block::BYTES;
            plain = if run.escaped { 0 } else { plain + 1 };
            if plain >= PLAIN_BLOCKS {
                self.plain_text()?;
            }
        }
        self.string_tail(escaped)
    }

    /// Goes through a block in which `ends` marks what ends plain text, one mark after another; whether the string ended
    /// in it.
    fn string_block(&mut self, block: &[u8; block::BYTES], mut ends: u64, escaped: &mut bool) -> Result<bool, Syntax> {
        let from = self.at;
        while ends != 0 {
            let hit = ends.trailing_zeros() as usize;
            self.at = from + hit + 1;
            match block.get(hit) {
                Some(b'"') => return Ok(true),
                Some(b'\\') => *escaped = true,
                _ => return Err(Syntax),
            }
            // Here for a newline or a quote, without the call.
            if block.get(hit + 1).is_some_and(|&kind| is_simple_escape(kind)) {
                self.at += 1;
            } else {
                self.escape()?;
            }
            // What it reaches of the block is gone through, and it may reach beyond.
            let taken = self.at - from;
            if taken >= block::BYTES {
                return Ok(false);
            }
            ends = ends >> taken << taken;
        }
        self.at = from + block::BYTES;
        Ok(false)
    }

    /// Passes over text without quotes, backslashes and control characters, in large steps.
    fn plain_text(&mut self) -> Result<(), Syntax> {
        while let Some(window) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<STRING_WINDOW>()) {
            let hop = memchr2(b'"', b'\\', window);
            let run = hop.and_then(|hop| window.get(..hop)).unwrap_or(window);
            // A minimum over the run, which the compiler turns into vector instructions; a test per byte it would not.
            if run.iter().fold(u8::MAX, |least, &byte| least.min(byte)) < 0x20 {
                return Err(Syntax);
            }
            self.at += run.len();
            if hop.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// The end of a string that ends in the last bytes of the text.
    fn string_tail(&mut self, mut escaped: bool) -> Result<bool, Syntax> {
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            self.at += rest.iter().position(|&byte| ends(byte)).ok_or(Syntax)? + 1;
            match self.bytes.get(self.at - 1) {
                Some(b'"') => return Ok(escaped),
                Some(b'\\') => escaped = true,
                _ => return Err(Syntax),
            }
            self.escape()?;
        }
    }

    fn escape(&mut self) -> Result<(), Syntax> {
        let kind = *self.bytes.get(self.at).ok_or(Syntax)?;
        self.at += 1;
        match kind {
            b'u' => {
                let digits = self.bytes.get(self.at..self.at + 4).ok_or(Syntax)?;
                self.at += 4;
                if digits.iter().all(u8::is_ascii_hexdigit) { Ok(()) } else { Err(Syntax) }
            }
            kind if is_simple_escape(kind) => Ok(()),
            _ => Err(Syntax),
        }
    }

    /// Passes over further elements of a list as far as they are short whole numbers with nothing between: token ids,
    /// of which a context has thousands.
    fn further_numbers(&mut self) {
        while let Some(text) = self.bytes.get(self.at..).and_then(word::of)
            && text & 0xff == u64::from(b',')
        {
            let number = text >> 8;
            // The highest byte is empty now: behind seven digits no end is seen, and the number is read the long way.
            let digits = (word::no_digit(number).trailing_zeros() / 8) as usize;
            let end = (number >> (8 * digits)) as u8;
            let is_plain = digits > 0 && (digits == 1 || number & 0xff != u64::from(b'0'));
            if !is_plain || !matches!(end, b',' | b']') {
                return;
            }
            self.at += 1 + digits;
        }
    }

    fn number(&mut self) -> Result<(), Syntax> {
        let byte = |at: usize| self.bytes.get(at).copied();
        let digits = |mut at: usize| {
            while byte(at).is_some_and(|b| b.is_ascii_digit()) {
                at += 1;
            }
            at
        };
        let some = |from: usize, to: usize| if to > from { Ok(to) } else { Err(Syntax) };
        let mut at = self.at;
        at += usize::from(byte(at) == Some(b'-'));
        // A leading zero stands alone.
        at = if byte(at) == Some(b'0') { at + 1 } else { some(at, digits(at))? };
        if byte(at) == Some(b'.') {
            at = some(at + 1, digits(at + 1))?;
        }
        if matches!(byte(at), Some(b'e' | b'E')) {
            at += 1;
            at += usize::from(matches!(byte(at), Some(b'+' | b'-')));
            at = some(at, digits(at))?;
        }
        self.at = at;
        Ok(())
    }
}

/// Where in eight bytes a run of plain text ends.
fn end_in(text: u64) -> Option<usize> {
    word::first(word::control(text) | word::equal(text, b'"') | word::equal(text, b'\\'))
}

/// Bytes that are all of an escape behind their backslash. A table, since which one it is cannot be foretold.
const SIMPLE_ESCAPES: [bool; 256] = {
    let mut table = [false; 256];
    let mut kinds: &[u8] = b"\"\\/bfnrt";
    while let [kind, rest @ ..] = kinds {
        table[*kind as usize] = true;
        kinds = rest;
    }
    table
};

fn is_simple_escape(kind: u8) -> bool {
    SIMPLE_ESCAPES[usize::from(kind)]
}

fn ends(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

enum Stop {
    Syntax,
    TooDeep,
}

impl From<Syntax> for Stop {
    fn from(_: Syntax) -> Self {
        Self::Syntax
    }
}

/// The kinds of the open containers: `true` for an object.
trait Stack {
    fn push(&mut self, object: bool) -> Result<(), Stop>;
    fn pop(&mut self);
    fn top(&self) -> Option<bool>;
}

/// In a register: one bit a level, the innermost lowest.
#[derive(Default)]
struct Shallow {
    kinds: u64,
    depth: usize,
}

impl Stack for Shallow {
    fn push(&mut self, object: bool) -> Result<(), Stop> {
        if self.depth == DEPTH_SHALLOW {
            return Err(Stop::TooDeep);
        }
        self.kinds = self.kinds << 1 | u64::from(object);
        self.depth += 1;
        Ok(())
    }

    fn pop(&mut self) {
        self.kinds >>= 1;
        self.depth -= 1;
    }

    fn top(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.kinds & 1 == 1)
    }
}

/// For the few bodies that nest deeper: the same, in an array.
struct Deep {
    kinds: [u64; DEPTH_MAX.div_ceil(64)],
    depth: usize,
    room: usize,
}

impl Deep {
    fn new(room: usize) -> Self {
        Self { kinds: [0; DEPTH_MAX.div_ceil(64)], depth: 0, room }
    }
}

impl Stack for Deep {
    fn push(&mut self, object: bool) -> Result<(), Stop> {
        if self.depth >= self.room {
            return Err(Stop::TooDeep);
        }
        let word = self.kinds.get_mut(self.depth / 64).ok_or(Stop::TooDeep)?;
        let bit = 1 << (self.depth % 64);
        *word = if object { *word | bit } else { *word & !bit };
        self.depth += 1;
        Ok(())
    }

    fn pop(&mut self) {
        self.depth -= 1;
    }

    fn top(&self) -> Option<bool> {
        let at = self.depth.checked_sub(1)?;
        self.kinds.get(at / 64).map(|word| word >> (at % 64) & 1 == 1)
    }
}
