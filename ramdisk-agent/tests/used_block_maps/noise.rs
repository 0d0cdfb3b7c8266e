//! Random numbers that a seed decides.

/// SplitMix64.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not give shifted copies of one sequence.
        let mut noise = Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        noise.next();
        noise
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

/// How many filesystems of each kind are made.
pub fn rounds() -> u64 {
    number("IMPRINT_MAP_ROUNDS").unwrap_or(20)
}

/// How many mutations each filesystem gets at least.
pub fn mutations() -> u64 {
    number("IMPRINT_MAP_MUTATIONS").unwrap_or(0)
}

/// The seeds of this run; each test adds its own number so that tests differ.
pub fn seeds(test: u64) -> impl Iterator<Item = u64> {
    let first = number("IMPRINT_MAP_SEED").unwrap_or(1);
    (0..rounds()).map(move |round| test * 1_000_000 + first + round)
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}
