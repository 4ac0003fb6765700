//! SHA-256, base64 and zstd: what digests, embeddings and compressed bodies need.
//!
//! Called by the blob, embedding and `/v1` handlers of a simulated node. Pure.

use std::io::Read as _;

/// SHA-256, fed in pieces.
#[derive(Clone)]
pub(super) struct Sha256 {
    state: [u32; 8],
    block: Vec<u8>,
    length: u64,
}

const ROUND: [u32; 64] = [
    0x428a_2f98,
    0x7137_4491,
    0xb5c0_fbcf,
    0xe9b5_dba5,
    0x3956_c25b,
    0x59f1_11f1,
    0x923f_82a4,
    0xab1c_5ed5,
    0xd807_aa98,
    0x1283_5b01,
    0x2431_85be,
    0x550c_7dc3,
    0x72be_5d74,
    0x80de_b1fe,
    0x9bdc_06a7,
    0xc19b_f174,
    0xe49b_69c1,
    0xefbe_4786,
    0x0fc1_9dc6,
    0x240c_a1cc,
    0x2de9_2c6f,
    0x4a74_84aa,
    0x5cb0_a9dc,
    0x76f9_88da,
    0x983e_5152,
    0xa831_c66d,
    0xb003_27c8,
    0xbf59_7fc7,
    0xc6e0_0bf3,
    0xd5a7_9147,
    0x06ca_6351,
    0x1429_2967,
    0x27b7_0a85,
    0x2e1b_2138,
    0x4d2c_6dfc,
    0x5338_0d13,
    0x650a_7354,
    0x766a_0abb,
    0x81c2_c92e,
    0x9272_2c85,
    0xa2bf_e8a1,
    0xa81a_664b,
    0xc24b_8b70,
    0xc76c_51a3,
    0xd192_e819,
    0xd699_0624,
    0xf40e_3585,
    0x106a_a070,
    0x19a4_c116,
    0x1e37_6c08,
    0x2748_774c,
    0x34b0_bcb5,
    0x391c_0cb3,
    0x4ed8_aa4a,
    0x5b9c_ca4f,
    0x682e_6ff3,
    0x748f_82ee,
    0x78a5_636f,
    0x84c8_7814,
    0x8cc7_0208,
    0x90be_fffa,
    0xa450_6ceb,
    0xbef9_a3f7,
    0xc671_78f2,
];

impl Sha256 {
    pub(super) fn new() -> Self {
        let state =
            [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
        Self { state, block: Vec::with_capacity(64), length: 0 }
    }

    pub(super) fn update(&mut self, mut input: &[u8]) {
        self.length += input.len() as u64;
        while !input.is_empty() {
            let take = input.len().min(64 - self.block.len());
            self.block.extend_from_slice(&input[..take]);
            input = &input[take..];
            if self.block.len() == 64 {
                self.compress();
                self.block.clear();
            }
        }
    }

    /// The digest in lower-case hexadecimal digits.
    pub(super) fn hex(mut self) -> String {
        let bits = self.length * 8;
        self.update(&[0x80]);
        while self.block.len() != 56 {
            self.update(&[0]);
        }
        self.update(&bits.to_be_bytes());
        self.state.iter().map(|word| format!("{word:08x}")).collect()
    }

    fn compress(&mut self) {
        let mut w = [0u32; 64];
        for (i, chunk) in self.block.chunks_exact(4).enumerate() {
            w[i] = u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
        for i in 16..64 {
            let s0 = w[i - 15].rotate_right(7) ^ w[i - 15].rotate_right(18) ^ (w[i - 15] >> 3);
            let s1 = w[i - 2].rotate_right(17) ^ w[i - 2].rotate_right(19) ^ (w[i - 2] >> 10);
            w[i] = w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1);
        }
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = self.state;
        for i in 0..64 {
            let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let t1 = h.wrapping_add(s1).wrapping_add((e & f) ^ (!e & g)).wrapping_add(ROUND[i]).wrapping_add(w[i]);
            let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let t2 = s0.wrapping_add((a & b) ^ (a & c) ^ (b & c));
            (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
        }
        for (state, add) in self.state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *state = state.wrapping_add(add);
        }
    }
}

/// The digest of one text, 64 hexadecimal digits.
pub(super) fn digest(text: &str) -> String {
    let mut sha = Sha256::new();
    sha.update(text.as_bytes());
    sha.hex()
}

/// Standard base64 with padding.
pub(super) fn base64(input: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(input.len().div_ceil(3) * 4);
    for chunk in input.chunks(3) {
        let word = chunk.iter().enumerate().fold(0u32, |w, (i, b)| w | u32::from(*b) << (16 - 8 * i));
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

/// Whether a text is standard base64, and where the first wrong byte stands if not.
pub(super) fn base64_error(text: &str) -> Option<usize> {
    let body = text.trim_end_matches('=');
    let wrong = body.bytes().position(|b| !(b.is_ascii_alphanumeric() || b == b'+' || b == b'/'));
    wrong.or_else(|| (!text.len().is_multiple_of(4)).then_some(text.len() / 4 * 4))
}

/// The decoded limit of a compressed body, as Ollama has it.
const DECODED_MAX: u64 = 20 << 20;

/// Decodes a zstd body; the error is the text that a node answers.
pub(super) fn unzstd(body: &[u8]) -> Result<Vec<u8>, String> {
    if !body.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err("invalid input: magic number mismatch".to_owned());
    }
    let decoder = ruzstd::decoding::StreamingDecoder::new(body).map_err(|e| e.to_string())?;
    let mut out = Vec::new();
    decoder.take(DECODED_MAX + 1).read_to_end(&mut out).map_err(|e| e.to_string())?;
    if out.len() as u64 > DECODED_MAX {
        return Err("http: request body too large".to_owned());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_and_encodes() {
        assert_eq!(digest(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(digest("hello\n"), "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        assert_eq!(base64(b"notanimage"), "bm90YW5pbWFnZQ==");
        assert_eq!(base64_error("bm90YW5pbWFnZQ=="), None);
        assert_eq!(base64_error("b*"), Some(1));
    }
}
